"""Formats the line of a finished stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from quantyard.formatting.numbers import (
    format_bytes,
    format_cosine,
    format_count,
    format_difference,
    format_elapsed,
    format_kld,
    format_metric_value,
    format_percent,
    format_perplexity,
    format_speed,
)
from quantyard.metrics.kinds import metric_kind
from quantyard.protocol.base import StageResult
from quantyard.protocol.checked_facts import stage_facts_by_file
from quantyard.protocol.facts import ConvertFacts, ProjectorFacts, TwinFacts, VerifyFacts
from quantyard.protocol.measuring_facts import (
    BehaviourFacts,
    CacheFacts,
    ContractFacts,
    DivergenceFacts,
    DomainsFacts,
    EvaluateFacts,
    OpenVinoFacts,
    ReportFacts,
    SimilarityFacts,
    SpeedFacts,
)
from quantyard.protocol.openvino import OPENVINO_REFUSALS

_OUTCOMES: Final[dict[str, str]] = {"record": "recorded", "warn": "warning", "allowed": "allowed", "refuse": "refused"}
_TASKS_SHOWN: Final = 3  # in one line
_UNSIZED: Final = (
    "contract", "rounding", "evaluate", "divergence", "domains", "behaviour", "speed", "cache", "openvino",
    "similarity", "report",
)  # fmt: skip


def stage_end_lines(label: str, result: StageResult) -> list[str]:
    """The line of a finished stage, such as `[convert] 271 MB in 10.2 s`, and one for each finding."""
    verified = VerifyFacts.read(result.facts) if result.stage == "verify" else None
    findings = _FINDINGS.get(result.stage)
    did = (", ".join(findings(result)) if findings else "") or _files_made_line(result)
    if verified is not None and verified.probes is not None and verified.chats is not None:
        did += f" ({verified.probes} probes, {verified.chats} conversations)"
    notes = ConvertFacts.read(result.facts).notes if result.stage == "convert" else []
    found = [f"  note: {note}" for note in notes]
    texts = verified.findings if verified else []
    found += [f"  {_OUTCOMES[each.outcome]}: {each.sentence}. {each.advice}" for each in texts]
    for sentence, is_warning in verified.embeddings_sentences if verified else ():
        found.append(f"  {'warning' if is_warning else 'recorded'}: {sentence}")
    return [f"[{label}] {did} in {format_elapsed(result.duration_s)}", *found]


def _files_made_line(result: StageResult) -> str:
    """The size of the files that were made; of a stage that writes what others only read, that it is done."""
    size_bytes = sum(f.size_bytes for f in result.outputs)
    return format_bytes(size_bytes) if size_bytes and result.stage not in _UNSIZED else "passed"


# ---- what a measuring stage found, in a few words ----------------------------------------------------


def _evaluate_lines(result: StageResult) -> Iterator[str]:
    """The number of questions, and the first metric of the first tasks, such as `arc_easy acc 47.5 %`."""
    facts = EvaluateFacts.read(result.facts)
    if facts.n_questions:
        yield f"{format_count(facts.n_questions)} questions"
    first = [(task, *next(iter(metrics.items()))) for task, metrics in facts.tasks.items() if metrics]
    scores = [
        f"{task} {name} {format_metric_value(value, metric_kind(name, value))}"
        for task, name, value in first if value is not None
    ]  # fmt: skip
    yield from scores[:_TASKS_SHOWN]
    if more := len(scores[_TASKS_SHOWN:]):
        yield f"{more} more task{'s' * (more != 1)} in the report"


def _divergence_lines(result: StageResult) -> Iterator[str]:
    """The divergence of one file, or of each file of a shared run."""
    if not (by_file := stage_facts_by_file(result)):
        yield from _one_divergence_lines(DivergenceFacts.read(result.facts))
    for label, facts in by_file.items():
        yield f"{label} {' '.join(_one_divergence_lines(DivergenceFacts.read(facts)))}"


def _one_divergence_lines(facts: DivergenceFacts) -> Iterator[str]:
    if facts.perplexity is not None:
        yield f"PPL {format_perplexity(facts.perplexity)}"
    if facts.mean_kld is not None:
        yield f"mean KLD {format_kld(facts.mean_kld)}"


def _domains_lines(result: StageResult) -> Iterator[str]:
    """The worst domain of one file, or of each file of a shared run."""
    if not (by_file := stage_facts_by_file(result)):
        yield from _one_domains_line(DomainsFacts.read(result.facts))
    for label, facts in by_file.items():
        yield f"{label} {' '.join(_one_domains_line(DomainsFacts.read(facts)))}"


def _one_domains_line(facts: DomainsFacts) -> Iterator[str]:
    """Such as `worst of 14 domains: code, mean KLD 0.061`."""
    if facts.worst is not None and facts.worst_kld is not None:
        yield f"worst of {facts.n_domains} domains: {facts.worst}, mean KLD {format_kld(facts.worst_kld)}"
    else:
        yield f"{facts.n_domains} domains"


def _behaviour_lines(result: StageResult) -> Iterator[str]:
    """Such as `60 questions, tool calls 61.7 %`, or why nothing was asked."""
    facts = BehaviourFacts.read(result.facts)
    if facts.reason:
        yield f"not asked: {facts.reason}"
    else:
        yield f"{format_count(facts.n_questions)} questions"
    for name, share in facts.accuracy.items():
        yield f"{name.replace('_', ' ')} {format_percent(share)}"


def _similarity_lines(result: StageResult) -> Iterator[str]:
    """Such as `mean cosine 0.9997, Kendall τ 0.9911`."""
    facts = SimilarityFacts.read(result.facts)
    if facts.mean_cosine is not None:
        yield f"mean cosine {format_cosine(facts.mean_cosine)}"
    if facts.kendall_tau is not None:
        yield f"Kendall τ {format_cosine(facts.kendall_tau)}"


def _cache_lines(result: StageResult) -> Iterator[str]:
    """Such as `q8_0 KLD 0.000412`."""
    for name, value in CacheFacts.read(result.facts).mean_kld.items():
        yield f"{name} KLD {format_kld(value)}"


def _openvino_lines(result: StageResult) -> Iterator[str]:
    """Such as `KLD 0.00241 from llama.cpp`, or why OpenVINO does not run the file."""
    facts = OpenVinoFacts.read(result.facts)
    if facts.refusal:
        yield f"not measured: {OPENVINO_REFUSALS[facts.refusal]}"
    elif facts.runtime_kld is not None:
        yield f"KLD {format_kld(facts.runtime_kld)} from llama.cpp"


def _speed_lines(result: StageResult) -> Iterator[str]:
    facts = SpeedFacts.read(result.facts)
    if facts.prompt_tokens_per_s is not None:
        yield f"prompt {format_speed(facts.prompt_tokens_per_s)}"
    if facts.generated_tokens_per_s is not None:
        yield f"generated {format_speed(facts.generated_tokens_per_s)}"


def _report_lines(result: StageResult) -> Iterator[str]:
    """Such as `Q4_K_M: 3 same + 1 worse`."""
    for label, file in ReportFacts.read(result.facts).files.items():
        if file.verdicts:
            yield f"{label}: " + " + ".join(f"{n} {verdict}" for verdict, n in file.verdicts.items())


def _twin_lines(result: StageResult) -> Iterator[str]:
    """Such as `proved, max |Δ logit| 0.000023`; the whole sentence is in the manifest and on the card."""
    facts = TwinFacts.read(result.facts)
    yield _TWINS[facts.status]
    if facts.max_delta is not None:
        yield f"max |Δ {facts.compared}| {format_difference(facts.max_delta)}"


def _parity_lines(result: StageResult) -> Iterator[str]:
    """Such as `mean KLD 0.000070 from Transformers`, or that it was not compared."""
    facts = TwinFacts.read(result.facts)
    if facts.mean_kld is None:
        yield _TWINS[facts.status]
    else:
        yield f"mean KLD {format_difference(facts.mean_kld)} from Transformers"


def _contract_lines(result: StageResult) -> Iterator[str]:
    """Such as `none of 31 checks failed`, or `2 of 31 checks failed: streaming, tools`."""
    facts = ContractFacts.read(result.facts)
    of = f" of {facts.n_checks}" if facts.n_checks else ""
    if facts.failed:
        yield f"{len(facts.failed)}{of} checks failed: {', '.join(facts.failed)}"
    else:
        yield f"none of {facts.n_checks} checks failed" if facts.n_checks else "passed"


def _projector_lines(result: StageResult) -> Iterator[str]:
    """Such as `vision, 854 MB, Q8_0 too`."""
    yield " and ".join(ProjectorFacts.read(result.facts).media)
    yield _files_made_line(result)
    if any("Q8_0" in file.path for file in result.outputs):
        yield "Q8_0 too"


_TWINS: Final = {
    "proved": "equal to Transformers", "limited": "equal to Transformers up to a length",
    "known": "equal to Transformers but for what is known", "differs": "not equal to Transformers",
    "unproved": "not comparable with Transformers",
}  # fmt: skip
_FINDINGS: Final[Mapping[str, Callable[[StageResult], Iterator[str]]]] = {
    "twin": _twin_lines, "parity": _parity_lines, "projector": _projector_lines,
    "evaluate": _evaluate_lines, "divergence": _divergence_lines, "domains": _domains_lines, "speed": _speed_lines,
    "report": _report_lines, "behaviour": _behaviour_lines, "contract": _contract_lines, "cache": _cache_lines,
    "openvino": _openvino_lines,
    "similarity": _similarity_lines,
}  # fmt: skip
