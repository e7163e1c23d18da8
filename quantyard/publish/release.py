"""The contents of a release: the manifest of the chosen files alone, and every published file.

A release has the same layout in a repo as in the model's folder of the store:

    README.md, LICENSE …                the card, and what the licence asks to travel
    <name>-<QUANT>.gguf                 or its parts
    mmproj-<name>-F16.gguf              what reads pictures or sound for the models; Q8_0 beside it, where it is as good
    <name>.imatrix.gguf                 the importance matrix that files were made with
    manifest.json                       how it was made, what was measured
    Modelfile, model.yaml               for Ollama and LM Studio, where they can run the model
    report.html                         every file beside the baseline
    eval/<suite>/                       the report, its plots, lm-eval's own results
    .eval_results/                      scores in the Hub's form

Questions and answers of data sets are not published, since they have licences of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from quantyard.errors import BadRequest
from quantyard.files.own_files import home_folder
from quantyard.paths import REPO_DIR
from quantyard.plan.report_step import plan_suite_folder
from quantyard.protocol.base import FileEntry
from quantyard.protocol.measurements import EvalReport
from quantyard.protocol.runner import file_sha256
from quantyard.publish.files import PublishedFile, kept_release_file, made_release_file
from quantyard.publish.folder import FOLDER
from quantyard.publish.use import with_release_use
from quantyard.sources.licence import source_licence_files
from quantyard.sources.resolve import Source
from quantyard.store.hash_cache import HashCache
from quantyard.store.manifest import (
    Manifest,
    QuantRecord,
    changing_manifest,
    read_manifest,
    stage_record_file,
    write_manifest,
)
from quantyard.store.stages import ModelStore, stored_stage_folder

_AGAIN: Final = "make release MODEL=… QUANT=… REPO=…"


@dataclass(frozen=True)
class Release:
    """One model's files as they will be published: `manifest` knows of these files only."""

    manifest: Manifest
    folder: Path  # of the model in the store
    suite: str
    paths: Mapping[str, Path]  # of each quant's file
    imatrices: tuple[PublishedFile, ...] = ()
    projectors: tuple[PublishedFile, ...] = ()  # what reads pictures or sound; the one to serve first

    @property
    def report(self) -> EvalReport:
        """The evaluation that the card shows."""
        return self.manifest.evaluations[self.suite]

    @property
    def name(self) -> str:
        """The model's."""
        return self.folder.parent.name

    @property
    def quants(self) -> tuple[str, ...]:
        """The names of the files' types."""
        return tuple(self.manifest.quants)


def find_release(
    folder: Path, source: Path | None, quants: Sequence[str], suite: str, hashes: HashCache, also: Sequence[str] = ()
) -> Release:
    """The release of these quants; raises unless every file is exactly the one that was measured.

    Args:
        folder: the model's, in the store.
        source: the folder of a local source: a GGUF that was only measured stays there.
        suite: whose evaluation; "": the one with the most questions that covers all files.
        also: further quants; those that cannot stand in the same report are left out.

    Raises:
        BadRequest: a file is missing, was changed, or was not measured.
    """
    manifest = read_manifest(folder / "manifest.json")
    if manifest is None:
        raise BadRequest(f"Nothing is built in {folder}.", f"Build, measure and publish: {_AGAIN}")
    if missing := [quant for quant in quants if quant not in manifest.quants]:
        raise BadRequest(f"{', '.join(missing)} is not built.", f"Build, measure and publish: {_AGAIN}")
    there = [quant for quant in also if _is_released_file_there(folder, source, manifest.quants.get(quant), hashes)]
    chosen, quants = _release_quants_with_others(manifest, quants, suite, there)
    paths = {quant: _unchanged_release_file(folder, source, manifest.quants[quant], hashes) for quant in quants}
    only = _manifest_of_released_quants(manifest, quants, chosen)
    matrices, projectors = (tuple(found(only, folder, hashes)) for found in (_released_imatrices, _released_projectors))
    return Release(only, folder, chosen, paths, matrices, projectors)


def quants_in_release_folder(folder: Path) -> tuple[str, ...]:
    """The quants that the model's folder `release` is about; none if there is no such folder."""
    with suppress(BadRequest):
        manifest = read_manifest(folder / FOLDER / "manifest.json")
        return tuple(manifest.quants) if manifest else ()
    return ()


def _release_quants_with_others(
    manifest: Manifest, quants: Sequence[str], suite: str, others: Sequence[str]
) -> tuple[str, list[str]]:
    """The suite, and the quants with those of the others that its evaluation covers; in the manifest's order."""
    every = [*quants, *(quant for quant in others if quant not in quants)]
    try:
        return _choose_released_suite(manifest, every, suite), _release_order(manifest, quants, every)
    except BadRequest:
        chosen = _choose_released_suite(manifest, quants, suite)
    report = manifest.evaluations[chosen]
    covered = [quant for quant in every if not _evaluation_gap_of_release(manifest, report, [quant])]
    return chosen, _release_order(manifest, quants, covered)


