"""The record of past times: `artifacts/.rates.json`, with one sample for each stage that ran.

Written by runs, by `make rates` and from manifests (see from_manifests.py); read by time.py.
"""

import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quantyard.files.atomic import write_file_atomically
from quantyard.forecast.work import ForecastWork, Limits

BOOK: Final = ".rates.json"
_MOST_SAMPLES: Final = 2000
_MOST_RUNS: Final = 100


class _Record(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_by_name=True, validate_by_alias=True
    )


def _formerly_named_sample_field(name: str) -> Any:
    """A field that books of version 0.1.0 have under another name."""
    return Field(validation_alias=name)


class TimingSample(_Record):
    """One stage that ran: its work, and the seconds that it took (a concurrent stage: its share of them)."""

    key: str
    kind: str
    amount: float
    variant: str
    family: str
    seconds: float
    engine: str
    threads: int
    cpu: str
    concurrent: Annotated[bool, _formerly_named_sample_field("beside")]
    at: str  # UTC, ISO 8601
    dominant_type: Annotated[str, _formerly_named_sample_field("mostly")] = ""  # see `ForecastWork`
    asked: int = 0
    limits: Limits = ()
    n_together: int = 1
    architecture: str = ""
    memory: str = ""
    node_class: str = ""  # of a cluster's nodes; "": this machine or one with its CPU
    synthetic: Annotated[bool, _formerly_named_sample_field("stand_in")] = False  # of the random model of `make rates`

    @property
    def work(self) -> ForecastWork:
        """What took this time."""
        return ForecastWork(**{each.name: getattr(self, each.name) for each in fields(ForecastWork)})


class ManifestSamples(_Record):
    """The samples of one manifest, and the size and time that the file had."""

    mark: str
    samples: tuple[TimingSample, ...]


class RunRecord(_Record):
    """How exact the estimate of a run was: seconds of the stages with an estimate, and the median relative error."""

    at: str
    n_stages: int
    planned_s: float
    taken_s: float
    median_error: float


class ForecastBook(BaseModel):
    """All samples, and the record of estimates."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    version: Literal[2] = 2  # 1 measured evaluations and divergences in other units
    samples: list[TimingSample] = []
    manifests: dict[str, ManifestSamples] = {}
    runs: list[RunRecord] = []

    def replace_synthetic(self, found: Sequence[TimingSample]) -> None:
        """Replace the synthetic samples of the same CPUs and engines with these."""
        places = {(sample.cpu, sample.engine) for sample in found}
        self.samples = [s for s in self.samples if not (s.synthetic and (s.cpu, s.engine) in places)] + [*found]

    @property
    def all_samples(self) -> list[TimingSample]:
        """The samples of runs, and of manifests those that no run has recorded more exactly; the oldest first."""
        known = {sample.key for sample in self.samples}
        told = (s for found in self.manifests.values() for s in found.samples if s.key not in known)
        return sorted([*self.samples, *{sample.key: sample for sample in told}.values()], key=lambda s: s.at)

    def n_questions(self, variant: str, limits: Limits) -> int:
        """How many questions an evaluation will ask; 0 where that is not known.

        The limit holds for each task of a group; past runs tell how many tasks a group has.
        """
        seen = {s.limits: s.asked for s in self.all_samples if s.kind == "evaluate" and s.variant == variant}
        if limits in seen:
            return seen[limits]
        wanted, every = _sum_of_task_limits(limits), max((n for known, n in seen.items() if None in known), default=0)
        if wanted is None:
            return every
        times = max((n / total for known, n in seen.items() if (total := _sum_of_task_limits(known))), default=1.0)
        return round(min(wanted * max(1.0, times), every or math.inf))


def _sum_of_task_limits(limits: Limits) -> int | None:
    """The sum of the limits; None where a task has no limit."""
    given = [limit for limit in limits if limit is not None]
    return sum(given) if len(given) == len(limits) else None


def read_forecast_book(artifacts: Path) -> ForecastBook:
    """The book of this store; an empty one where the file is missing or unreadable."""
    try:
        return ForecastBook.model_validate_json((artifacts / BOOK).read_bytes())
    except (OSError, ValidationError):
        return ForecastBook()


def write_forecast_book(artifacts: Path, book: ForecastBook) -> None:
    """Write it. A failure is ignored: only estimates suffer."""
    book.samples, book.runs = book.samples[-_MOST_SAMPLES:], book.runs[-_MOST_RUNS:]
    try:
        artifacts.mkdir(parents=True, exist_ok=True)
        write_file_atomically(artifacts / BOOK, book.model_dump_json().encode())
    except OSError:
        return
