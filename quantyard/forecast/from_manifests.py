"""Reads past times from the manifests of a store: of a store that is older than its record of times, or was copied.

Left out is what manifests cannot tell: the times of stages that ran at the same time or in shards, and of shared runs
of which a file is no longer on record.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from quantyard.forecast.architecture import work_of_architectures
from quantyard.forecast.samples import (
    ForecastBook,
    ManifestSamples,
    TimingSample,
    read_forecast_book,
    write_forecast_book,
)
from quantyard.forecast.work import forecast_threads, forecast_work
from quantyard.plan.stages import SHARED_STAGES
from quantyard.protocol.facts import ArchitectureFacts, Facts
from quantyard.protocol.measuring_facts import EvaluateFacts

_ENGINE_S: Final = {"docker": 0.9, "local": 0.3}  # that the engine adds to the time of a stage
Record = Mapping[str, Any]


def known_forecast_times(artifacts: Path) -> ForecastBook:
    """All past times that this store knows; a manifest is read again only if it has changed."""
    book = read_forecast_book(artifacts)
    if update_forecast_book(book, artifacts):
        write_forecast_book(artifacts, book)
    return book


def update_forecast_book(book: ForecastBook, artifacts: Path) -> bool:
    """Update the book from the manifests of the store. Returns whether that changed it."""
    before = dict(book.manifests)
    for path in sorted(artifacts.glob("*/*/*/manifest.json")):
        name, stat = path.relative_to(artifacts).as_posix(), path.stat()
        mark = f"{stat.st_size}|{stat.st_mtime_ns}"
        if name not in before or before[name].mark != mark:
            book.manifests[name] = ManifestSamples(mark=mark, samples=tuple(_samples_of(path)))
    return book.manifests != before


def _samples_of(path: Path) -> Iterator[TimingSample]:
    """A sample for each record that can be read: the store may be older than this code, or damaged."""
    try:
        manifest = json.loads(path.read_bytes())
        records = dict(manifest["stages"])
        n_params, names = _n_params_of_timed_model(manifest), _architectures_of_timed_model(manifest)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return
    for members in _timed_runs(records):
        for record in members:
            try:
                if n_params and not record.get("shard_nodes") and not _is_timing_overlapped(record, records):
                    found = _timing_samples_of_record(record, members, n_params)
                    yield from (_sample_of_architectures(sample, names) for sample in found)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue


def _architectures_of_timed_model(manifest: Record) -> list[str]:
    """What the stages of a model call its architecture."""
    found = (ArchitectureFacts.read(record["facts"]) for record in manifest["stages"].values())
    return [facts.architecture for facts in found if facts.architecture]


def _sample_of_architectures(sample: TimingSample, names: Sequence[str]) -> TimingSample:
    return sample.model_copy(update={"architecture": work_of_architectures(sample.work, names).architecture})


def _n_params_of_timed_model(manifest: Record) -> int:
    counted = (Facts.read(record["facts"]).n_params for record in manifest["stages"].values())
    return next((n for n in counted if n is not None), sum(manifest["source"]["dtypes"].values()))


def _timed_runs(records: Mapping[str, Record]) -> list[list[Record]]:
    """The records, grouped by run: the steps of a shared run all have the same share of its time."""
    def run_of(record: Record) -> tuple[str, float]:
        return str(record["request"]["stage"]), float(record["duration_s"])

    return [list(group) for _, group in groupby(sorted(records.values(), key=run_of), run_of)]


def _is_timing_overlapped(record: Record, records: Mapping[str, Record]) -> bool:
    """Whether another stage ran during a tenth of its time or more."""
    if record["request"]["stage"] in SHARED_STAGES:
        return False
    began, ended = _timed_interval(record)
    others = [_timed_interval(other) for other in records.values() if other is not record]
    return any(min(ended, end) - max(began, begin) > 0.1 * (ended - began) for begin, end in others)


def _timed_interval(record: Record) -> tuple[float, float]:
    ended = datetime.fromisoformat(record["finished_at"]).timestamp()
    return ended - float(record["duration_s"]), ended


def _timing_samples_of_record(record: Record, members: Sequence[Record], n_params: int) -> Iterator[TimingSample]:
    request, engine = record["request"], str(record["ran_by"]["engine"])
    together = len(members) if request["stage"] in SHARED_STAGES else 1
    alone = all(member["request"].get("baseline_file") for member in members)
    n_questions = EvaluateFacts.read(record["facts"]).n_questions if request["stage"] == "evaluate" else 0
    work = forecast_work(request, n_params, together, with_baseline=alone, n_questions=n_questions)
    if work is None or not work.amount or record["duration_s"] <= 0:
        return
    seconds = record["duration_s"] + _ENGINE_S.get(engine, 0.0) / together
    yield TimingSample(
        key=record["key"], **asdict(work), seconds=seconds, engine=engine, threads=forecast_threads(request),
        cpu=record["cpu"], concurrent=False, at=record["finished_at"],
    )