def _release_order(manifest: Manifest, asked: Sequence[str], every: Sequence[str]) -> list[str]:
    """As asked; with more than that, as they were built."""
    return list(asked) if len(every) == len(asked) else [quant for quant in manifest.quants if quant in every]


def _unchanged_release_file(folder: Path, source: Path | None, record: QuantRecord, hashes: HashCache) -> Path:
    """The file's path, after a check that the file has not changed since it was verified."""
    path = (folder if record.made_by or source is None else source) / record.file
    _refuse_changed_release_file(path, record.sha256, hashes)
    return path


def _is_released_file_there(folder: Path, source: Path | None, record: QuantRecord | None, hashes: HashCache) -> bool:
    with suppress(BadRequest):
        return record is not None and _unchanged_release_file(folder, source, record, hashes).is_file()
    return False


def _released_imatrices(manifest: Manifest, folder: Path, hashes: HashCache) -> Iterator[PublishedFile]:
    """Each importance matrix that a file of the release was made with."""
    for name, record in manifest.imatrices.items():
        _refuse_changed_release_file(folder / name, record.sha256, hashes)
        yield kept_release_file(name, folder / name, record.sha256)


def _released_projectors(manifest: Manifest, folder: Path, hashes: HashCache) -> Iterator[PublishedFile]:
    """What reads pictures or sound for the files of the release."""
    for entry in manifest.projector.files if manifest.projector else ():
        _refuse_changed_release_file(folder / entry.path, str(entry.sha256), hashes)
        yield kept_release_file(entry.path, folder / entry.path, str(entry.sha256))


def _refuse_changed_release_file(path: Path, sha256: str, hashes: HashCache) -> None:
    if not path.is_file():
        raise BadRequest(f"{path} is gone.", f"Make it again: {_AGAIN}")
    if (found := hashes.sha256(path, file_sha256)) != sha256:
        message = f"{path} was changed after it was verified: SHA-256 {found}, recorded {sha256}."
        raise BadRequest(message, f"Remove it and make it again: {_AGAIN}")


def _choose_released_suite(manifest: Manifest, quants: Sequence[str], asked: str) -> str:
    """The evaluation of the suite asked for, or of the one with the most questions; it must cover these very files."""
    problems = {
        name: _evaluation_gap_of_release(manifest, report, quants) for name, report in manifest.evaluations.items()
    }
    if asked and asked not in problems:
        others = f"; measured: {', '.join(problems)}" if problems else ""
        raise BadRequest(f"Nothing was measured with the suite {asked}{others}.", f"Measure it: {_AGAIN} SUITE={asked}")
    whole = [name for name, problem in problems.items() if not problem and asked in ("", name)]
    if not whole:
        told = problems[asked] if asked else next(iter(problems.values()), "nothing was measured")
        hint = f"Measure all of them in one run: make eval MODEL=… QUANT={','.join(quants)}"
        if covered := _release_quants_evaluated(manifest, quants):
            hint += f"; or take those that were: QUANT={','.join(covered)}"
        raise BadRequest(f"The evaluation does not cover these files: {told}.", hint)
    return max(whole, key=lambda name: manifest.evaluations[name].n_questions)


def _release_quants_evaluated(manifest: Manifest, quants: Sequence[str]) -> list[str]:
    """Those of the quants that one evaluation covers; of several evaluations, of the one that covers most."""
    reports = manifest.evaluations.values()
    found = [
        [quant for quant in quants if not _evaluation_gap_of_release(manifest, report, [quant])] for report in reports
    ]
    return max(found, key=len, default=[])


def _evaluation_gap_of_release(manifest: Manifest, report: EvalReport, quants: Sequence[str]) -> str:
    """Why this evaluation does not cover these files; "" if it does."""
    measured = {m.file.label: m.file for m in report.measurements}
    for quant in quants:
        if quant not in measured:
            return f"it lacks {quant} (suite {report.suite.name})"
        if (found := measured[quant].sha256) != (wanted := manifest.quants[quant].sha256):
            return f"{quant} was measured as another file, SHA-256 {found}, now {wanted} (suite {report.suite.name})"
    return ""


def _manifest_of_released_quants(manifest: Manifest, quants: Sequence[str], suite: str) -> Manifest:
    """The manifest of these files alone: other files made of the model stay private."""
    report = manifest.evaluations[suite]
    kept_labels = {"", *quants, report.baseline}
    measurements = tuple(m for m in report.measurements if m.file.label in kept_labels)
    return manifest.model_copy(update={
        "quants": {quant: manifest.quants[quant] for quant in quants},
        "stages": {label: s for label, s in manifest.stages.items() if stage_record_file(label, s) in kept_labels},
        "evaluations": {suite: report.model_copy(update={"measurements": measurements})},
        "contracts": {quant: found for quant, found in manifest.contracts.items() if quant in quants},
    })  # fmt: skip


