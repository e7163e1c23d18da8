"""`make verify`: does this file, folder or repo match its manifest?

A manifest can be wrong in two ways: the files differ from it, or it contradicts itself. Both are checked. `rebuild.py`
checks whether the recorded steps really give these bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from quantyard.card.render import CardContext, card_differences
from quantyard.errors import BadRequest, BadSource, HubError, HubUnreachable
from quantyard.files.own_files import find_file, kind_of_path, read_named_file
from quantyard.formats.gguf import GgufError, read_gguf_header, read_gguf_model
from quantyard.formats.names import shown_name
from quantyard.hub.client import HubAccess, resolve_hub_repo
from quantyard.hub.foreign_manifest import parse_hub_manifest
from quantyard.protocol.base import FileEntry, files_digest
from quantyard.protocol.runner import file_sha256
from quantyard.quants.catalog import QUANTS
from quantyard.sources.licence import Licence, source_licence
from quantyard.store.manifest import MAX_BYTES, ImatrixRecord, Manifest, QuantRecord, StageRecord

State = Literal["ok", "failed", "not checked"]
MANIFEST: Final = "manifest.json"
_CARD: Final = "README.md"
_CARD_BYTES: Final = 4 * 2**20
_LISTED: Final = 12  # names in a message
_PATH_SHOWN: Final = 300  # characters
_NAME_ON_CARD: Final = re.compile(r"^model-index:\n- name: '?([\w.-]+)'?$", re.MULTILINE)


@dataclass(frozen=True)
class ReleaseCheck:
    """One check and its result."""

    what: str
    state: State
    finding: str


@dataclass(frozen=True)
class CheckedRelease:
    """A release on this machine: its manifest, and the files to check."""

    folder: Path
    manifest: Manifest
    quants: tuple[str, ...]
    imatrices: tuple[str, ...] = ()
    projectors: tuple[str, ...] = ()
    app_files: tuple[str, ...] = ()  # for Ollama and LM Studio


def find_checked_release(path: Path) -> CheckedRelease:
    """The release in a folder, or the one file of it.

    Raises:
        BadRequest: the file does not exist, or no manifest beside it names it.
    """
    kind = kind_of_path(path)
    if not kind:
        what = shown_name(str(path), _PATH_SHOWN)
        raise BadRequest(f"There is no file or folder {what}.", "Give one that exists: make verify FILE=path")
    folder = path if kind == "folder" else path.parent
    manifest = _manifest_in_release(folder)
    if not manifest.quants:
        raise BadRequest(f"{folder / MANIFEST} does not name any model.", "Build one: make build MODEL=org/name")
    projectors = [entry.path for entry in manifest.projector.files] if manifest.projector else []
    if kind == "folder":
        apps = tuple(entry.path for entry in manifest.app_files)
        return CheckedRelease(
            folder, manifest, tuple(manifest.quants), tuple(manifest.imatrices), tuple(projectors), apps
        )
    if path.name in projectors:
        return CheckedRelease(folder, manifest, (), (), (path.name,))
    if path.name in manifest.imatrices:
        return CheckedRelease(folder, manifest, (), (path.name,))
    named = [quant for quant, record in manifest.quants.items() if path.name in {entry.path for entry in record.files}]
    if not named:
        known = [*(record.file for record in manifest.quants.values()), *projectors, *manifest.imatrices]
        told = ", ".join(known[:_LISTED]) + (f" and {len(known) - _LISTED} more" if len(known) > _LISTED else "")
        message = f"{folder / MANIFEST} does not name {path.name}, only {told}."
        raise BadRequest(message, f"To check those: make verify FILE={folder}")
    return CheckedRelease(folder, manifest, tuple(named))


def _manifest_in_release(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        read_from = find_file(folder, MANIFEST) if kind_of_path(path) else path
        return parse_hub_manifest(read_named_file(read_from, MAX_BYTES), str(path))
    except OSError as error:
        hint = "Download it from the file's repo, or verify the repo: make verify REPO=me/name-GGUF"
        raise BadRequest(f"{path} cannot be read: {error.strerror}.", hint) from error
    except ValueError as error:
        first = str(error).splitlines()[0]
        raise BadRequest(f"{path} is not a manifest of Quantyard: {first}.", "Download it again.") from error


def check_release(
    subject: CheckedRelease, access: HubAccess, repo_id: str, on_file: Callable[[str], None]
) -> Iterator[ReleaseCheck]:
    """Every check, the files first. `repo_id` "": not published, or not known where."""
    for quant in subject.quants:
        record = subject.manifest.quants[quant]
        on_file(record.file)
        for entry in record.files:
            yield ReleaseCheck(
                entry.path, *_compare_released(subject.folder, entry.path, entry.size_bytes, str(entry.sha256))
            )
        yield _check_released_type(subject.folder, quant, record)
        yield _check_released_records(subject.manifest, quant, record)
    for entry in subject.manifest.projector.files if subject.manifest.projector else ():
        if entry.path in subject.projectors:
            on_file(entry.path)
            yield from _check_released_projector(subject.folder, entry)
    for name in subject.imatrices:
        on_file(name)
        yield from _check_released_imatrix(subject.folder, subject.manifest.imatrices[name])
    for entry in subject.manifest.app_files:
        if entry.path in subject.app_files:
            yield ReleaseCheck(
                entry.path, *_compare_released(subject.folder, entry.path, entry.size_bytes, str(entry.sha256))
            )
    yield _check_released_source(subject.manifest, access)
    yield _check_released_card(subject, repo_id)


def _compare_released(folder: Path, name: str, size_bytes: int, sha256: str) -> tuple[State, str]:
    if not kind_of_path(folder / name):
        return "failed", "is missing"
    try:
        path = find_file(folder, name)
    except BadSource as error:
        return "failed", error.message
    if (size := path.stat().st_size) != size_bytes:
        return "failed", f"has {size:,} bytes, the manifest says {size_bytes:,}"
    if (found := file_sha256(path)) != sha256:
        return "failed", f"SHA-256 {found}, the manifest says {sha256}"
    return "ok", f"SHA-256 {sha256}"


def _check_released_type(folder: Path, quant: str, record: QuantRecord) -> ReleaseCheck:
    """Compare the type in the file's header with the manifest; the file's name does not count."""
    what = f"type of {record.file}"
    try:
        header = read_gguf_model(_released_file_by_name(folder, record.files[0].path))
    except (GgufError, OSError) as error:
        return ReleaseCheck(what, "failed", f"is not a readable GGUF: {error}")
    found = next((q.name for q in QUANTS if q.ftype == header.file_type), str(header.file_type))
    known = next((q for q in QUANTS if q.name == quant), None)
    if known is None or quant == "COPY" or header.file_type == known.ftype:  # COPY keeps the file's type
        return ReleaseCheck(what, "ok", f"{found}, {header.architecture}, {len(header.tensors)} tensors")
    return ReleaseCheck(what, "failed", f"its header says {found}, the manifest {quant}")


def _released_file_by_name(folder: Path, name: str) -> Path:
    """Open the file under its own name, by which its other parts are found.

    Raises:
        GgufError: it is not a GGUF, or must not be opened.
    """
    try:
        find_file(folder, name)
    except BadSource as error:
        raise GgufError(error.message) from error
    return folder / name


def _check_released_imatrix(folder: Path, record: ImatrixRecord) -> Iterator[ReleaseCheck]:
    yield ReleaseCheck(record.file, *_compare_released(folder, record.file, record.size_bytes, record.sha256))
    what = f"type of {record.file}"
    try:
        kind = read_gguf_header(_released_file_by_name(folder, record.file)).metadata.get("general.type")
    except (GgufError, OSError) as error:
        yield ReleaseCheck(what, "failed", f"is not a readable GGUF: {error}")
        return
    state: State = "ok" if kind == "imatrix" else "failed"
    yield ReleaseCheck(what, state, "importance matrix" if state == "ok" else f"its header says {kind}, not imatrix")


def _check_released_projector(folder: Path, entry: FileEntry) -> Iterator[ReleaseCheck]:
    yield ReleaseCheck(entry.path, *_compare_released(folder, entry.path, entry.size_bytes, str(entry.sha256)))
    what = f"type of {entry.path}"
    try:
        media = read_gguf_header(_released_file_by_name(folder, entry.path)).media
    except (GgufError, OSError) as error:
        yield ReleaseCheck(what, "failed", f"is not a readable GGUF: {error}")
        return
    found = f"projector ({', '.join(media)})" if media else "its header says neither vision nor audio"
    yield ReleaseCheck(what, "ok" if media else "failed", found)


def _check_released_records(manifest: Manifest, quant: str, record: QuantRecord) -> ReleaseCheck:
    """The records of the stages that made, verified and measured the file must all name the same bytes."""
    problems = list(_contradictions_of_release(manifest, quant, record))
    told = [f"made by {record.made_by or 'its source'}", *_measurers_of_released_file(manifest, quant)]
    return ReleaseCheck(f"record of {quant}", "failed" if problems else "ok", "; ".join(problems or told))


def _measurers_of_released_file(manifest: Manifest, quant: str) -> Iterator[str]:
    suites = [name for name, r in manifest.evaluations.items() if any(m.file.label == quant for m in r.measurements)]
    yield f"measured by {', '.join(suites)}" if suites else "not measured"
    yield "contract tested" if quant in manifest.contracts else "contract not tested"


def _contradictions_of_release(manifest: Manifest, quant: str, record: QuantRecord) -> Iterator[str]:
    made = manifest.stages.get(record.made_by)
    if record.made_by and made is None:
        yield f"no record of {record.made_by}"
    elif made is not None and record.sha256 not in {output.sha256 for output in made.outputs}:
        yield f"{record.made_by} made a file of another hash"
    if made is not None and (why := _other_imatrix_than_released(made, record.imatrix)):
        yield f"{record.made_by} {why}"
    if record.imatrix and record.imatrix != manifest.imatrices[record.imatrix.file]:
        yield f"{record.imatrix.file} has another hash in the record of another file"
    if record.verified_by not in manifest.stages:
        yield f"no record of {record.verified_by}"
    for name, report in manifest.evaluations.items():
        measured = next((m.file.sha256 for m in report.measurements if m.file.label == quant), None)
        if measured not in (None, record.sha256):
            yield f"the suite {name} measured a file with another hash"


def _other_imatrix_than_released(made: StageRecord, recorded: ImatrixRecord | None) -> str:
    """Why the recorded importance matrix is not the one used to make the file; "" if it is, or none was used."""
    used = made.inputs.get("imatrix")
    if recorded is None:
        return "used an importance matrix without a record" if used else ""
    if used != files_digest(tuple(recorded.given)):
        return f"used another importance matrix than {recorded.file}" if used else "used no importance matrix"
    names = {entry.path: (entry.size_bytes, entry.sha256) for entry in recorded.given}
    given = names.get(str(made.request.get("imatrix_file")))
    same = given == (recorded.size_bytes, recorded.sha256)
    return "" if same else f"used an importance matrix with another hash than {recorded.file}"


def _check_released_source(manifest: Manifest, access: HubAccess) -> ReleaseCheck:
    source = manifest.source
    if not source.repo_id:
        return ReleaseCheck("source", "not checked", f"{source.title} was a local model, digest {source.commit[:12]}")
    what = f"source {source.repo_id}"
    try:
        repo = resolve_hub_repo(access, source.repo_id, source.commit)
    except HubUnreachable as error:
        return ReleaseCheck(what, "not checked", error.message)
    except HubError as error:
        return ReleaseCheck(what, "failed", f"commit {source.commit[:12]}: {error.message}")
    there = {entry.path: entry.sha256 for entry in repo.files}
    if gone := [f.path for f in source.files if f.path not in there]:
        return ReleaseCheck(what, "failed", f"missing at commit {source.commit[:12]}: {', '.join(gone)}")
    if others := [f.path for f in source.files if f.sha256 and there[f.path] not in (None, f.sha256)]:
        return ReleaseCheck(what, "failed", f"other bytes at commit {source.commit[:12]}: {', '.join(others)}")
    return ReleaseCheck(what, "ok", f"commit {source.commit[:12]} is there, its files as recorded")


def _check_released_card(subject: CheckedRelease, repo_id: str) -> ReleaseCheck:
    """Compare the card's numbers with the manifest; the text around them may be edited."""
    if not kind_of_path(subject.folder / _CARD):
        return ReleaseCheck("card", "not checked", f"{_CARD} is missing")
    manifest = subject.manifest
    if not manifest.evaluations:
        return ReleaseCheck("card", "not checked", "nothing was measured")
    try:
        text = read_named_file(find_file(subject.folder, _CARD, _CARD_BYTES), _CARD_BYTES).decode(errors="replace")
    except BadSource as error:
        return ReleaseCheck("card", "failed", error.message)
    context = CardContext(
        repo_id=_repo_on_released_card(text) or repo_id.partition("@")[0] or "me/model-GGUF",
        suite=next(iter(manifest.evaluations)),
        licence=checked_release_licence(manifest),
    )
    try:
        found = card_differences(text, manifest, context)
    except BadRequest as error:  # a manifest that contradicts itself cannot be compared with a card
        found = [error.message]
    return ReleaseCheck("card", "failed" if found else "ok", "; ".join(found) or "its numbers match the manifest")


def _repo_on_released_card(card: str) -> str:
    """The repo that the card names: a local file has none, and a copy of a repo may have another name."""
    found = _NAME_ON_CARD.search(card)
    return f"me/{found[1]}" if found else ""


def checked_release_licence(manifest: Manifest) -> Licence:
    """The licence that the release states."""
    try:
        return source_licence(manifest.source.license, manifest.stated_license, manifest.source.card.license_name)
    except BadRequest:
        return Licence(manifest.source.license or "unknown", "source", ())


def worst_release_check(checks: Sequence[ReleaseCheck]) -> State:
    """Failed if one check failed; ok only if at least one could run."""
    states = {check.state for check in checks}
    return "failed" if "failed" in states else "ok" if "ok" in states else "not checked"
