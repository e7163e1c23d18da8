"""Estimates how long a plan will take, from the times of the same stages on this machine, and records new times.

The estimate of a step is made from samples of similar steps in `artifacts/.rates.json` (see samples.py). Samples of
another CPU are not used, those of the random models of `make rates` are rough. A stage without samples is "not known
yet".
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Final

from quantyard.errors import BadRequest
from quantyard.execution.runner import PlanRunner
from quantyard.execution.scheduler import CONCURRENT_STAGES, Concurrency, Taken
from quantyard.forecast.architecture import most_over_forecast, work_of_source
from quantyard.forecast.expected_times import Forecast, StepTime
from quantyard.forecast.samples import ForecastBook, RunRecord, TimingSample, read_forecast_book, write_forecast_book
from quantyard.forecast.work import (
    FIXED_S,
    MERGE_S,
    ForecastWork,
    Request,
    forecast_least_squares,
    forecast_questions,
    forecast_start_and_slope,
    forecast_threads,
    forecast_timing_class,
    forecast_work,
    merge_work,
)
from quantyard.plan.stages import SHARED_STAGES
from quantyard.plan.steps import BuildPlan, Step
from quantyard.quants.catalog import find_quant

UNTIMED: Final = (  # by `make rates`
    "fetch", "datasets", "split", "contract", "dequantize", "lora", "rounding", "verify_foreign",
)  # fmt: skip
_RECENT: Final = 7  # of samples alike, how many the median is of
# A concurrent step's share of the time, relative to its time alone; until that is measured.
_CONCURRENT_SHARE: Final = 0.8


# ---- before: how long it will take -------------------------------------------------------------------


@dataclass(frozen=True)
class ForecastConditions:
    """Where and how the steps will run."""

    engine: str
    concurrency: Concurrency
    cpu: str
    node_class: str = ""  # of the nodes that the engine runs stages on; "": this machine

    def are_of(self, sample: TimingSample) -> bool:
        """Whether the sample was taken on such a machine."""
        return sample.node_class == self.node_class if self.node_class else sample.cpu == self.cpu


def forecast_conditions(runner: PlanRunner) -> ForecastConditions:
    """The conditions of a run."""
    capacity, concurrency = runner.engine.capacity(), runner.concurrency
    node_class = capacity.machine if concurrency.on_nodes else ""
    return ForecastConditions(runner.engine.name, concurrency, capacity.cpu, node_class)


def forecast_times(
    plan: BuildPlan, finished: Collection[str], book: ForecastBook, where: ForecastConditions
) -> Forecast:
    """The time of each step that is not finished."""
    samples = [sample for sample in book.all_samples if where.are_of(sample)]
    left = [step for step in plan.steps if step.label not in finished]
    works = forecast_works(plan, left, book, shares=not where.concurrency.on_nodes)
    concurrent = _forecast_concurrent_steps(left, where.concurrency)
    found = {
        step.label: _forecast_step_time(
            samples, works[step.label], where.engine, _forecast_threads(step), step.label in concurrent
        )
        for step in left
    }
    known = {label: time for label, time in found.items() if time is not None}
    unknown = [step for step in left if step.label not in known]
    timed = any(s.synthetic and s.engine == where.engine for s in samples)
    would_gain = not timed and any(step.row.name not in UNTIMED for step in unknown)
    return Forecast(known, {step.label: step.row.name for step in unknown}, would_gain)


def forecast_works(
    plan: BuildPlan, steps: Sequence[Step], book: ForecastBook, asked: Mapping[str, int] | None = None, *,
    shares: bool = True,
) -> dict[str, ForecastWork | None]:
    """The work of these steps; those of a shared run share the work on the baseline.

    Args:
        book: knows the number of questions.
        asked: the number of questions that were asked, by label, after a run.
        shares: whether steps that compare files with one baseline are one run; not on nodes.
    """
    works: dict[str, ForecastWork | None] = {}
    for step in steps:
        if step.keyed_by is not None:
            works[step.label] = merge_work(step.row.name)
            continue
        joined = [one for one in steps if shares and _is_read_together(one, step)]
        alone = all(getattr(one.request, "baseline_file", None) for one in joined)
        request, n = step.request.model_dump(mode="json"), max(1, len(joined))
        n_questions = (asked or {}).get(step.whole or step.label) or _forecast_n_questions(request, book)
        work = forecast_work(
            request, plan.source.n_params, n, with_baseline=alone, n_questions=n_questions,
            n_ctx_train=plan.source.trained_tokens,
        )
        if work is not None:
            typed = replace(work, dominant_type=_dominant_type_to_forecast(plan, work.family))
            work = work_of_source(typed, plan.source)
        works[step.label] = work
    return works


def _is_read_together(one: Step, other: Step) -> bool:
    """Whether two steps are one run, which decodes the baseline once: those of the same shard, too."""
    shards = [getattr(step.request, "shard", None) for step in (one, other)]
    return one.row.name == other.row.name in SHARED_STAGES and shards[0] == shards[1] and one.keyed_by is None


def _forecast_n_questions(request: Request, book: ForecastBook) -> int:
    return book.n_questions(*forecast_questions(request)) if request["stage"] == "evaluate" else 0


def _dominant_type_to_forecast(plan: BuildPlan, family: str) -> str:
    """The tensor type of most weights of this file; "" where it is not known."""
    name = family.partition("+")[0].removesuffix("-plain")
    try:
        return plan.source.main_type(
            next((t.quant for t in plan.targets if t.quant.name == name), None) or find_quant(name)
        )
    except BadRequest:
        return ""


def _forecast_threads(step: Step) -> int:
    return forecast_threads(step.request.model_dump(mode="json"))


def _forecast_concurrent_steps(steps: Sequence[Step], concurrency: Concurrency) -> set[str]:
    """The labels of the steps that will run at the same time: those of small files, if there are several."""
    small = [s for s in steps if s.row.name in CONCURRENT_STAGES and concurrency.allows(1, s.size_bytes, s.size_bytes)]
    files = {step.quant for step in small}
    return {step.label for step in small} if len(files) > 1 else set()


Test = Callable[[TimingSample], bool]


def _forecast_step_time(
    samples: Iterable[TimingSample], work: ForecastWork | None, engine: str, threads: int, concurrent: bool
) -> StepTime | None:
    if work is None or not work.amount:
        return None
    alike = _samples_of_likest_architecture(samples, work)
    start = _forecast_start_s([s for s in alike if s.engine == engine], concurrent)
    fixed_s = FIXED_S.get(work.kind, 0.0) if start is None else start
    for rough, test in _timing_sample_tests(work, engine, threads, concurrent):
        near = [sample for sample in alike if test(sample)]
        near = ([s for s in near if not s.synthetic] or near)[-_RECENT:]
        if near:
            at, slope = forecast_start_and_slope(
                [_whole_run_of_sample(s, concurrent) for s in near], fixed_s, is_measured=start is not None
            )
            share = at / work.n_together + slope * work.amount
            times = most_over_forecast(work, [sample.work for sample in near])
            return StepTime(share, rough or times > 1 or any(s.synthetic for s in near), times)
    return StepTime(MERGE_S, rough=True) if work == merge_work(work.variant) else None


def _samples_of_likest_architecture(samples: Iterable[TimingSample], work: ForecastWork) -> list[TimingSample]:
    """The samples of this kind and variant: of the same architecture, else of the same memory, else all."""
    alike = [s for s in samples if (s.kind, s.variant) == (work.kind, work.variant) and s.amount > 0]
    if not work.architecture:
        return alike
    own = [s for s in alike if s.architecture in ("", work.architecture)]
    return own or [s for s in alike if s.memory == work.memory != ""] or alike


def _timing_sample_tests(
    work: ForecastWork, engine: str, threads: int, concurrent: bool
) -> Iterator[tuple[bool, Test]]:
    """Which samples an estimate is made from, and whether it is rough: the first test that a sample passes is used."""
    def here(s: TimingSample) -> bool:
        return (s.engine, s.threads) == (engine, threads)

    def same(s: TimingSample) -> bool:
        """Whether it is the same quant, made of the same types."""
        known = s.dominant_type and work.dominant_type
        return s.family == work.family and (s.dominant_type == work.dominant_type or not known)

    def of_class(s: TimingSample) -> bool:
        return forecast_timing_class(s.work) == forecast_timing_class(work)

    def as_concurrent(s: TimingSample) -> bool:
        """Whether it ran concurrently, as this step will. Of synthetic samples both sizes are needed, so all count."""
        return s.synthetic or s.concurrent == concurrent

    yield False, lambda s: here(s) and same(s) and s.asked == work.asked and as_concurrent(s)
    yield False, lambda s: here(s) and same(s) and s.asked == work.asked
    yield True, lambda s: here(s) and same(s)
    yield True, lambda s: here(s) and of_class(s) and s.dominant_type == work.dominant_type
    yield True, lambda s: here(s) and of_class(s)
    yield True, lambda s: here(s) and as_concurrent(s)
    yield True, here
    yield True, lambda s: s.engine == engine
    yield True, lambda _: True


def _forecast_start_s(samples: Sequence[TimingSample], concurrent: bool) -> float | None:
    """The seconds that do not grow with the model, where one quant was made or measured in sizes far apart."""
    families = {sample.family for sample in samples}
    each = ([_whole_run_of_sample(s, concurrent) for s in samples if s.family == family] for family in families)
    starts = [found[0] for points in each if (found := forecast_least_squares(points))]
    return median(starts) if starts else None


def _whole_run_of_sample(sample: TimingSample, concurrent: bool) -> tuple[float, float]:
    """Work and seconds of the whole run that the sample is part of, converted to running concurrently or alone."""
    factor = 1.0 if sample.concurrent == concurrent else _CONCURRENT_SHARE if concurrent else 1 / _CONCURRENT_SHARE
    return sample.amount * sample.n_together, sample.seconds * sample.n_together * factor


# ---- after: what it took -----------------------------------------------------------------------------


@dataclass(frozen=True)
class ForecastComparison:
    """Estimate and run: seconds of all stages that had an estimate and ran, and the relative error of each by label."""

    planned_s: float
    taken_s: float
    errors: Mapping[str, float]

    @property
    def median_error(self) -> float:
        """The median of the relative errors; 0.1 for 10 % too much or too little."""
        return median(abs(error) for error in self.errors.values())


def compare_forecast(planned: Forecast, taken: Sequence[Taken]) -> ForecastComparison | None:
    """The estimates against the times; None where no stage has both."""
    both = [(planned.steps[t.label].seconds, t) for t in taken if t.label in planned.steps and t.seconds > 0]
    if not both:
        return None
    errors = {t.label: seconds / t.seconds - 1 for seconds, t in both}
    return ForecastComparison(sum(seconds for seconds, _ in both), sum(t.seconds for _, t in both), errors)


def record_forecast_times(
    artifacts: Path, plan: BuildPlan, planned: Forecast, taken: Sequence[Taken], where: ForecastConditions
) -> ForecastComparison | None:
    """Compare times with estimates, and record both. The book is read again: another run may have changed it."""
    book, compared = read_forecast_book(artifacts), compare_forecast(planned, taken)
    if taken:
        learn_forecast_times(book, plan, taken, where, compared)
        write_forecast_book(artifacts, book)
    return compared


def learn_forecast_times(
    book: ForecastBook,
    plan: BuildPlan,
    taken: Sequence[Taken],
    where: ForecastConditions,
    compared: ForecastComparison | None = None,
    *,
    synthetic: bool = False,
) -> None:
    """Add the times to the book, and how exact their estimates were. `synthetic`: the model was a random one."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    ran, asked = {t.label: t for t in taken}, {t.label: t.n_questions for t in taken}
    joined = [step for step in plan.steps if step.label in ran and ran[step.label].n_together > 1]
    shares = not where.concurrency.on_nodes
    for step in (step for step in plan.steps if step.label in ran):
        together = joined if step in joined else [step]
        work = forecast_works(plan, together, book, asked, shares=shares)[step.label]
        if work is not None and work.amount > 0:
            book.samples.append(_timing_sample(work, ran[step.label], _forecast_threads(step), where, at, synthetic))
    if compared is not None:
        book.runs.append(RunRecord(
            at=at, n_stages=len(compared.errors), planned_s=compared.planned_s, taken_s=compared.taken_s,
            median_error=compared.median_error,
        ))  # fmt: skip


def _timing_sample(
    work: ForecastWork, taken: Taken, threads: int, where: ForecastConditions, at: str, synthetic: bool
) -> TimingSample:
    return TimingSample(
        key=taken.key, **asdict(work), seconds=taken.seconds, engine=where.engine, threads=threads,
        cpu=taken.cpu or where.cpu,
        concurrent=taken.concurrent, at=at, synthetic=synthetic, node_class=where.node_class,
    )
