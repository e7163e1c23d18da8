"""The stage `report`: compares the measurements of each file with the baseline's.

Reads the results of `evaluate`, `divergence`, `domains`, `behaviour`, `speed`, `cache`, `openvino` and `similarity`,
and writes `report.json` (an `EvalReport`), `report.md` and `plots/`. It measures nothing itself, so its outputs can
always be recomputed from its inputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

from pydantic import JsonValue, ValidationError

from eval.analysis.behaviour import behaviour_scores, with_behaviour_outcomes, without_behaviours
from eval.analysis.columns import evaluation_scores
from eval.analysis.paired import NotComparable
from eval.analysis.verdicts import compare_evaluations
from eval.rendering.markdown import render_report_markdown
from quantyard.metrics.domain_figures import worst_domain
from quantyard.metrics.headline_metrics import headline_scores
from quantyard.metrics.layout_figures import pooled_layout_noise
from quantyard.protocol.base import ExitCode, Frozen
from quantyard.protocol.behaviour_run import BehaviourRun
from quantyard.protocol.cache_results import CacheMeasurement
from quantyard.protocol.divergence_results import Divergence, Domains
from quantyard.protocol.evaluation import ReportRequest
from quantyard.protocol.measurements import Comparison, EvalReport, Measurement
from quantyard.protocol.openvino_results import OpenVinoMeasurement
from quantyard.protocol.runner import Stage, StageFailure, StageOutcome, run_stage
from quantyard.protocol.similarity_results import Similarity
from quantyard.protocol.speed_results import Speed
from quantyard.protocol.task_results import Evaluation, FileFacts

_Input = TypeVar("_Input", bound=Frozen)
_AGAIN = "Run the measurement again: type the same command."


@dataclass(frozen=True)
class Inputs:
    """The results of the earlier stages for one file."""

    label: str
    evaluation: Evaluation | None
    divergence: Divergence | None
    speed: Speed | None
    similarity: Similarity | None = None
    cache: CacheMeasurement | None = None
    openvino: OpenVinoMeasurement | None = None
    behaviour: BehaviourRun | None = None
    domains: Domains | None = None


def report(stage: Stage, request: ReportRequest) -> StageOutcome:
    """Write `/out/files/report.json`, `report.md` and `plots/`.

    Raises:
        StageFailure: 2 if an input is missing or unreadable (kinds `report-labels`, `report-input`), or if two files
            were not asked the same questions (`report-unpaired`), or not timed on like machines (`report-nodes`).
    """
    from eval.rendering.plots import draw_report_plots  # the only part that needs matplotlib

    inputs = [_report_inputs(stage, request, label) for label in _report_labels(request)]
    if not request.mix_nodes:
        refuse_mixed_nodes(inputs)
    result = build_eval_report(request, inputs)
    (stage.files_dir / "report.json").write_text(result.model_dump_json(indent=2) + "\n")
    (stage.files_dir / "report.md").write_text(render_report_markdown(result))
    plots = draw_report_plots(result, stage.files_dir / "plots")
    stage.log(f"{len(result.measurements)} files compared, {len(plots)} plots drawn")
    return StageOutcome(facts=eval_report_summary(result))


def refuse_mixed_nodes(inputs: Sequence[Inputs]) -> None:
    """Refuse to set speeds side by side that were measured on machines of several kinds.

    Raises:
        StageFailure: `report-nodes` (2).
    """
    classes: dict[str, list[str]] = {}
    for found in inputs:
        if found.speed and found.speed.node_class:
            classes.setdefault(found.speed.node_class, []).append(found.label)
    if len(classes) < 2:
        return
    listed = "; ".join(f"{', '.join(labels)} on {name}" for name, labels in classes.items())
    message = f"Speeds were measured on {len(classes)} kinds of machines, so they cannot be compared: {listed}."
    hint = "Let one kind of node do the timing, or compare them anyway: MIX_NODES=1"
    raise StageFailure(ExitCode.BAD_REQUEST, "report-nodes", message, hint)


def build_eval_report(request: ReportRequest, inputs: list[Inputs]) -> EvalReport:
    """The report of these inputs; the first are the baseline's."""
    evaluations = [i.evaluation for i in inputs if i.evaluation]
    similar = [i.similarity for i in inputs if i.similarity]
    compared = _report_comparisons(inputs, request.suite.margin)
    versions = _merged_report_facts(e.versions for e in (*evaluations, *similar))
    return EvalReport(
        title=request.title, suite=request.suite, baseline=request.baseline,
        measurements=tuple(_report_measurement(i, inputs[0], compared.get(i.label, ())) for i in inputs),
        versions={key: str(value) for key, value in versions.items()},
        hardware=_merged_report_facts(e.hardware for e in evaluations),
        n_questions=_n_report_questions(inputs[0]),
        duration_s=sum(_input_duration_s(i) for i in inputs),
    )  # fmt: skip


