"""Sends a release to the Hub, to a registry, or both. Which files it has is decided in `bundle.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantyard.errors import BadRequest, HubUnreachable
from quantyard.hub.client import HubAccess
from quantyard.hub.foreign_manifest import parse_hub_manifest
from quantyard.publish.bundle import MANIFEST, ReleaseBundle, ReleaseDestination
from quantyard.publish.files import made_release_file
from quantyard.publish.hub.commit import (
    FileChange,
    HubPublication,
    HubTarget,
    preview_hub_publication,
    publish_to_hub,
    read_published_file,
)
from quantyard.publish.registry.artifact import OciModel, make_oci_model, oci_digest
from quantyard.publish.registry.login import registry_docker_login
from quantyard.publish.registry.signing import push_signed_oci_model
from quantyard.publish.release import Release
from quantyard.store.manifest import MAX_BYTES

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class OciPublication:
    """One quant in a registry; `signed` only if a key was given."""

    reference: str  # registry/repository:tag
    digest: str
    signed: bool


@dataclass(frozen=True)
class Intention:
    """What would be published. `exists` None: the Hub could not be asked."""

    exists: bool | None
    changes: tuple[FileChange, ...]
    oci: tuple[OciPublication, ...]


@dataclass(frozen=True)
class Published:
    """What was published."""

    hub: HubPublication | None
    oci: tuple[OciPublication, ...]


@dataclass(frozen=True)
class Sender:
    """One release with everything needed to send it."""

    where: ReleaseDestination
    release: Release
    bundle: ReleaseBundle
    access: HubAccess
    docker_config: Path
    cosign_key: Path | None

    def intend(self) -> Intention:
        """What `send` would do; nothing is written anywhere.

        Raises:
            BadRequest: the repo holds other quants too.
        """
        self._refuse_to_forget()
        hub = self.where.hub
        exists, changes = preview_hub_publication(self.access, hub, self.bundle.files) if hub else (None, ())
        return Intention(exists, changes, tuple(self._oci(quant) for quant in self._oci_quants()))

    def send(self, on_progress: Progress) -> Published:
        """Publish, to the registry first: there nothing is visible until all of it has arrived.

        Raises:
            HubError, OciError, EngineError, BadRequest: see errors.py.
        """
        self._refuse_to_forget()
        pushed = tuple(self._push(quant, on_progress) for quant in self._oci_quants())
        found = None
        if self.where.hub:
            message = f"{self.release.name}: {', '.join(self.release.quants)}, measured ({self.release.suite})"
            found = publish_to_hub(self.access, self.where.hub, self.bundle.files, message, on_progress)
        return Published(found, pushed)

    def _refuse_to_forget(self) -> None:
        """Refuse if the repo holds quants that the new card and manifest would omit."""
        hub = self.where.hub
        if hub is None or not (others := self._published_before(hub)):
            return
        missing, both = ", ".join(others), ",".join(dict.fromkeys((*others, *self.release.quants)))
        message = f"{hub.repo_id} also holds {missing}, which the new card and manifest would omit."
        raise BadRequest(message, f"Publish them together: QUANT={both}; or remove the file there first.")

    def _published_before(self, hub: HubTarget) -> list[str]:
        try:
            text = read_published_file(self.access, hub, MANIFEST, MAX_BYTES)
            known = parse_hub_manifest(text, MANIFEST).quants if text else {}
        except (HubUnreachable, ValueError):  # out of reach, or not a manifest of ours
            return []
        others = {quant: record for quant, record in known.items() if quant not in self.release.quants}
        files = [made_release_file(record.files[0].path, b"") for record in others.values()]
        _, changes = preview_hub_publication(self.access, hub, files)
        there = {change.path for change in changes if change.state in ("changed", "unchanged")}
        return [quant for quant, record in others.items() if record.files[0].path in there]

    def _oci_quants(self) -> Sequence[str]:
        return self.release.quants if self.where.oci else ()

    def _oci(self, quant: str) -> OciPublication:
        reference, digest = self.where.oci, oci_digest(self._model(quant))
        assert reference is not None
        name = f"{reference.registry}/{reference.repository}:{reference.tag_of(quant)}"
        return OciPublication(name, digest, self.cosign_key is not None)

    def _push(self, quant: str, on_progress: Progress) -> OciPublication:
        reference = self.where.oci
        assert reference is not None
        login = registry_docker_login(reference.registry, self.docker_config)
        push_signed_oci_model(reference, self._model(quant), login, self.cosign_key, on_progress)
        return self._oci(quant)

    def _model(self, quant: str) -> OciModel:
        manifest, suite = self.release.manifest, self.release.suite
        return make_oci_model(
            manifest, quant, suite, self.bundle.models[quant], self.bundle.legal, self.bundle.projectors[:1]
        )
