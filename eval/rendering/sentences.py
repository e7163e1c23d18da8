"""Summarizes the report in a few sentences per file, for readers who skip tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from quantyard.formatting.numbers import (
    DASH,
    format_bytes,
    format_change_interval,
    format_percent,
    format_rough_percent,
)
from quantyard.metrics import intervals
from quantyard.metrics.behaviour_figures import BEHAVIOUR_TITLES
from quantyard.metrics.domain_figures import worst_domain_sentence
from quantyard.metrics.headline_metrics import headline_scores
from quantyard.metrics.pareto import pareto_entries, pareto_metric, pareto_standings
from quantyard.metrics.similarity_figures import similarity_sentence
from quantyard.metrics.speed import pace_sentence
from quantyard.protocol.divergence_results import Divergence
from quantyard.protocol.measurements import Comparison, EvalReport, Measurement, Verdict

GOOD_TO_BAD: Final[tuple[Verdict, ...]] = ("better", "same", "worse", "too few questions", "no signal")
_MAX_NAMED: Final = 3


def render_report_sentences(report: EvalReport) -> str:
    """One item per file beside the baseline; empty where there is none."""
    stands = pareto_standings(pareto_entries(report), pareto_metric(report))
    lines = [
        f"- **{m.file.label}** {_report_file_sentences(report, m)}{_pareto_standing_sentence(stands.get(m.file.label))}"
        for m in report.measurements[1:]
    ]
    return "## Summary\n\n" + "\n".join(lines) if lines else ""


def _report_file_sentences(report: EvalReport, m: Measurement) -> str:
    baseline = report.measurements[0]
    parts = []
    if m.file.size_bytes and baseline.file.size_bytes:
        share = format_rough_percent(m.file.size_bytes / baseline.file.size_bytes)
        parts.append(f"is {format_bytes(m.file.size_bytes)}, {share} of the size of {baseline.file.label}.")
    if shown := _headline_comparisons(report, m):
        parts.append(_report_verdicts_sentence(shown))
    if asked := _behaviour_comparisons(m):
        parts.append(_report_verdicts_sentence(asked, "behaviour"))
    if m.divergence and m.divergence.top1_agreement:
        agreement, change = format_percent(m.divergence.top1_agreement.value), render_ppl_change(m.divergence)
        perplexity = f", and its perplexity changes by {change}" if change != DASH else ""
        parts.append(f"It picks the baseline's next token {agreement} of the time{perplexity}.")
    if said := worst_domain_sentence(m):
        parts.append(f"It {said}.")
    if said := similarity_sentence(m.similarity):
        parts.append(f"{said[0].upper()}{said[1:]}.")
    parts.append(pace_sentence(m.speed, baseline.speed, baseline.file.label))
    return " ".join(part for part in parts if part) or "has no value to compare."


def _pareto_standing_sentence(said: str | None) -> str:
    """How the file stands beside others; empty for files on the Pareto front."""
    return f" It is {said}." if said else ""


def _headline_comparisons(report: EvalReport, m: Measurement) -> list[Comparison]:
    found = {(c.task, c.metric): c for c in m.comparisons}
    keys = ((s.task, s.metric) for s in headline_scores(report.suite, report.measurements[0].scores))
    return [found[key] for key in keys if key in found]


def _behaviour_comparisons(m: Measurement) -> list[Comparison]:
    """By the names that people read."""
    compared = [(score.suite, score.comparison) for score in m.behaviours if score.comparison]
    return [found.model_copy(update={"task": BEHAVIOUR_TITLES[suite]}) for suite, found in compared]


def _report_verdicts_sentence(shown: Sequence[Comparison], what: str = "task") -> str:
    """Such as: Of 6 tasks, it is the same on 3 and worse on 1 (arc_easy); 2 have too few questions to tell."""
    groups: dict[str, list[Comparison]] = {}
    for c in sorted(shown, key=lambda c: (GOOD_TO_BAD.index(c.verdict), -abs(c.delta.value))):
        groups.setdefault(c.verdict, []).append(c)
    told = [
        _report_verdict_tasks(name, which)
        for name, which in groups.items()
        if which[0].verdict in ("better", "same", "worse")
    ]
    open_ = [
        _report_verdicts_left_open(which)
        for which in groups.values()
        if which[0].verdict in ("too few questions", "no signal")
    ]
    parts = ([f"it is {_joined_report_words(told)}"] if told else []) + ([_joined_report_words(open_)] if open_ else [])
    return f"Of {len(shown)} {what}{'s' * (len(shown) > 1)}, {'; '.join(parts)}."


def _joined_report_words(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _report_verdict_tasks(name: str, which: Sequence[Comparison]) -> str:
    n = len(which)
    if name == "same":
        return f"the same on {n}"
    names = [c.task for c in which[:_MAX_NAMED]] + ([f"{n - _MAX_NAMED} more"] if n > _MAX_NAMED else [])
    return f"{name} on {n} ({', '.join(names)})"


def _report_verdicts_left_open(which: Sequence[Comparison]) -> str:
    what = "no signal" if which[0].verdict == "no signal" else "too few questions to tell"
    return f"{len(which)} {'has' if len(which) == 1 else 'have'} {what}"


# ---- shared with the tables --------------------------------------------------------------------------


def render_ppl_change(d: Divergence) -> str:
    """exp(ln ratio) - 1 with its 95 % interval."""
    change = intervals.ppl_change_interval(d)
    return DASH if change is None else str(format_change_interval(change))