def _n_report_questions(baseline: Inputs) -> int:
    """Of tasks and behaviours."""
    tasks = baseline.evaluation.outcomes if baseline.evaluation else ()
    behaviours = baseline.behaviour.outcomes if baseline.behaviour else ()
    return sum(task.n for task in tasks) + sum(len(behaviour.questions) for behaviour in behaviours)


def _input_duration_s(inputs: Inputs) -> float:
    parts = (
        inputs.evaluation, inputs.divergence, inputs.domains, inputs.behaviour, inputs.cache, inputs.openvino,
        inputs.similarity,
    )  # fmt: skip
    return sum(part.duration_s for part in parts if part)


def eval_report_summary(result: EvalReport) -> dict[str, JsonValue]:
    """What the command line prints for each label; shares are fractions, speeds are in tokens per second."""
    files: dict[str, JsonValue] = {m.file.label: _report_summary_of_file(result, m) for m in result.measurements}
    return {"baseline": result.baseline, "n_questions": result.n_questions, "files": files}


# ---- reading -----------------------------------------------------------------------------------------


def _report_labels(request: ReportRequest) -> tuple[str, ...]:
    """The labels, the baseline's first."""
    if request.baseline not in request.labels or len(set(request.labels)) < len(request.labels):
        message = f"The labels {', '.join(request.labels)} are not {request.baseline} and others, each once."
        raise StageFailure(ExitCode.BAD_REQUEST, "report-labels", message, "Name the baseline and each file once.")
    return (request.baseline, *(label for label in request.labels if label != request.baseline))


def _report_inputs(stage: Stage, request: ReportRequest, label: str) -> Inputs:
    """The results of one file; those that the suite asks for must exist."""
    suite, is_compared = request.suite, label != request.baseline or len(request.labels) == 1
    found = Inputs(
        label,
        _read_report_input(stage.in_dir / f"evaluate-{label}" / "evaluation.json", Evaluation, bool(suite.tasks)),
        _read_report_input(
            stage.in_dir / f"divergence-{label}" / "divergence.json", Divergence, suite.divergence is not None
        ),
        _read_report_input(stage.in_dir / f"speed-{label}" / "speed.json", Speed, suite.speed is not None),
        _read_report_input(
            stage.in_dir / f"similarity-{label}" / "similarity.json", Similarity, suite.similarity is not None
        ),
        _read_report_input(
            stage.in_dir / f"cache-{label}" / "cache.json", CacheMeasurement, suite.cache is not None and is_compared
        ),
        _read_report_input(
            stage.in_dir / f"openvino-{label}" / "openvino.json", OpenVinoMeasurement,
            suite.openvino is not None and is_compared,
        ),
        _read_report_input(
            stage.in_dir / f"behaviour-{label}" / "behaviour.json", BehaviourRun, suite.behaviour is not None
        ),
        _read_report_input(stage.in_dir / f"domains-{label}" / "domains.json", Domains, suite.domains is not None),
    )
    files = (part.file for part in (found.evaluation, found.behaviour, found.similarity) if part)
    parts = (*files, found.divergence, found.domains, found.speed, found.cache, found.openvino)
    names = {part.label for part in parts if part}
    if names != {label}:
        message = f"The inputs of {label} are results of {', '.join(sorted(names)) or 'no file'}."
        raise StageFailure(ExitCode.BAD_REQUEST, "report-input", message, _AGAIN)
    return found


def _read_report_input(path: Path, kind: type[_Input], required: bool) -> _Input | None:
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        if not required:
            return None
        message = f"{path} is missing, and the suite asks for it."
        raise StageFailure(ExitCode.BAD_REQUEST, "report-input", message, _AGAIN) from error
    except (OSError, ValidationError) as error:
        message = f"{path} cannot be read as {kind.__name__}."
        raise StageFailure(ExitCode.BAD_REQUEST, "report-input", message, _AGAIN, str(error)) from error