def release_manifest(release: Release, parts: Mapping[str, tuple[PublishedFile, ...]]) -> Manifest:
    """The manifest without the paths of this machine, and with the parts that files are published in."""
    text = _release_json_without_paths(release.manifest.model_dump_json(), release)
    manifest = Manifest.model_validate_json(text)
    if not manifest.source.repo_id:  # a folder's title is its path
        manifest.source.title = Path(release.manifest.source.title).name
    for quant, files in parts.items():
        entries = [FileEntry(path=f.path, size_bytes=f.size_bytes, sha256=f.sha256) for f in files]
        manifest.quants[quant] = manifest.quants[quant].model_copy(update={"parts": entries})
    return with_release_use(manifest, release.folder, release.paths)


def _release_json_without_paths(text: str, release: Release) -> str:
    """The same JSON with names in place of the folders of this machine."""
    folders = sorted(_release_folders(release).items(), key=lambda item: -len(item[0]))  # one may be in another
    for path, name in folders:
        spellings = "|".join({re.escape(_released_text_in_json(path, ascii_only)) for ascii_only in (False, True)})
        pattern = rf"(?:(?<=file://)|(?<![\w./~-]))(?:{spellings})(?![\w.-])"
        text = re.sub(pattern, _released_text_in_json(name, ascii_only=True).replace("\\", r"\\"), text)
    return text


def _released_text_in_json(text: str, ascii_only: bool) -> str:
    return json.dumps(text, ensure_ascii=ascii_only)[1:-1]


def _release_folders(release: Release) -> dict[str, str]:
    """The folders that a record may name, and the names that replace them."""
    source = release.manifest.source
    named = [(release.folder, "artifacts"), (release.folder.parents[2], "store"), (REPO_DIR, "quantyard")]
    named += [(home, "~")] if (home := home_folder()) else []
    if not source.repo_id:  # a local source's title is its path
        path = Path(source.title)
        named.append((path, path.name) if source.kind == "huggingface" else (path.parent, "source"))
    every = [(path, name) for known, name in named for path in (known, known.resolve())]
    return {str(path): name for path, name in every if path != path.parent}  # "/" is part of every path


def whole_release_file(release: Release, quant: str) -> PublishedFile:
    """The model in one file."""
    record = release.manifest.quants[quant]
    return kept_release_file(record.file, release.paths[quant], record.sha256)


def release_report_files(release: Release) -> Iterator[PublishedFile]:
    """The report, its plots and lm-eval's results; empty if the model folder no longer has them."""
    folder = release.folder / plan_suite_folder(release.suite)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "report.json":  # the manifest holds it
            yield kept_release_file(path.relative_to(release.folder).as_posix(), path, file_sha256(path))
    yield from _released_lm_eval_results(release)


def _released_lm_eval_results(release: Release) -> Iterator[PublishedFile]:
    tasks = [entry.model_dump(mode="json") for entry in release.report.suite.tasks]
    for label, record in release.manifest.stages.items():
        asked = record.request
        if asked.get("stage") != "evaluate" or asked.get("tasks") != tasks:  # it may be of another suite
            continue
        folder = stored_stage_folder(release.folder, label, record.key) / "files"
        wanted = [entry for entry in record.outputs if Path(entry.path).name.startswith("results_")]
        for entry in (entry for entry in wanted if (folder / entry.path).is_file()):
            task, file = Path(entry.path).parts[0], stage_record_file(label, record)
            name = f"{plan_suite_folder(release.suite)}/lm-eval/{file}/{task}.json"
            yield made_release_file(
                name, _release_json_without_paths((folder / entry.path).read_text(errors="replace"), release)
            )


def release_legal_files(release: Release, source: Source) -> tuple[PublishedFile, ...]:
    """The licence texts of the source; empty if its folder is not here. Links of a local source were resolved when
    it was read.
    """
    names = source_licence_files(entry.path for entry in source.files)
    if source.local is not None:
        places = {name: source.local.place_of(name) for name in names}
    else:
        fetched = release.manifest.stages.get("fetch")
        folder = stored_stage_folder(release.folder, "fetch", fetched.key) / "files" if fetched else None
        places = {name: folder / name for name in names if folder is not None}
    return tuple(
        kept_release_file(name, place, file_sha256(place)) for name, place in places.items() if place.is_file()
    )


def keep_release_gate(store: ModelStore, judged: Manifest) -> None:
    """Record the gate's findings and the stated licence in the store's manifest."""
    path = store.folder / "manifest.json"
    with changing_manifest(path):
        manifest = read_manifest(path)
        assert manifest is not None, "a release was read from it"
        if (manifest.gate, manifest.stated_license) != (judged.gate, judged.stated_license):
            manifest.gate, manifest.stated_license = judged.gate, judged.stated_license
            write_manifest(path, manifest)
