"""How long a plan will take: from what is known, honestly, and better after each run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from quantyard.cli.json_outputs.building import plan_output
from quantyard.cli.render import build as summary
from quantyard.execution.scheduler import Concurrency, Taken
from quantyard.forecast.cost import forecast_cost
from quantyard.forecast.from_manifests import known_forecast_times, update_forecast_book
from quantyard.forecast.samples import BOOK, ForecastBook, TimingSample, read_forecast_book
from quantyard.forecast.time import (
    Forecast,
    ForecastConditions,
    StepTime,
    compare_forecast,
    forecast_times,
    forecast_works,
    learn_forecast_times,
    record_forecast_times,
)
from quantyard.forecast.work import (
    ForecastWork,
    forecast_questions,
    forecast_start_and_slope,
    forecast_timing_class,
    forecast_work,
)
from quantyard.plan.steps import BuildPlan, Step
from quantyard.protocol.builder import ConvertRequest, QuantizeRequest, VerifyRequest
from quantyard.protocol.evaluation import (
    DivergenceRequest,
    DivergenceSettings,
    DomainSettings,
    DomainsRequest,
    EvaluateRequest,
    SpeedRequest,
)
from quantyard.quants.file_size import TensorShape
from quantyard.sources.resolve import Source
from quantyard.workflows.results import Planned
from tests.manifests import manifest_of
from tests.unit.conftest import MakeMeasured, Notes
from tests.unit.fake_engine import FakeEngine

CPU = "x86_64 a CPU"
WIDE = ForecastConditions("docker", Concurrency(2, 10**12), CPU)
ALONE = ForecastConditions("docker", Concurrency(1, 10**12), CPU)


def _sample(kind: str, seconds: float, amount: float = 1000.0, **other: object) -> TimingSample:
    values: dict[str, object] = {
        "key": f"{kind} {seconds} {amount} {other}", "kind": kind, "amount": amount, "variant": "", "family": "",
        "seconds": seconds, "engine": "docker", "threads": 0, "cpu": CPU, "concurrent": False, "at": "2026-11-22",
    }  # fmt: skip
    return TimingSample.model_validate(values | other)


@pytest.fixture
def plan(local_source: Source, measured: MakeMeasured) -> BuildPlan:
    """Of a model of 1,000 weights: convert, two quants, and all that measures them."""
    return measured(local_source, FakeEngine(), "Q4_K_M,Q8_0").plan


# ---- what is foreseen --------------------------------------------------------------------------------


def test_what_never_ran_on_this_machine_is_not_known_yet(plan: BuildPlan) -> None:
    found = forecast_times(plan, (), ForecastBook(), ALONE)
    assert found.steps == {} and list(found.unknown) == [step.label for step in plan.steps]
    elsewhere = ForecastBook(samples=[_sample("convert", 10, cpu="another CPU")])
    assert "convert" in forecast_times(plan, (), elsewhere, ALONE).unknown


def test_a_stage_is_foreseen_to_take_the_median_of_what_it_took(plan: BuildPlan) -> None:
    book = ForecastBook(samples=[_sample("convert", seconds) for seconds in (90, 10, 12, 11, 13, 50, 12, 11)])
    assert forecast_times(plan, (), book, ALONE).steps["convert"] == StepTime(12, rough=False), (
        "the oldest is forgotten"
    )
    assert "convert" not in forecast_times(plan, {"convert"}, book, ALONE).steps


def test_another_type_threads_or_engine_is_a_rough_guess_and_its_own_are_preferred(plan: BuildPlan) -> None:
    book = ForecastBook(
        samples=[_sample("quantize", 8, family="Q4_K_M"), _sample("quantize", 2, family="Q6_K", threads=1)]
    )
    found = forecast_times(plan, (), book, ALONE).steps
    assert found["quantize Q4_K_M"] == StepTime(8, rough=False)
    assert found["quantize Q8_0"] == StepTime(8, rough=True), "not the one of another number of threads"
    local = ForecastBook(samples=[_sample("quantize", 5, family="Q8_0", engine="local")])
    assert forecast_times(plan, (), local, ALONE).steps["quantize Q8_0"] == StepTime(5, rough=True)


def test_a_type_of_the_same_kind_is_a_better_guess_than_any_other(plan: BuildPlan) -> None:
    times = {"Q8_0": 2, "Q6_K": 8, "IQ2_XS": 80}
    book = ForecastBook(samples=[_sample("quantize", seconds, family=family) for family, seconds in times.items()])
    found = forecast_times(plan, (), book, ALONE).steps
    assert found["quantize Q4_K_M"] == StepTime(8, rough=True) and found["quantize Q8_0"] == StepTime(2, rough=False)
    names = ("Q8_0", "Q5_0", "Q4_K_M", "IQ4_NL", "IQ2_XS+imatrix", "BF16", "F16", "")
    assert [forecast_timing_class(ForecastWork("quantize", 1, family=name)) for name in names] == [
        "Q8+", "old+", "_K+", "IQ4+", "IQ+imatrix", "BF+", "F+", "",
    ]  # fmt: skip
    fallback, rounded = ("Q4_K_M+imatrix", "Q5_0"), ("Q6_K+imatrix", "Q8_0")
    classes = [
        forecast_timing_class(ForecastWork("quantize", 1, family=f, dominant_type=t)) for f, t in (fallback, rounded)
    ]
    assert classes == ["old+imatrix", "Q8+"], "rows that Q4_K does not fit; a type that no matrix changes"


def test_side_by_side_a_step_takes_its_share_which_is_learned_too(plan: BuildPlan) -> None:
    alone = [_sample("quantize", 10, family="Q4_K_M")]
    assert forecast_times(plan, (), ForecastBook(samples=alone), WIDE).steps[
        "quantize Q4_K_M"
    ].seconds == pytest.approx(8)
    shared = [*alone, _sample("quantize", 6, family="Q4_K_M", concurrent=True)]
    assert forecast_times(plan, (), ForecastBook(samples=shared), WIDE).steps[
        "quantize Q4_K_M"
    ].seconds == pytest.approx(6)
    last = {step.label for step in plan.steps} - {"quantize Q4_K_M", "verify Q4_K_M"}
    assert forecast_times(plan, last, ForecastBook(samples=shared), WIDE).steps[
        "quantize Q4_K_M"
    ].seconds == pytest.approx(10)


def test_sizes_that_differ_give_a_line_and_one_size_a_start_that_does_not_grow() -> None:
    start, slope = forecast_start_and_slope([(100, 12), (1000, 30), (2000, 50)], fixed_s=1)
    assert (start, slope) == (pytest.approx(10), pytest.approx(0.02))
    assert forecast_start_and_slope([(1000, 3), (1000, 5), (1000, 4)], fixed_s=1) == (1, pytest.approx(0.003))
    found = forecast_start_and_slope([(1000, 0.5)], fixed_s=1)
    assert found == (0.25, pytest.approx(0.00025)), "never more than half of what was seen"
    found = forecast_start_and_slope([(100, 50), (1000, 10)], fixed_s=1)
    assert found == (9.5, pytest.approx(0.5 / 1000)), "quicker because larger is chance: nearly all is the start"
    assert forecast_start_and_slope([(100, 1), (1000, 30)], fixed_s=1) == (0, 30 / 1000), (
        "no stage starts before it began"
    )


def _asked(plan: BuildPlan, limit: int | None) -> BuildPlan:
    """The plan with another limit on its one task."""
    def changed(step: Step) -> Step:
        if not isinstance(step.request, EvaluateRequest):
            return step
        tasks = tuple(entry.model_copy(update={"limit": limit}) for entry in step.request.tasks)
        return replace(step, request=step.request.model_copy(update={"tasks": tasks}))

    return replace(plan, steps=tuple(changed(step) for step in plan.steps))


def test_a_suite_of_other_tasks_tells_nothing_of_this_one(plan: BuildPlan) -> None:
    book = ForecastBook()
    learn_forecast_times(book, plan, [Taken("evaluate BF16", "k", 60.0, n_questions=200)], ALONE)
    found = forecast_times(plan, (), book, ALONE)
    assert found.steps["evaluate BF16"] == StepTime(60, rough=False) and found.steps["evaluate Q8_0"].rough
    other = [sample.model_copy(update={"variant": "x"}) for sample in book.samples]
    assert "evaluate BF16" in forecast_times(plan, (), ForecastBook(samples=other), ALONE).unknown


def test_other_limits_on_the_same_tasks_are_a_rough_guess_by_the_number_of_questions(plan: BuildPlan) -> None:
    book = ForecastBook()
    learn_forecast_times(book, plan, [Taken("evaluate BF16", "k1", 65.0, n_questions=200)], ALONE)
    few = forecast_times(_asked(plan, 20), (), book, ALONE).steps["evaluate BF16"]
    each_s = (65 - 6) / (200 + 95)
    assert few == StepTime(pytest.approx(6 + each_s * (20 + 95)), rough=True), "the start and the self-check stay"
    assert "evaluate BF16" in forecast_times(_asked(plan, None), (), book, ALONE).unknown, (
        "how many all are, nobody knows"
    )
    learn_forecast_times(book, _asked(plan, None), [Taken("evaluate BF16", "k2", 206.0, n_questions=1000)], ALONE)
    assert book.n_questions(*forecast_questions(_evaluation(_asked(plan, 5000)))) == 1000, "more than there are"
    assert forecast_times(_asked(plan, None), (), book, ALONE).steps["evaluate BF16"].seconds == pytest.approx(206)


def _evaluation(plan: BuildPlan) -> dict[str, object]:
    return next(s.request for s in plan.steps if s.label == "evaluate BF16").model_dump(mode="json")


def test_each_task_of_a_group_is_asked_as_many_questions_as_the_limit_says(plan: BuildPlan) -> None:
    book = ForecastBook()
    learn_forecast_times(book, _asked(plan, 10), [Taken("evaluate BF16", "k", 60.0, n_questions=570)], ALONE)
    assert book.n_questions(*forecast_questions(_evaluation(_asked(plan, 20)))) == 1140


def test_rows_that_a_type_does_not_fit_are_timed_by_the_type_that_takes_its_place(plan: BuildPlan) -> None:
    odd, even = (_shaped(plan, width) for width in (320, 512))
    book = ForecastBook()
    learn_forecast_times(book, even, [Taken("quantize Q4_K_M", "k1", 8.0), Taken("quantize Q8_0", "k2", 2.0)], ALONE)
    assert [sample.dominant_type for sample in book.samples] == ["Q4_K", "Q8_0"]
    assert forecast_times(even, (), book, ALONE).steps["quantize Q4_K_M"] == StepTime(8, rough=False)
    assert forecast_times(odd, (), book, ALONE).steps["quantize Q4_K_M"].rough, "it is mostly Q5_0"
    learn_forecast_times(book, odd, [Taken("quantize Q4_K_M", "k3", 3.0)], ALONE)
    assert forecast_times(odd, (), book, ALONE).steps["quantize Q4_K_M"] == StepTime(3, rough=False)


def _shaped(plan: BuildPlan, width: int) -> BuildPlan:
    """The plan of a model with rows of this length."""
    tensors = (TensorShape("model.layers.0.mlp.up_proj.weight", (64, width), "BF16"),)
    return replace(plan, source=replace(plan.source, tensors=tensors))


# ---- a random model in place of real ones ------------------------------------------------------------


def test_a_real_run_counts_more_than_the_random_model_which_is_always_rough(plan: BuildPlan) -> None:
    synthetic = _sample("convert", 20, synthetic=True)
    assert forecast_times(plan, (), ForecastBook(samples=[synthetic]), ALONE).steps["convert"] == StepTime(
        20, rough=True
    )
    both = ForecastBook(samples=[_sample("convert", 10), synthetic])
    assert forecast_times(plan, (), both, ALONE).steps["convert"] == StepTime(10, rough=False)


def test_a_start_that_was_measured_counts_more_than_a_guess(plan: BuildPlan) -> None:
    sizes = [_sample("speed", 9 + 0.001 * n, n, family="Q8_0", synthetic=True) for n in (1000, 9000)]
    seen = _sample("speed", 10, 100_000, family="BF16", synthetic=True)
    amount = _work(plan, "speed BF16").amount
    found = forecast_times(plan, (), ForecastBook(samples=[*sizes, seen]), ALONE).steps["speed BF16"]
    assert found.seconds == pytest.approx(9 + amount / 100_000)


def test_the_start_of_a_run_is_shared_by_its_steps_however_many_they_are(plan: BuildPlan) -> None:
    """A run takes 6 s and 1 s for each 1,000 of work: of two steps before, of three now."""
    runs = {1000.0: 2, 9000.0: 2}  # work of one step, and how many steps
    samples = [
        _sample("divergence", 6 / n + amount / 1000, amount, variant=_divergence(plan).variant, n_together=n)
        for amount, n in runs.items()
    ]
    labels = [f"divergence {name}" for name in ("BF16", "Q4_K_M", "Q8_0")]
    found = forecast_times(plan, (), ForecastBook(samples=samples), ALONE).steps
    steps = [step for step in plan.steps if step.label in labels]
    work = sum(of.amount for of in forecast_works(plan, steps, ForecastBook()).values() if of)
    assert sum(found[label].seconds for label in labels) == pytest.approx(6 + work / 1000)


def _divergence(plan: BuildPlan) -> ForecastWork:
    found = forecast_works(plan, [step for step in plan.steps if step.row.name == "divergence"], ForecastBook())[
        "divergence Q8_0"
    ]
    assert found is not None
    return found


def test_the_random_models_tell_by_both_sizes_even_if_one_ran_side_by_side(plan: BuildPlan) -> None:
    small = _sample("verify", 1.6, 100, synthetic=True)
    large = _sample("verify", 2.4, 900, synthetic=True, concurrent=True)
    found = forecast_times(plan, (), ForecastBook(samples=[small, large]), ALONE).steps["verify Q8_0"]
    alone = large.seconds / 0.8
    assert found.seconds == pytest.approx(1.6 + (alone - 1.6) / 800 * (_work(plan, "verify Q8_0").amount - 100))


def _work(plan: BuildPlan, label: str) -> ForecastWork:
    work = forecast_work(next(s.request for s in plan.steps if s.label == label).model_dump(mode="json"), 1000)
    assert work is not None
    return work


def test_a_plan_says_make_rates_where_that_would_help_and_only_there(plan: BuildPlan) -> None:
    assert forecast_times(plan, (), ForecastBook(), ALONE).would_gain
    timed = ForecastBook(samples=[_sample("convert", 20, synthetic=True)])
    assert not forecast_times(plan, (), timed, ALONE).would_gain, "it has been typed"
    assert forecast_times(plan, (), timed, replace(ALONE, engine="local")).would_gain
    done = {step.label for step in plan.steps if step.label != "datasets"}
    assert not forecast_times(plan, done, ForecastBook(), ALONE).would_gain, "it times no network"


# ---- the work ----------------------------------------------------------------------------------------


def test_a_divergence_decodes_the_baseline_once_for_all_that_are_read_in_step() -> None:
    settings = DivergenceSettings(n_chunks=8, n_ctx=512, weights_chunks=0)
    baseline = DivergenceRequest(label="BF16", settings=settings).model_dump(mode="json")
    quant = DivergenceRequest(label="Q8_0", baseline_file="model.gguf", settings=settings).model_dump(mode="json")

    def passes(*args: object, **kwargs: bool) -> float:
        work = forecast_work(*args, **kwargs)  # type: ignore[arg-type]
        assert work is not None
        return work.amount / (10 * 8 * 512)

    assert passes(baseline, 10) == 1 and passes(quant, 10) == 2
    assert passes(quant, 10, 7, with_baseline=False) == 1, "the baseline is a member itself"
    assert passes(quant, 10, 4, with_baseline=True) == 1.25
    copied = settings.model_copy(update={"weights_chunks": 2})
    copies = DivergenceRequest(label="Q8_0", baseline_file="model.gguf", settings=copied).model_dump(mode="json")
    assert passes(copies, 10) == 2 + 2 * 2 / 8, "two of eight chunks again, of both files"
    assert passes(copies, 10, 2, with_baseline=False) == 1 + 1.5 * 2 / 8
    rolling = settings.model_copy(update={"rolling": True})
    again = DivergenceRequest(label="BF16", settings=rolling).model_dump(mode="json")
    assert passes(again, 10) == 2, "lm-eval's windows are read for themselves"
    del baseline["settings"]["rolling"]
    assert passes(baseline, 10) == 2, "a record of the time when they always were"


@pytest.mark.parametrize(("names", "trained", "tokens"), [
    ((), None, 14 * 4000 + 3 * 16_384), ((), 8192, 14 * 4000 + 3 * 8192), ((), 131_072, 14 * 4000 + 3 * 16_384),
    (("code", "long"), 8192, 4000 + 3 * 8192), (("code", "prose"), 8192, 8000),
])  # fmt: skip
def test_long_documents_are_counted_to_the_trained_context(
    names: tuple[str, ...], trained: int | None, tokens: int
) -> None:
    settings = DomainSettings(names=names, long_documents=3)
    request = DomainsRequest(label="BF16", settings=settings).model_dump(mode="json")
    work = forecast_work(request, 10, with_baseline=False, n_ctx_train=trained)
    assert work is not None and work.amount == 10 * tokens


def test_the_work_grows_with_the_model_and_the_type_is_its_family() -> None:
    quantize = QuantizeRequest(quant="Q4_K_M", ftype=15)
    given = quantize.model_copy(update={"imatrix_file": "imatrix.gguf"})
    for request, family in ((quantize, "Q4_K_M"), (given, "Q4_K_M+imatrix"), (ConvertRequest(name="x"), ""),
                            (VerifyRequest(quant="Q8_0"), "")):  # fmt: skip
        small, large = (forecast_work(request.model_dump(mode="json"), n) for n in (10, 1000))
        assert small is not None and large is not None
        assert large.amount == 100 * small.amount and large.family == family
    speed = SpeedRequest(label="Q8_0", machine="m").model_dump(mode="json")
    assert forecast_work(speed, 10) == replace(forecast_work(speed, 1), amount=10 * (6 * 512 + 4 * (5 * 64 + 4)))  # type: ignore[type-var]
    assert forecast_work({"stage": "lora"}, 10) is None


# ---- what is learned ---------------------------------------------------------------------------------


def test_a_run_is_held_against_its_plan_and_the_next_plan_knows_more(
    plan: BuildPlan, tmp_path: Path
) -> None:
    taken = [Taken("convert", "k1", 10.0), Taken("quantize Q4_K_M", "k2", 4.0, concurrent=True)]
    planned = Forecast({"convert": StepTime(12, False), "quantize Q4_K_M": StepTime(3, True)}, ("report",))
    compared = record_forecast_times(tmp_path, plan, planned, taken, WIDE)
    assert compared is not None
    assert compared.errors == {"convert": pytest.approx(0.2), "quantize Q4_K_M": -0.25}
    assert (compared.planned_s, compared.taken_s, compared.median_error) == (15, 14, pytest.approx(0.225))
    book = read_forecast_book(tmp_path)
    assert [run.n_stages for run in book.runs] == [2]
    again = forecast_times(plan, (), book, WIDE).steps
    assert again["convert"].seconds == pytest.approx(10) and again["quantize Q4_K_M"].seconds == pytest.approx(4)


def test_what_was_not_foreseen_is_not_compared_but_learned(plan: BuildPlan, tmp_path: Path) -> None:
    assert compare_forecast(Forecast(), [Taken("convert", "k", 3.0)]) is None
    assert record_forecast_times(tmp_path, plan, Forecast(), [Taken("convert", "k", 3.0)], ALONE) is None
    assert read_forecast_book(tmp_path).samples[0].seconds == 3.0


def test_divergences_of_one_run_are_learned_as_its_shares(plan: BuildPlan, tmp_path: Path) -> None:
    labels = ["divergence BF16", "divergence Q4_K_M", "divergence Q8_0"]
    record_forecast_times(
        tmp_path, plan, Forecast(), [Taken(label, label, 20.0, n_together=3) for label in labels], ALONE
    )
    found = forecast_times(plan, (), read_forecast_book(tmp_path), ALONE).steps
    assert sum(found[label].seconds for label in labels) == pytest.approx(60)
    alone = {step.label for step in plan.steps} - {"divergence Q8_0"}
    assert found["divergence Q8_0"].seconds < forecast_times(plan, alone, read_forecast_book(tmp_path), ALONE).steps[
        "divergence Q8_0"].seconds, "alone it decodes the baseline as well"  # fmt: skip


def test_a_book_that_cannot_be_read_or_written_stops_nothing(plan: BuildPlan, tmp_path: Path) -> None:
    (tmp_path / BOOK).write_text("{damaged")
    assert read_forecast_book(tmp_path) == ForecastBook()
    (tmp_path / "file").write_text("")
    record_forecast_times(tmp_path / "file", plan, Forecast(), [Taken("convert", "k", 3.0)], ALONE)


@pytest.mark.commands
def test_a_builder_tells_how_long_each_step_took_but_not_of_what_it_resumed(
    local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    builder = measured(local_source, FakeEngine(), "Q4_K_M,Q8_0")
    builder.run(notes)
    assert sorted(taken.label for taken in builder.taken) == sorted(step.label for step in builder.plan.steps)
    assert {taken.n_together for taken in builder.taken if taken.label.startswith("divergence")} == {3}
    other = measured(local_source, FakeEngine(image="image-2"), "Q4_K_M")
    other.find_finished()
    step = next(s for s in other.plan.steps if s.label == "evaluate BF16")
    _leave_partly(other.store.folder, local_source, measured, step)
    resumed = measured(local_source, FakeEngine(image="image-2"), "Q4_K_M")
    resumed.run(notes)
    assert "evaluate BF16" in resumed.ran
    assert "evaluate BF16" not in {taken.label for taken in resumed.taken}


def _leave_partly(folder: Path, source: Source, measured: MakeMeasured, step: Step) -> None:
    """What a run leaves that is stopped in this step, after the step had written something."""
    def stops(_spec: object, space: object) -> object:
        files = space.out_dir / "files"  # type: ignore[attr-defined]
        files.mkdir(exist_ok=True)
        (files / "part").write_text("some of it")
        raise KeyboardInterrupt

    engine = FakeEngine(image="image-2", behaviours={step.label: stops})  # type: ignore[dict-item]
    with pytest.raises(KeyboardInterrupt):
        measured(source, engine, "Q4_K_M").run(Notes())
    assert list(folder.rglob("part"))


# ---- what manifests tell -----------------------------------------------------------------------------


def _keep(root: Path, stages: dict[str, dict[str, object]], model: str = "m") -> None:
    """A store with one manifest; each stage is changed from a quantize of Q4_K_M that took 12.5 s."""
    manifest = manifest_of().model_dump(mode="json")
    plain = manifest["stages"]["quantize Q4_K_M"]
    plain["request"] = QuantizeRequest(quant="Q4_K_M", ftype=15).model_dump(mode="json")
    plain["facts"] = {"n_params": 1000}
    manifest["stages"] = {label: plain | changed for label, changed in stages.items()}
    folder = root / "org" / model / "abc"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_manifests_are_learned_from_once_and_again_when_they_change(tmp_path: Path) -> None:
    _keep(tmp_path, {"quantize Q4_K_M": {"key": "1" * 64}})
    book = known_forecast_times(tmp_path)
    (sample,) = book.all_samples
    assert (sample.kind, sample.family, sample.amount) == ("quantize", "Q4_K_M", 1000)
    assert sample.seconds == pytest.approx(12.5 + 0.9), "and its container"
    assert not update_forecast_book(read_forecast_book(tmp_path), tmp_path), "the file says it already"
    _keep(tmp_path, {"quantize Q4_K_M": {"key": "2" * 64, "duration_s": 20.0}})
    assert [round(s.seconds, 1) for s in known_forecast_times(tmp_path).all_samples] == [20.9]


def test_what_a_run_has_timed_counts_more_than_its_record(tmp_path: Path) -> None:
    _keep(tmp_path, {"quantize Q4_K_M": {"key": "1" * 64}})
    book = known_forecast_times(tmp_path)
    book.samples.append(_sample("quantize", 7.0, key="1" * 64))
    assert [sample.seconds for sample in book.all_samples] == [7.0]


def test_stages_whose_times_overlap_tell_nothing(tmp_path: Path) -> None:
    at = "2026-11-22T12:00:{:02}Z"
    stages: dict[str, dict[str, object]] = {
        name: {"key": name, "duration_s": 10.0, "finished_at": at.format(second)}
        for name, second in (("a", 12), ("b", 18), ("c", 29))
    }
    _keep(tmp_path, stages)
    assert [sample.key for sample in known_forecast_times(tmp_path).all_samples] == ["c"]


def test_divergences_with_one_duration_were_one_run(tmp_path: Path) -> None:
    def record(label: str, duration_s: float) -> dict[str, object]:
        request = DivergenceRequest(label=label, baseline_file=None if label == "BF16" else "model.gguf")
        return {"key": label, "duration_s": duration_s, "request": request.model_dump(mode="json")}

    _keep(tmp_path, {"BF16": record("BF16", 30.5), "Q8_0": record("Q8_0", 30.5), "Q6_K": record("Q6_K", 55.0)})
    amounts = {sample.key: sample.amount / (1000 * 23 * 512) for sample in known_forecast_times(tmp_path).all_samples}
    copies = 2 / 23  # the chunks that are read again, of the file and of its share of the baseline
    expected = {"BF16": 1, "Q8_0": 1 + 1.5 * copies, "Q6_K": 2 + 2 * copies}
    assert amounts == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "[]", '{"stages": 3}', '{"stages": {"a": {"request": 4}}, "source": {}}'])
def test_a_manifest_that_is_damaged_or_of_another_age_is_passed_over(text: str, tmp_path: Path) -> None:
    folder = tmp_path / "org" / "m" / "abc"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(text)
    assert known_forecast_times(tmp_path).all_samples == []


# ---- how it is said ----------------------------------------------------------------------------------


def test_the_plan_says_time_disk_and_memory_of_each_stage_and_what_it_does_not_know(
    plan: BuildPlan, tmp_path: Path
) -> None:
    book = ForecastBook(samples=[_sample("convert", 11), _sample("quantize", 100, family="Q4_K_M")])
    cost = forecast_cost(plan, (), 0, tmp_path, forecast_times(plan, (), book, ALONE))
    planned = Planned(plan, frozenset(), cost, "docker", "asked for", tmp_path)
    text = summary.terminal_plan(planned)
    lines = {line.split("  ")[-1].partition(",")[0]: line for line in text.splitlines()}
    assert lines["convert"].endswith(", 11 s")
    assert "100 s" not in text and "2 min" in lines["quantize Q4_K_M"] and "~2 min" in lines["quantize Q8_0"]
    assert "of memory" in lines["quantize Q4_K_M"] and "of memory" in lines["evaluate BF16"]
    missing = "datasets, verify, evaluate, divergence, speed, report: not known yet"
    source = "(from past runs on this machine; ~ is from other models, types or settings)"
    assert f"about 4 min, and {missing} {source}" in text and "make rates" in text
    said = plan_output(planned)
    assert said.seconds == pytest.approx(211) and "report" in said.time_not_known


def test_a_plan_with_nothing_left_says_nothing_of_time(plan: BuildPlan, tmp_path: Path) -> None:
    done = frozenset(step.label for step in plan.steps)
    text = summary.terminal_plan(
        Planned(plan, done, forecast_cost(plan, done, 0, tmp_path), "docker", "asked for", tmp_path)
    )
    assert "Time" not in text
