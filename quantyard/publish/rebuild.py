"""`make verify REBUILD=1`: repeats the recorded steps and compares the bytes.

With the same image and the same kind of CPU they must agree. Elsewhere a difference proves nothing: llama.cpp chooses
its code by the CPU, and rounds accordingly.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from pydantic import JsonValue, TypeAdapter, ValidationError

from quantyard.errors import BadRequest, NeedsPermission
from quantyard.files.own_files import find_file, kind_of_path
from quantyard.formats.names import name_format_fault, shown_name
from quantyard.plan.build import PROJECTOR
from quantyard.plan.imatrix import Calibration, plan_with_imatrix
from quantyard.plan.steps import BuildPlan
from quantyard.protocol.base import FileEntry, files_digest
from quantyard.protocol.builder import OutType
from quantyard.protocol.runner import file_sha256
from quantyard.protocol.text_findings import PLAIN_TEXT, is_mismatch_kind
from quantyard.publish.verify import CheckedRelease, ReleaseCheck
from quantyard.quants.catalog import Quant, find_quant
from quantyard.quants.recipe_files import recipe_from_fields
from quantyard.quants.selection import quant_of_recipe
from quantyard.requests import BuildRequest
from quantyard.store.artifact import Artifact, ModelId
from quantyard.store.manifest import ImatrixRecord, Manifest, QuantRecord, StageRecord
from quantyard.version import __version__

# The fields of `ran_by` that decide the bytes, and their names in messages.
_MEANS: Final = {"engine": "engine", "base_digest": "base image", "packages": "set of packages"}
# To add a permission: add a row, the setting in the stage's request → what the user types.
PERMISSIONS: Final = {
    "allow_pickle": "ALLOW_PICKLE",
    "allow_requantize": "ALLOW_REQUANTIZE",
    "allow_mismatch": "ALLOW_MISMATCH",
}
_OUTTYPES: Final[TypeAdapter[OutType]] = TypeAdapter(OutType)
_SAID: Final = 60  # characters of a value that is not a text


def release_rebuild_request(request: BuildRequest, subject: CheckedRelease, artifacts: Path) -> BuildRequest:
    """The request that repeats the build of these files, from its source, in a separate store.

    A manifest may come from elsewhere: it proposes parameters, which are checked against our own tables, and never
    grants a permission. Only the user grants one, in this run.

    Raises:
        NeedsPermission: the files were made with a permission that the user has not given now.
        BadRequest: a recorded parameter is invalid; or the source was a local one, and MODEL does not say where it
            is now.
    """
    source = subject.manifest.source
    if not source.repo_id and not request.model:
        message = f"It was built from a local model, {source.title}: MODEL must name its folder."
        raise BadRequest(message, "Type: make verify FILE=… REBUILD=1 MODEL=folder")
    quants = tuple(recorded_quant(subject.manifest, quant) for quant in subject.quants)
    asked = dict(_requests_to_rebuild(subject))
    _refuse_rebuild_permissions(request, asked)
    return replace(
        request,
        artifacts=artifacts,
        measure=None,
        quants=quants,
        model=f"{source.repo_id}@{source.commit}" if source.repo_id else request.model,
        gguf_file=source.gguf_file,
        outtype=_outtype_of_rebuild(asked.get("convert", {}).get("outtype", "auto")),
        imatrix="auto" if _imatrix_of_rebuilt_quants(subject) else "none",
        calibration=(),
        parity="off",  # it makes no file
        parts="all" if subject.projectors else "text",
    )


def _requests_to_rebuild(subject: CheckedRelease) -> Iterator[tuple[str, Mapping[str, JsonValue]]]:
    """The recorded request of each stage that will run again."""
    for label in ("convert", *(f"{stage} {quant}" for quant in subject.quants for stage in ("quantize", "verify"))):
        if record := subject.manifest.stages.get(label):
            yield label, record.request


def _refuse_rebuild_permissions(request: BuildRequest, asked: Mapping[str, Mapping[str, JsonValue]]) -> None:
    """Refuse a rebuild that needs permissions the user has not given now, or that this version does not know.

    Raises:
        NeedsPermission: the message names the missing permissions.
    """
    used = {name: value for stage in asked.values() for name, value in stage.items() if value}
    permissions = {name for name in used if name.startswith("allow_")}
    if unknown := sorted(permissions - PERMISSIONS.keys()):
        message = (
            f"These files were made with {shown_name(unknown[0])}, which this Quantyard ({__version__}) does not know."
        )
        raise BadRequest(message, "Check them without making them again: leave REBUILD out.")
    missing = [
        words for name in PERMISSIONS if name in used and (words := _missing_rebuild_setting(request, name, used[name]))
    ]
    if missing:
        message = f"The manifest says that these files were made with {' '.join(missing)}; only you can allow that."
        what = f"make verify {_rebuild_subject_words(request)} REBUILD=1 {' '.join(missing)}"
        raise NeedsPermission(message, f"If you trust the source, type: {what}")


def _missing_rebuild_setting(request: BuildRequest, name: str, recorded: JsonValue) -> str:
    """What the user would have to type to permit the same; "" if it is permitted."""
    setting = PERMISSIONS[name]
    if name != "allow_mismatch":
        return "" if getattr(request, name) else f"{setting}=1"
    named = [str(kind) for kind in recorded] if isinstance(recorded, list) else []
    kinds = [kind for kind in named if is_mismatch_kind(kind)] or [PLAIN_TEXT]  # before kinds it was on or off
    return "" if {*kinds} <= {*request.allow_mismatch} else f"{setting}={','.join(kinds)}"


def _rebuild_subject_words(request: BuildRequest) -> str:
    """What to verify, as the user typed it."""
    asked = request.check
    given = {"REPO": asked.repo_id, "FILE": str(asked.file or "")} if asked else {"FILE": ""}
    words = [f"{name}={shlex.quote(value)}" for name, value in {**given, "MODEL": request.model}.items() if value]
    return " ".join(words) or "FILE=…"


def _outtype_of_rebuild(value: JsonValue) -> OutType:
    try:
        return _OUTTYPES.validate_python(value, strict=True)
    except ValidationError as error:
        message = f"The manifest records a conversion to {_rebuild_text(value)}, which is not a type to convert to."
        raise BadRequest(message, "Such a release cannot be made again: leave REBUILD out.") from error


def _rebuild_text(value: object) -> str:
    return shown_name(value if isinstance(value, str) else repr(value)[:_SAID])


def rebuild_release_imatrices(plan: BuildPlan, subject: CheckedRelease, folder: Path) -> BuildPlan:
    """The plan that gives each file the importance matrix it was made with.

    Args:
        folder: a new folder of ours for copies under the matrices' original names: llama.cpp writes the names into
            the files.

    Raises:
        BadRequest: one of them is missing, is not the recorded one, or had an invalid name.
    """
    for number, (quant, name) in enumerate(_imatrix_of_rebuilt_quants(subject).items()):
        made = subject.manifest.stages.get(subject.manifest.quants[quant].made_by)
        recorded = made.request.get("imatrix_file") if made else None
        if not isinstance(recorded, str) or name_format_fault(recorded) or recorded.startswith("."):
            message = (
                f"The importance matrix of {quant} is recorded as {_rebuild_text(recorded)}, which is not a file name."
            )
            raise BadRequest(message, "Such a release cannot be made again: leave REBUILD out.")
        matrix = _copied_imatrix_of_rebuild(
            subject.folder, subject.manifest.imatrices[name], folder / str(number), recorded
        )
        plan = plan_with_imatrix(plan, Calibration(matrix=matrix), [quant])
    return plan


def _imatrix_of_rebuilt_quants(subject: CheckedRelease) -> dict[str, str]:
    """Quant → the file of the importance matrix that it was made with."""
    found = {quant: subject.manifest.quants[quant].imatrix for quant in subject.quants}
    return {quant: record.file for quant, record in found.items() if record}


def _copied_imatrix_of_rebuild(release: Path, record: ImatrixRecord, folder: Path, name: str) -> Artifact:
    path = release / record.file
    if not kind_of_path(path):
        message = f"{path} is missing, and these files were made with that importance matrix."
        raise BadRequest(message, "Download it beside them, or download everything: make verify REPO=… REBUILD=1")
    real = find_file(release, record.file)
    if (found := file_sha256(real)) != record.sha256:
        message = f"{path} is not the importance matrix that these files were made with: SHA-256 {found}."
        raise BadRequest(message, f"Download the one of SHA-256 {record.sha256} again.")
    folder.mkdir(parents=True)  # the folder is empty, so no name can lead through a link
    shutil.copyfile(real, folder / name)
    files = (FileEntry(path=name, size_bytes=record.size_bytes, sha256=record.sha256),)
    return Artifact(files_digest(files), files, folder, whole_folder=False)


def recorded_quant(manifest: Manifest, name: str) -> Quant:
    """The quant of a file; a recipe's types are in the request of its stage.

    Raises:
        UnknownQuant, BadRequest: no type has this name, or the recipe is invalid.
    """
    made_by = manifest.stages.get(manifest.quants[name].made_by)
    asked = made_by.request if made_by else {}
    if not asked.get("recipe"):
        return find_quant(name)
    fields = {
        "name": name,
        "base": asked.get("quant"),
        "description": "as its manifest tells it",
        "tensors": asked.get("tensor_types", {}),
        "output": asked.get("output_type"),
        "token_embedding": asked.get("token_embedding_type"),
    }
    return quant_of_recipe(recipe_from_fields(fields, f"recorded of {name}"))


def check_rebuild_source(subject: CheckedRelease, model: ModelId) -> None:
    """Refuse a source that is not the recorded one. Its name counts too: the converter writes it into the file.

    Raises:
        BadRequest: the source differs.
    """
    recorded = subject.manifest.source.commit
    if model.commit != recorded:
        digests = f"digest {model.commit[:12]}, recorded {recorded[:12]}"
        message = f"MODEL is not the source of these files: {digests}."
        raise BadRequest(message, "Give the exact files that they were built from.")
    convert = subject.manifest.stages.get("convert")
    if convert and convert.request.get("name") != model.name:
        was = _rebuild_text(convert.request.get("name"))
        message = f"MODEL is called {model.name}, but was called {was} when the files were built."
        raise BadRequest(message, "Give the folder that name: the converter writes it into the file.")


def compare_rebuilt_release(
    subject: CheckedRelease, again: Mapping[str, QuantRecord], stages: Mapping[str, StageRecord]
) -> Iterator[ReleaseCheck]:
    """Compare each file with its rebuilt copy.

    Args:
        again: the records of the rebuilt files, by quant.
        stages: the records of the stages that rebuilt them, by label.
    """
    yield from _rebuilt_projectors(subject, stages.get(PROJECTOR))
    for quant in subject.quants:
        before, now = subject.manifest.quants[quant], again[quant]
        what = f"rebuilt {before.file}"
        if before.sha256 == now.sha256:
            yield ReleaseCheck(what, "ok", "the same bytes")
            continue
        others = _other_means_of_rebuild(subject.manifest.stages.get(before.made_by), stages.get(now.made_by))
        found = f"other bytes: SHA-256 {now.sha256}, recorded {before.sha256}"
        yield ReleaseCheck(what, "not checked" if others else "failed", f"{found}{_rebuild_proves_nothing(others)}")


def _rebuilt_projectors(subject: CheckedRelease, now: StageRecord | None) -> Iterator[ReleaseCheck]:
    record = subject.manifest.projector
    made = {entry.sha256 for entry in now.outputs} if now else set()
    for entry in record.files if record else ():
        if entry.path not in subject.projectors:
            continue
        if entry.sha256 in made:
            yield ReleaseCheck(f"rebuilt {entry.path}", "ok", "the same bytes")
            continue
        others = _other_means_of_rebuild(subject.manifest.stages.get(record.made_by if record else ""), now)
        found = f"other bytes than SHA-256 {entry.sha256}{_rebuild_proves_nothing(others)}"
        yield ReleaseCheck(f"rebuilt {entry.path}", "not checked" if others else "failed", found)


def _rebuild_proves_nothing(others: str) -> str:
    return f". That proves nothing, since it was made now with another {others}" if others else ", by the same means"


def _other_means_of_rebuild(before: StageRecord | None, now: StageRecord | None) -> str:
    """Which of the things that decide the bytes differ now."""
    if before is None or now is None:
        return "record"
    pairs: list[tuple[str | None, str | None, str]] = [(before.cpu, now.cpu, "CPU")]
    pairs += [(before.ran_by.get(key), now.ran_by.get(key), what) for key, what in _MEANS.items()]
    return ", ".join(what for then, here, what in pairs if then != here)
