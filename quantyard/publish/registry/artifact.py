"""A GGUF as an OCI artifact that `docker model pull` understands.

A layer is the file itself, not archived or compressed, so its digest is the file's SHA-256. Media types and
configuration are those of Docker's model-spec 0.1 (github.com/docker/model-spec), as its Model Runner reads them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from quantyard.errors import BadRequest
from quantyard.formatting.numbers import format_bytes
from quantyard.publish.files import PublishedFile, made_release_file
from quantyard.publish.registry.annotations import (
    oci_evaluation_annotations,
    oci_made_at,
    oci_measurement,
    oci_time,
)
from quantyard.publish.registry.client import MANIFEST_TYPE, Registry
from quantyard.publish.registry.errors import RegistryRefused
from quantyard.publish.registry.login import RegistryCredentials
from quantyard.publish.registry.upload import RegistryUpload
from quantyard.store.manifest import Manifest

__all__ = [
    "OciModel",
    "OciReference",
    "RegistryCredentials",
    "make_oci_model",
    "oci_digest",
    "oci_evaluation_annotations",
    "oci_manifest",
    "parse_oci_reference",
    "push_oci_model",
]  # fmt: skip

CONFIG_TYPE = "application/vnd.docker.ai.model.config.v0.1+json"
GGUF_TYPE = "application/vnd.docker.ai.gguf.v3"
LICENCE_TYPE = "application/vnd.docker.ai.license"
PROJECTOR_TYPE = "application/vnd.docker.ai.mmproj"
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_HOST = r"(?:localhost|[a-zA-Z0-9-]+(?:\.[a-zA-Z0-9-]+)+|[a-zA-Z0-9-]+(?=:)|\[[0-9a-fA-F:]+\])(?::(?P<port>\d{1,5}))?"
_NAME, _TAG = rf"{_PART}(?:/{_PART})*", r"\w[\w.-]{0,127}"
_REFERENCE = re.compile(rf"(?P<registry>{_HOST})/(?P<name>{_NAME})(?::(?P<tag>{_TAG}))?", re.ASCII)
_LONGEST_NAME = 255  # characters of host and repository
_LAST_PORT = 65535


@dataclass(frozen=True)
class OciReference:
    """registry/repository:tag. The tag "" stands for the quant's name."""

    registry: str
    repository: str
    tag: str = ""

    def tag_of(self, quant: str) -> str:
        """The tag that this quant gets here."""
        return self.tag or quant

    def at(self, digest: str) -> str:
        """registry/repository@digest, which always names the same content."""
        return f"{self.registry}/{self.repository}@{digest}"


@dataclass(frozen=True)
class OciModel:
    """What one artifact holds and says."""

    quant: str
    parts: tuple[PublishedFile, ...]  # the GGUF, or its shards in order
    licences: tuple[PublishedFile, ...]
    architecture: str
    n_params: int
    created: datetime
    annotations: Mapping[str, str]
    projectors: tuple[PublishedFile, ...] = ()  # what reads pictures or sound for it


def parse_oci_reference(text: str) -> OciReference:
    """registry.example:5000/team/name[:tag], always with the registry: none is assumed.

    Raises:
        BadRequest: it is not a reference of this form.
    """
    found = _REFERENCE.fullmatch(text)
    name = text.rpartition(":")[0] if found and found["tag"] else text
    if found and len(name) <= _LONGEST_NAME and int(found["port"] or 0) <= _LAST_PORT:
        return OciReference(found["registry"], found["name"], found["tag"] or "")
    message = f"OCI={text} is not a repository of a registry{_why_not_oci_reference(text)}."
    raise BadRequest(message, "Name it like this: OCI=registry.example/team/name")


def _why_not_oci_reference(text: str) -> str:
    host, slash, rest = text.partition("/")
    if "://" in text:
        return ": it is an address, with a scheme before the registry"
    if "@" in text:
        return ": it names a digest, and a push can only choose a tag"
    if slash and not re.fullmatch(_HOST, host):
        return f": {host} is not a registry (Docker Hub is docker.io)"
    if rest.partition(":")[0] != rest.partition(":")[0].lower():
        return ": names in a registry are in lower case"
    return ""


def make_oci_model(
    manifest: Manifest, quant: str, suite: str, parts: tuple[PublishedFile, ...], licences: tuple[PublishedFile, ...],
    projectors: tuple[PublishedFile, ...] = (),
) -> OciModel:
    """The artifact of one quant, with what the suite has measured on it.

    Raises:
        BadRequest: the suite has not measured this file.
    """
    facts = oci_measurement(manifest, quant, suite).file
    annotations = oci_evaluation_annotations(manifest, quant, suite)
    return OciModel(
        quant, parts, licences, facts.architecture, facts.n_params, oci_made_at(manifest, quant), annotations,
        projectors,
    )