# ---- putting together --------------------------------------------------------------------------------


def _report_comparisons(inputs: Sequence[Inputs], margin: float) -> dict[str, tuple[Comparison, ...]]:
    """Label → the comparisons of each file that was asked the baseline's questions, behaviours among them."""
    found = [with_behaviour_outcomes(i.evaluation, i.behaviour) for i in inputs if i.evaluation]
    if inputs[0].evaluation is None:
        return {}
    baseline, *others = found
    try:
        compared = compare_evaluations(baseline, others, margin)
    except NotComparable as error:
        raise StageFailure(ExitCode.BAD_REQUEST, "report-unpaired", str(error), error.hint) from error
    return {found.file.label: of_file for found, of_file in zip(others, compared, strict=True)}


def _report_measurement(inputs: Inputs, baseline: Inputs, compared: tuple[Comparison, ...]) -> Measurement:
    evaluation, behaviour = inputs.evaluation, inputs.behaviour
    if evaluation is None:
        similar = inputs.similarity
        file = similar.file if similar else _unknown_report_file(inputs.label)
        return Measurement(
            file=file, divergence=inputs.divergence, domains=inputs.domains, speed=inputs.speed, cache=inputs.cache,
            openvino=inputs.openvino, similarity=similar,
        )
    return Measurement(
        file=evaluation.file, self_check=evaluation.self_check, scores=evaluation_scores(evaluation),
        comparisons=without_behaviours(compared),
        divergence=inputs.divergence, domains=inputs.domains, speed=inputs.speed, cache=inputs.cache,
        openvino=inputs.openvino,
        layout_noise=pooled_layout_noise(outcome.layout_noise for outcome in evaluation.outcomes),
        n_truncated=evaluation.n_truncated,
        behaviours=behaviour_scores(behaviour, None if inputs is baseline else baseline.behaviour, compared),
        no_behaviours=behaviour.reason if behaviour else "",
        n_unanswered=evaluation.n_unanswered, predictions=evaluation.predictions,
    )  # fmt: skip


def _unknown_report_file(label: str) -> FileFacts:
    """Only `evaluate` records a file's facts; without it they are 0, which the report shows as a dash."""
    return FileFacts(label=label, size_bytes=0, bits_per_weight=0, n_params=0, architecture="unknown")


def _merged_report_facts(facts: Iterable[Mapping[str, JsonValue]]) -> dict[str, JsonValue]:
    """One value per key; where files differ, all values, so that a mixture of versions is visible."""
    found: dict[str, list[JsonValue]] = {}
    for one in facts:
        for key, value in one.items():
            values = found.setdefault(key, [])
            values += [value] if value not in values else []
    return {key: values[0] if len(values) == 1 else " / ".join(map(str, values)) for key, values in found.items()}


def _report_summary_of_file(result: EvalReport, measurement: Measurement) -> JsonValue:
    shown = {(score.task, score.metric) for score in headline_scores(result.suite, result.measurements[0].scores)}
    verdicts = Counter(c.verdict for c in measurement.comparisons if (c.task, c.metric) in shown)
    verdicts.update(score.comparison.verdict for score in measurement.behaviours if score.comparison)
    facts: dict[str, JsonValue] = {"verdicts": {str(name): n for name, n in verdicts.items()}} if verdicts else {}
    if divergence := measurement.divergence:
        facts["perplexity"] = divergence.perplexity.value
        facts["mean_kld"] = divergence.mean_kld.value if divergence.mean_kld else None
        facts["top1_agreement"] = divergence.top1_agreement.value if divergence.top1_agreement else None
    if worst := worst_domain(measurement.domains):
        facts |= {"worst_domain": worst.domain, "worst_domain_kld": worst.mean_kld.value}
    if similar := measurement.similarity:
        for name in ("mean_cosine", "kendall_tau", "top1_agreement"):
            facts[name] = value.value if (value := getattr(similar, name)) else None
    if speed := measurement.speed:
        facts["prompt_tokens_per_s"] = speed.prompt_tokens_per_s
        facts["generated_tokens_per_s"] = speed.generated_tokens_per_s
    return facts


def main() -> NoReturn:
    """Entry point of the stage."""
    run_stage(ReportRequest, report)


if __name__ == "__main__":
    main()
