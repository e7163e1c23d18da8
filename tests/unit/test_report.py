"""The stage `report` but for its plots: what it reads, what it puts together, and what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel

from eval.rendering.markdown import render_report_markdown
from eval.rendering.sentences import render_report_sentences
from eval.report import (
    Inputs,
    _report_inputs,
    _report_labels,
    build_eval_report,
    eval_report_summary,
    refuse_mixed_nodes,
)
from quantyard.formatting.numbers import (
    format_bytes,
    format_digits,
    format_duration,
    format_file_size,
    format_percent,
    format_signed,
)
from quantyard.protocol.base import ExitCode
from quantyard.protocol.evaluation import ReportRequest, Suite, TaskEntry
from quantyard.protocol.measurements import EvalReport
from quantyard.protocol.runner import Stage, StageFailure
from quantyard.protocol.task_results import Evaluation
from tests.evaluations import LARGE, SMALL, evaluation, metric, outcome, right_or_wrong, simulated

SUITE = Suite(name="smoke", tasks=(TaskEntry(task="arc"),))


def _request(suite: Suite = SUITE, labels: tuple[str, ...] = ("BF16", "Q4_K_M")) -> ReportRequest:
    return ReportRequest(title="SmolLM2-135M", suite=suite, baseline="BF16", labels=labels)


def _stage(folder: Path) -> Stage:
    return Stage("report", folder / "in", folder / "out", {})


def _leave(stage: Stage, name: str, file: str, what: BaseModel) -> None:
    (stage.in_dir / name).mkdir(parents=True)
    (stage.in_dir / name / file).write_text(what.model_dump_json())


def _arc(label: str, lost: int = 0, **settings: object) -> Evaluation:
    bits = [0] * lost + [1] * (300 - lost) + [0] * 200
    return evaluation(label, outcome("arc", right_or_wrong(bits), chance=0.25), **settings)  # type: ignore[arg-type]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """A finished measurement of two files, of everything a suite can ask for."""
    stage, measured = _stage(tmp_path), simulated(SMALL[::2], title="m", n_params=1e8, n_tasks=1)
    for m in measured.measurements:
        label = m.file.label
        assert m.divergence
        assert m.speed
        _leave(stage, f"evaluate-{label}", "evaluation.json", _arc(label, lost=40 if label == "Q4_K_M" else 0))
        _leave(stage, f"divergence-{label}", "divergence.json", m.divergence)
        _leave(stage, f"speed-{label}", "speed.json", m.speed)
    return stage


def _built(stage: Stage, request: ReportRequest) -> EvalReport:
    return build_eval_report(request, [_report_inputs(stage, request, label) for label in _report_labels(request)])


def _failure(stage: Stage, request: ReportRequest) -> StageFailure:
    with pytest.raises(StageFailure) as caught:
        _built(stage, request)
    assert caught.value.exit_code == ExitCode.BAD_REQUEST
    return caught.value


# ---- reading -----------------------------------------------------------------------------------------


def test_a_report_holds_every_file_the_baseline_first(stage: Stage) -> None:
    report = _built(stage, _request(labels=("Q4_K_M", "BF16")))
    assert [m.file.label for m in report.measurements] == ["BF16", "Q4_K_M"]
    first, second = report.measurements
    assert first.comparisons == ()
    assert [(c.task, c.verdict) for c in second.comparisons] == [("arc", "worse")]
    assert all(m.divergence and m.speed and m.self_check and m.scores for m in report.measurements)
    assert (report.n_questions, report.versions["lm_eval"]) == (500, "0.4.13")
    assert report.duration_s == pytest.approx(2 * 412 + 30 + 40)


def test_a_report_survives_the_way_through_json(stage: Stage) -> None:
    report = _built(stage, _request())
    assert EvalReport.model_validate_json(report.model_dump_json(indent=2)) == report


@pytest.mark.parametrize(
    ("folder", "file"),
    [("evaluate-Q4_K_M", "evaluation.json"), ("divergence-BF16", "divergence.json"), ("speed-Q4_K_M", "speed.json")],
)
def test_an_input_the_suite_asks_for_must_be_there(stage: Stage, folder: str, file: str) -> None:
    (stage.in_dir / folder / file).unlink()
    failure = _failure(stage, _request())
    assert failure.error.kind == "report-input"
    assert f"{folder}/{file}" in failure.error.message
    assert failure.error.hint


def test_what_the_suite_does_not_ask_for_may_be_missing(tmp_path: Path) -> None:
    stage, suite = _stage(tmp_path), SUITE.model_copy(update={"divergence": None, "speed": None})
    for label in ("BF16", "Q4_K_M"):
        _leave(stage, f"evaluate-{label}", "evaluation.json", _arc(label))
    report = _built(stage, _request(suite))
    assert all(m.divergence is None and m.speed is None for m in report.measurements)
    assert "- speed and memory (the suite asks for none)" in render_report_markdown(report)


def test_a_suite_without_tasks_reports_divergence_and_speed(stage: Stage) -> None:
    for label in ("BF16", "Q4_K_M"):
        (stage.in_dir / f"evaluate-{label}" / "evaluation.json").unlink()
    report = _built(stage, _request(Suite(name="quick")))
    assert [m.file.label for m in report.measurements] == ["BF16", "Q4_K_M"]
    assert report.n_questions == 0
    text = render_report_markdown(report)
    assert "- tasks (the suite has none)" in text
    assert "## Tasks" not in text
    assert "0 B" not in text


def test_an_unreadable_input_is_named(stage: Stage) -> None:
    path = stage.in_dir / "speed-BF16" / "speed.json"
    path.write_text('{"label": "BF16"}')
    failure = _failure(stage, _request())
    assert failure.error.message == f"{path} cannot be read as Speed."
    assert "prompt_tokens_per_s" in failure.error.detail


def test_inputs_of_another_file_are_refused(stage: Stage) -> None:
    (stage.in_dir / "evaluate-Q4_K_M" / "evaluation.json").write_text(_arc("Q8_0").model_dump_json())
    assert _failure(stage, _request()).error.message == "The inputs of Q4_K_M are results of Q4_K_M, Q8_0."


def test_files_that_were_asked_other_questions_are_refused(stage: Stage) -> None:
    other = evaluation("Q4_K_M", outcome("arc", right_or_wrong([1] * 500), hashes=["x"] * 500))
    (stage.in_dir / "evaluate-Q4_K_M" / "evaluation.json").write_text(other.model_dump_json())
    failure = _failure(stage, _request())
    assert failure.error.kind == "report-unpaired"
    assert "task arc" in failure.error.message
    assert "same suite" in failure.error.hint


@pytest.mark.parametrize("labels", [("Q8_0", "Q4_K_M"), ("BF16", "Q4_K_M", "Q4_K_M"), ()])
def test_labels_without_the_baseline_or_twice_are_refused(stage: Stage, labels: tuple[str, ...]) -> None:
    assert _failure(stage, _request(labels=labels)).error.kind == "report-labels"


def _timed_on(label: str, node_class: str) -> Inputs:
    (first, *_) = simulated(SMALL, title="m", n_params=1e8, n_tasks=1).measurements
    assert first.speed
    return Inputs(label, None, None, first.speed.model_copy(update={"label": label, "node_class": node_class}))


def test_speeds_of_unlike_machines_are_refused_with_their_names() -> None:
    places = {"BF16": "EPYC, 8 cores", "Q8_0": "EPYC, 8 cores", "Q4_K_M": "Xeon, 8 cores"}
    mixed = [_timed_on(label, place) for label, place in places.items()]
    with pytest.raises(StageFailure, match="BF16, Q8_0 on EPYC, 8 cores; Q4_K_M on Xeon, 8 cores") as failed:
        refuse_mixed_nodes(mixed)
    assert failed.value.exit_code is ExitCode.BAD_REQUEST and "MIX_NODES=1" in failed.value.error.hint
    refuse_mixed_nodes(mixed[:2])
    refuse_mixed_nodes([*mixed[:2], _timed_on("Q6_K", "")])  # measured before machines were recorded


def test_a_mixture_of_versions_shows() -> None:
    inputs = [
        Inputs("BF16", _arc("BF16", versions={"llama_cpp": "b1"}), None, None),
        Inputs("Q4_K_M", _arc("Q4_K_M", versions={"llama_cpp": "b2"}), None, None),
    ]
    assert build_eval_report(_request(), inputs).versions == {"llama_cpp": "b1 / b2"}


def test_the_summary_is_plain_json_with_the_verdicts_of_every_file(stage: Stage) -> None:
    facts = json.loads(json.dumps(eval_report_summary(_built(stage, _request()))))
    assert (facts["baseline"], facts["n_questions"]) == ("BF16", 500)
    assert list(facts["files"]) == ["BF16", "Q4_K_M"]
    assert facts["files"]["Q4_K_M"]["verdicts"] == {"worse": 1}
    assert facts["files"]["Q4_K_M"]["mean_kld"] == pytest.approx(0.031)
    assert "verdicts" not in facts["files"]["BF16"]


# ---- Markdown ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large() -> EvalReport:
    return simulated(LARGE, title="Llama-3.1-8B-Instruct", n_params=8.03e9, skill=0.2)


def test_every_table_is_rectangular(large: EvalReport) -> None:
    tables = re.findall(r"(?:^\|.*\n)+", render_report_markdown(large), re.MULTILINE)
    assert len(tables) == 2 + len(LARGE) - 1  # files, the self-check, and tasks of each quant
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_every_file_and_task_is_in_the_text_with_its_numbers(large: EvalReport) -> None:
    text = render_report_markdown(large)
    for m in large.measurements[1:]:
        row = next(line for line in text.splitlines() if line.startswith(f"| {m.file.label} |"))
        assert f"{m.file.bits_per_weight:.2f}" in row
        section = text.split(f"### {m.file.label}\n")[1].split("\n##")[0]
        for c in m.comparisons:
            shown = [line for line in section.splitlines() if line.startswith(f"| {c.task} | {c.metric} |")]
            assert len(shown) == (0 if c.metric == "bits_per_byte" else 1)
            if c.mcnemar_p is not None:
                assert f"| {c.lost} / {c.gained} |" in shown[0]


def test_numbers_carry_no_more_digits_than_they_deserve(large: EvalReport) -> None:
    for number in re.findall(r"\d+\.\d+", render_report_markdown(large)):
        assert len(number.replace(".", "").lstrip("0")) <= 5, number


def test_plain_words_name_what_is_worse_and_count_what_is_open() -> None:
    base, other = ({"arc": [1] * 300 + [0] * 200, "piqa": [1] * 60 + [0] * 40} for _ in range(2))
    other["arc"] = [0] * 40 + [1] * 260 + [0] * 200
    suite = Suite(name="s", tasks=(TaskEntry(task="arc"), TaskEntry(task="piqa")))
    files = [
        evaluation(label, *(outcome(t, right_or_wrong(bits), chance=0.25) for t, bits in answers.items()), size_bytes=s)
        for label, answers, s in (("BF16", base, 200_000_000), ("Q4_K_M", other, 80_000_000))
    ]
    report = build_eval_report(_request(suite), [Inputs(e.file.label, e, None, None) for e in files])
    assert render_report_sentences(report).splitlines()[-1] == (
        "- **Q4_K_M** is 80.0 MB, 40 % of the size of BF16. Of 2 tasks, it is worse on 1 (arc); "
        "1 has too few questions to tell."
    )


def test_a_certain_difference_within_the_margin_is_said_to_be_the_same() -> None:
    rng = np.random.default_rng(2)
    base = [(float(-3000 * x), float(1000 * x)) for x in rng.uniform(0.5, 2, 60)]
    other = [(ll * 1.0002, w) for ll, w in base]
    suite = Suite(name="s", tasks=(TaskEntry(task="wikitext"),))
    files = [
        evaluation(label, outcome("wikitext", metric("word_perplexity", pairs, higher=False)))
        for label, pairs in (("BF16", base), ("Q8_0", other))
    ]
    report = build_eval_report(_request(suite, ("BF16", "Q8_0")), [Inputs(e.file.label, e, None, None) for e in files])
    assert "it is the same on 1" in render_report_sentences(report)


def test_the_subtasks_of_a_group_are_summed_up_in_a_line() -> None:
    parts = [outcome(f"mmlu_{i}", right_or_wrong([1] * 60 + [0] * 40), entry="mmlu", chance=0.25) for i in range(5)]
    files = [evaluation(label, *parts) for label in ("BF16", "Q4_K_M")]
    suite = Suite(name="s", tasks=(TaskEntry(task="mmlu"),))
    text = render_report_markdown(
        build_eval_report(_request(suite), [Inputs(e.file.label, e, None, None) for e in files])
    )
    assert "| mmlu | acc | same | 500 |" in text
    assert "mmlu_3" not in text
    assert "Within the groups, 5 further comparisons (5 too few questions) are in report.json." in text


def test_a_metric_without_comparison_is_listed_as_not_measured() -> None:
    odd = outcome("cola", metric("mcc", [0.0, 1.0, 1.0], value=0.31))
    files = [evaluation(label, odd) for label in ("BF16", "Q4_K_M")]
    suite = Suite(name="s", tasks=(TaskEntry(task="cola"),))
    text = render_report_markdown(
        build_eval_report(_request(suite), [Inputs(e.file.label, e, None, None) for e in files])
    )
    assert "- a comparison of cola by mcc" in text


def test_a_baseline_alone_shows_its_scores_and_says_that_nothing_was_compared() -> None:
    text = render_report_markdown(simulated(SMALL[:1], title="m", n_params=1e8, n_tasks=3))
    assert "| arc_easy | acc | 500 |" in text
    assert "no file beside the baseline" in text
    assert "## Summary" not in text


def test_the_models_name_and_the_self_check_are_in_the_text(large: EvalReport) -> None:
    text = render_report_markdown(large)
    assert text.startswith("# Llama-3.1-8B-Instruct: what quantization cost\n")
    assert "| Q2_K | 12 of 12 | 0.00031 | 0.00012 | 0.00044 |" in text


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (format_bytes(105_453_920), "105 MB"), (format_bytes(999_600), "1.00 MB"),
        (format_bytes(0), "0 B"), (format_file_size(0), "—"),
        (format_digits(0.0012345), "0.00123"), (format_digits(1234.6), "1235"), (format_digits(9.999), "10.0"),
        (format_digits(0), "0"),
        (format_percent(0.1234), "12.3 %"), (format_percent(-0.5), "−50.0 %"), (format_signed(-1.25, 1), "−1.2"),
        (format_signed(-0.001, 1), "0.0"),
        (format_signed(2, 1), "+2.0"), (format_duration(42), "42 s"), (format_duration(600), "10 min"),
        (format_duration(9000), "2.5 h"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_people_write_them(written: str, expected: str) -> None:
    assert written == expected
