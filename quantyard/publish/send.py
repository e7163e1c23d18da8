"""Sends a release to the Hub, to a registry, or both. Which files it has is decided in `bundle.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quantyard.errors import BadRequest
from quantyard.hub.client import HubAccess
from quantyard.publish.bundle import ReleaseBundle, ReleaseDestination
from quantyard.publish.hub.commit import (
    FileChange,
    HubPublication,
    preview_hub_publication,
    publish_to_hub,
)
from quantyard.publish.hub.there import HubThere
from quantyard.publish.registry.artifact import OciModel, make_oci_model, oci_digest
from quantyard.publish.registry.login import registry_docker_login
from quantyard.publish.registry.signing import push_signed_oci_model
from quantyard.publish.release import Release

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
    there: HubThere = field(default_factory=HubThere)  # what the repo holds

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
        hub, known = self.where.hub, self.there.manifest
        others = {quant: record for quant, record in (known.quants if known else {}).items()
                  if quant not in self.release.quants and record.files[0].path in self.there.files}  # fmt: skip
        if hub is None or not others:
            return
        missing, both = ", ".join(others), ",".join(dict.fromkeys((*others, *self.release.quants)))
        message = f"{hub.repo_id} also holds {missing}, which the new card and manifest would omit."
        raise BadRequest(message, f"Publish them together: QUANT={both}; or remove the file there first.")

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
