"""A manifest that came from elsewhere: its digests are compared, and its parameters are only proposals.

Its names must be those of files in its own folder, each of one file. It cannot grant permissions: see
`publish/rebuild.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from quantyard.errors import BadSource
from quantyard.formats.names import shown_name
from quantyard.hub.files import parse_hub_repo_id
from quantyard.store.manifest import MODEL_YAML, MODELFILE, Manifest, parse_manifest

MAX_QUANTS: Final = 200
MAX_PARTS: Final = 10_000  # of one model; the limit of its header too
MAX_NAME_BYTES: Final = 240  # of a file, whose name is longer while it is downloaded
_QUANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,39}")  # or a recipe's name
_HUB_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_ENDING: Final = ".gguf"


def parse_hub_manifest(data: bytes, name: str) -> Manifest:
    """The manifest of a release from elsewhere; `name` is for messages.

    Raises:
        ValueError: it is not a valid manifest, or names files outside a release.
        BadRequest: a newer Quantyard wrote it.
    """
    manifest = parse_manifest(data, name)
    for fault in _foreign_manifest_faults(manifest):
        raise ValueError(fault)
    return manifest


def _foreign_manifest_faults(manifest: Manifest) -> Iterator[str]:
    yield from _foreign_manifest_source_faults(manifest)
    if len(manifest.quants) > MAX_QUANTS:
        yield f"it names {len(manifest.quants):,} files; at most {MAX_QUANTS} are allowed"
    for quant, record in manifest.quants.items():
        if not _QUANT.fullmatch(quant):
            yield f"{shown_name(quant)} is not the name of a quant"
        if len(record.parts) > MAX_PARTS:
            yield f"{quant} has {len(record.parts):,} parts; at most {MAX_PARTS:,} are allowed"
    yield from _foreign_manifest_name_faults(manifest)
    for entry in manifest.app_files:
        if entry.path not in (MODELFILE, MODEL_YAML):
            yield f"{shown_name(entry.path)} is neither {MODELFILE} nor {MODEL_YAML}"


def _foreign_manifest_source_faults(manifest: Manifest) -> Iterator[str]:
    """Check the source: an id and a commit of the Hub, never a path of this machine."""
    source = manifest.source
    if not source.repo_id:
        return
    try:
        parse_hub_repo_id(source.repo_id)
    except BadSource:
        yield f"source.repo_id {shown_name(source.repo_id)} is not a repo of the Hub"
    if not _HUB_COMMIT.fullmatch(source.commit):
        yield f"source.commit {shown_name(source.commit)} is not a commit of the Hub: 40 hex digits"


def _foreign_manifest_name_faults(manifest: Manifest) -> Iterator[str]:
    """Check that each name is a GGUF in the folder itself and is unique, also on file systems that ignore case."""
    owners: dict[str, str] = {}
    for name, owner in _foreign_manifest_names(manifest):
        if "/" in name or name.startswith(".") or not name.lower().endswith(_ENDING):
            shown = shown_name(name)
            yield f"{shown} ({owner}) is not a file of a release: not called *{_ENDING}, or hidden, or a path"
        if len(name.encode()) > MAX_NAME_BYTES:
            yield f"{shown_name(name)} ({owner}) is longer than {MAX_NAME_BYTES} bytes"
        if owners.setdefault(name.casefold(), owner) != owner:
            yield f"{shown_name(name)} is the file of {owners[name.casefold()]} and of {owner}"


def _foreign_manifest_names(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Each name with the owner of the file."""
    for quant, record in manifest.quants.items():
        if not record.parts:
            yield record.file, quant
        for number, part in enumerate(record.parts, 1):
            yield part.path, f"{quant}, part {number}"
    for entry in manifest.projector.files if manifest.projector else ():
        yield entry.path, "the projector"
    for name in manifest.imatrices:
        yield name, f"the importance matrix {shown_name(name)}"
