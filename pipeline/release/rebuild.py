"""`make verify REBUILD=1`: do the recorded steps give the same bytes again?

They should on the same image and the same kind of CPU. Elsewhere a difference proves nothing: llama.cpp chooses its
code by the CPU, and rounds accordingly.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from pipeline.calibration import Calibration, with_imatrix
from pipeline.contract import FileEntry, digest_of_files
from pipeline.errors import BadRequest
from pipeline.manifest import ImatrixRecord, Manifest, QuantRecord, StageRecord
from pipeline.plan import BuildPlan
from pipeline.quants import Quant, find, of_recipe
from pipeline.recipes.recipe import Recipe
from pipeline.release.check import Check, Subject
from pipeline.requests import BuildRequest
from pipeline.stage import sha256_of
from pipeline.store import Artifact, ModelId

# What decides the bytes, in a record's `ran_by`, and what people call it.
_MEANS: Final = {"engine": "engine", "base_digest": "base image", "packages": "set of packages"}


def rebuild_request(request: BuildRequest, subject: Subject, artifacts: Path) -> BuildRequest:
    """The build that made these files, from its source, in a store of its own.

    Raises:
        BadRequest: the source was a local one, and MODEL does not say where it is now.
    """
    source = subject.manifest.source
    if not source.repo_id and not request.model:
        message = f"It was built from a local model, {source.title}: MODEL must say where that is."
        raise BadRequest(message, "Type: make verify FILE=… REBUILD=1 MODEL=folder")
    asked = dict(_requests(subject.manifest))
    convert = asked.get("convert", {})
    return replace(
        request, artifacts=artifacts, measure=None,
        quants=tuple(_quant(subject.manifest, quant) for quant in subject.quants),
        model=f"{source.repo_id}@{source.commit}" if source.repo_id else request.model, gguf_file=source.gguf_file,
        outtype=convert.get("outtype", "auto"),  # type: ignore[arg-type]
        allow_pickle=bool(convert.get("allow_pickle")),
        allow_requantize=any(stage.get("allow_requantize") for stage in asked.values()),
        allow_mismatch=any(stage.get("allow_mismatch") for stage in asked.values()),
        imatrix=next(iter(_used(subject).values()), "none"), calibration=(),
    )  # fmt: skip


def with_recorded_imatrices(plan: BuildPlan, subject: Subject, folder: Path) -> BuildPlan:
    """The plan that gives each file the importance matrix it was made with.

    Args:
        folder: for copies under the names that the matrices had: llama.cpp writes those into the files.

    Raises:
        BadRequest: one of them is not here, or not the recorded one.
    """
    for quant, name in _used(subject).items():
        record, made = subject.manifest.imatrices[name], subject.manifest.stages[subject.manifest.quants[quant].made_by]
        matrix = _copied(subject.folder / name, record, folder / record.sha256[:12], str(made.request["imatrix_file"]))
        plan = with_imatrix(plan, Calibration(matrix=matrix), [quant])
    return plan


def _used(subject: Subject) -> dict[str, str]:
    """Quant → the file of the importance matrix that it was made with."""
    found = {quant: subject.manifest.quants[quant].imatrix for quant in subject.quants}
    return {quant: record.file for quant, record in found.items() if record}


def _copied(path: Path, record: ImatrixRecord, folder: Path, name: str) -> Artifact:
    if not path.is_file():
        message = f"{path} is not there, and these files were made with that importance matrix."
        raise BadRequest(message, "Download it beside them, or let all be downloaded: make verify REPO=… REBUILD=1")
    if (found := sha256_of(path)) != record.sha256:
        message = f"{path} is not the importance matrix that these files were made with: SHA-256 {found}."
        raise BadRequest(message, f"Download the one of SHA-256 {record.sha256} again.")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, folder / name)
    files = (FileEntry(path=name, size_bytes=record.size_bytes, sha256=record.sha256),)
    return Artifact(digest_of_files(files), files, folder, whole_folder=False)


def _quant(manifest: Manifest, name: str) -> Quant:
    """The quant of a file; what a recipe said is in the request that made it."""
    made_by = manifest.stages.get(manifest.quants[name].made_by)
    asked = made_by.request if made_by else {}
    if not asked.get("recipe"):
        return find(name)
    fields = {
        "name": name, "base": asked["quant"], "description": "as its manifest tells it",
        "tensors": asked.get("tensor_types", {}), "output": asked.get("output_type"),
        "token_embedding": asked.get("token_embedding_type"),
    }
    return of_recipe(Recipe.model_validate(fields))


def _requests(manifest: Manifest) -> Iterator[tuple[str, Mapping[str, JsonValue]]]:
    return ((label, record.request) for label, record in manifest.stages.items())


def check_source(subject: Subject, model: ModelId) -> None:
    """Refuse to rebuild from another source than the recorded one. Its name counts: the converter writes it down.

    Raises:
        BadRequest: it is another.
    """
    recorded = subject.manifest.source.commit
    if model.commit != recorded:
        digests = f"digest {model.commit[:12]}, recorded {recorded[:12]}"
        message = f"MODEL is not what these files were built from: {digests}."
        raise BadRequest(message, "Give the very files that were built from.")
    convert = subject.manifest.stages.get("convert")
    if convert and convert.request.get("name") != model.name:
        message = f"MODEL is called {model.name}, and was called {convert.request.get('name')} when it was built."
        raise BadRequest(message, "Give the folder that name: the converter writes it into the file.")


def compare_rebuilt(
    subject: Subject, again: Mapping[str, QuantRecord], stages: Mapping[str, StageRecord]
) -> Iterator[Check]:
    """Each file beside its second making.

    Args:
        again: the records of the files that were made now, by quant.
        stages: the records of what made them, by label.
    """
    for quant in subject.quants:
        before, now = subject.manifest.quants[quant], again[quant]
        what = f"rebuilt {before.file}"
        if before.sha256 == now.sha256:
            yield Check(what, "ok", "the same bytes")
            continue
        others = _other_means(subject.manifest.stages.get(before.made_by), stages.get(now.made_by))
        found = f"other bytes: SHA-256 {now.sha256}, recorded {before.sha256}"
        yield Check(what, "not checked" if others else "failed", f"{found}{_proves_nothing(others)}")


def _proves_nothing(others: str) -> str:
    return f". That proves nothing, since it was made with another {others}" if others else ", by the same means"


def _other_means(before: StageRecord | None, now: StageRecord | None) -> str:
    """Which of the things that decide the bytes are not the same now."""
    if before is None or now is None:
        return "record"
    pairs: list[tuple[str | None, str | None, str]] = [(before.cpu, now.cpu, "CPU")]
    pairs += [(before.ran_by.get(key), now.ran_by.get(key), what) for key, what in _MEANS.items()]
    return ", ".join(what for then, here, what in pairs if then != here)