def oci_manifest(model: OciModel) -> tuple[bytes, bytes]:
    """Configuration and manifest, as JSON: the same files and annotations give the same bytes."""
    config = _oci_json(_oci_model_config(model))
    layers = [_oci_layer(file, media_type) for file, media_type in _oci_files_with_type(model)]
    manifest = {
        "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "layers": layers, "annotations": dict(model.annotations),
        "config": {"mediaType": CONFIG_TYPE, "digest": _oci_digest(config), "size": len(config)},
    }
    return config, _oci_json(manifest)


def oci_digest(model: OciModel) -> str:
    """The digest that the artifact will have, known before anything is pushed."""
    return _oci_digest(oci_manifest(model)[1])


def push_oci_model(
    reference: OciReference, model: OciModel, credentials: RegistryCredentials | None,
    on_progress: Callable[[str, int, int], None],
) -> str:
    """Send the missing blobs, then the manifest, and read it back.

    Args:
        credentials: None: as a visitor.
        on_progress: called with a file's name, its bytes sent so far, and its size.

    Returns:
        The manifest's digest.

    Raises:
        OciError: see errors.py. Then no tag was set.
    """
    config, manifest = oci_manifest(model)
    made = made_release_file("config.json", config)
    files = {f.sha256: f for f in (*model.parts, *model.projectors, *model.licences, made)}
    tag, digest = reference.tag_of(model.quant), _oci_digest(manifest)
    with Registry(reference.registry, reference.repository, credentials) as registry:
        registry.ping()
        for file in files.values():
            _send_oci_file(registry, file, on_progress)
        registry.put_manifest(tag, manifest)
        _read_back_oci_artifact(registry, tag, digest, files)
    return digest


def _send_oci_file(registry: Registry, file: PublishedFile, on_progress: Callable[[str, int, int], None]) -> None:
    if registry.blob_size(f"sha256:{file.sha256}") is None:
        RegistryUpload(registry, file, lambda sent: on_progress(file.path, sent, file.size_bytes)).run()
    on_progress(file.path, file.size_bytes, file.size_bytes)


def _read_back_oci_artifact(registry: Registry, tag: str, digest: str, files: Mapping[str, PublishedFile]) -> None:
    hint = "Try again: somebody may have pushed the same tag just now, or a proxy answers for the registry."
    if (found := _oci_digest(registry.manifest(tag))) != digest:
        raise RegistryRefused(f"{registry.name} gives back {found[:19]}… for {tag}, not {digest[:19]}….", hint)
    for sha256, file in files.items():
        size = registry.blob_size(f"sha256:{sha256}")
        if size not in (file.size_bytes, -1):
            has = "none" if size is None else size
            raise RegistryRefused(f"{registry.name} has {has} of the {file.size_bytes} bytes of {file.path}.", hint)


def _oci_model_config(model: OciModel) -> dict[str, object]:
    """What Model Runner shows and chooses by. The spec's word for `created` is `createdAt`, but Model Runner takes an
    artifact with that key for another format (CNCF ModelPack).
    """
    described = {
        "format": "gguf", "format_version": "3", "quantization": model.quant, "architecture": model.architecture,
        "parameters": _oci_parameter_count(model.n_params),
        "size": format_bytes(sum(f.size_bytes for f in model.parts), binary=True).replace(" ", ""),
    }
    typed = [
        {"diffID": f"sha256:{file.sha256}", "type": media_type} for file, media_type in _oci_files_with_type(model)
    ]
    return {
        "config": described, "descriptor": {"created": oci_time(model.created)},
        "files": typed,  # by the spec; Model Runner reads rootfs
        "rootfs": {"type": "rootfs", "diff_ids": [file["diffID"] for file in typed]},
    }


def _oci_files_with_type(model: OciModel) -> Iterator[tuple[PublishedFile, str]]:
    """Every file with its media type, in the order of the layers."""
    groups = ((model.parts, GGUF_TYPE), (model.projectors, PROJECTOR_TYPE), (model.licences, LICENCE_TYPE))
    return ((file, media_type) for files, media_type in groups for file in files)


def _oci_layer(file: PublishedFile, media_type: str) -> dict[str, object]:
    """The file's name under two keys: one for Model Runner, one for `oras pull`."""
    named = {"org.cncf.model.filepath": file.path, "org.opencontainers.image.title": file.path}
    digest = f"sha256:{file.sha256}"
    return {"mediaType": media_type, "digest": digest, "size": file.size_bytes, "annotations": named}


def _oci_parameter_count(n_params: int) -> str:
    """134515008 → "134.52M"."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if n_params >= size:
            return f"{n_params / size:.2f}{unit}"
    return str(n_params)


def _oci_json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _oci_digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
