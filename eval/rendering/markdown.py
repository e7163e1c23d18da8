"""Renders an `EvalReport` as Markdown (`report.md`).

Shares and accuracies are shown in per cent and their differences in percentage points; perplexities with four digits;
an em dash stands for what was not measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from eval.rendering.cache_table import markdown_cache_section
from eval.rendering.domains import render_report_domains
from eval.rendering.markdown_table import markdown_table
from eval.rendering.openvino_table import markdown_openvino_section
from eval.rendering.sentences import GOOD_TO_BAD, render_ppl_change, render_report_sentences
from eval.rendering.speed_table import markdown_speed_section
from quantyard.formatting import numbers
from quantyard.formatting.numbers import DASH
from quantyard.metrics.behaviour_figures import (
    BEHAVIOUR_FIGURES,
    BehaviourCell,
    behaviour_rows,
    behaviour_variance_sentence,
    behaviours_left_out,
)
from quantyard.metrics.divergence_parts import (
    BACKEND_PART,
    FILE_PART,
    backend_divergence_shown,
    divergence_parts_notes,
    file_divergence_shown,
)
from quantyard.metrics.headline_metrics import headline_scores, is_perplexity_metric
from quantyard.metrics.kinds import score_metric_kind
from quantyard.metrics.layout_figures import LAYOUT_COLUMNS, LAYOUT_NOTE, layout_rows
from quantyard.metrics.similarity_figures import SimilarityFigure, similarity_figures
from quantyard.metrics.verdicts import open_verdict_note, verdict_legend
from quantyard.protocol.measurements import Comparison, EvalReport, Measurement, Score
from quantyard.protocol.task_results import SelfCheck

_HOW_TO_READ = """\
Every file answered the same questions as the baseline, so differences are paired. *Lost* questions were right on the
baseline and wrong here, *gained* ones the other way round. Intervals are 95 %: Wilson's for a score, Tango's for a
difference of right-or-wrong answers, t intervals for real-valued scores, a jackknife over documents for perplexities.
Questions about one passage count as a cluster; a group's row pools all questions of its tasks. p is that of McNemar's
exact test, or of Student's for other scores, after Holm's correction over all comparisons of this report: the chance
that any "worse" or "better" in it is false is at most 5 %.

{verdicts}"""
_BEHAVIOUR = """\
Answers to scenarios of our own, checked by programs. Every file was asked the same, so differences are paired. Length
is in tokens; an unfinished answer reached its limit, a loop is one that ends in a text that repeats itself. Behind both
shares stands the difference from the baseline in points."""
_CHECKED = """\
The self-check ran before the first task. Differences are between log-probabilities, in nats per token; noise is the
difference between two ways of computing the same value."""


def render_report_markdown(report: EvalReport) -> str:
    """The whole report."""
    parts = [
        _markdown_head(report),
        render_report_sentences(report),
        _markdown_files_table(report),
        render_report_domains(report),
        markdown_cache_section(report),
        markdown_openvino_section(report),
        markdown_speed_section(report),
        *_markdown_task_sections(report),
        _markdown_layout_noise(report),
        _markdown_behaviours(report),
        _markdown_self_check(report),
    ]
    legend = verdict_legend(report).items()
    reading = _HOW_TO_READ.format(verdicts="\n".join(f"- **{verdict}**: {meaning}." for verdict, meaning in legend))
    if any(m.comparisons or m.behaviours for m in report.measurements[1:]):
        parts.append(f"## How to read this\n\n{reading}")
    parts.append(_markdown_not_measured(report))
    return "\n\n".join(part for part in parts if part) + "\n"


# ---- the head ----------------------------------------------------------------------------------------


def _markdown_head(report: EvalReport) -> str:
    suite = report.suite
    what = f"Suite **{suite.name}**"
    if report.n_questions:
        what += f", {numbers.format_count(report.n_questions)} questions per file"
    facts = [
        f"{what}, against the baseline **{report.baseline}**. {_markdown_how_measured(report)}",
        f"Measured in {numbers.format_duration(report.duration_s)}." if report.duration_s else "",
        _markdown_list_line("Versions", report.versions.items()),
        _markdown_list_line("Hardware", report.hardware.items()),
    ]
    return f"# {report.title}: what quantization cost\n\n" + "  \n".join(fact for fact in facts if fact)


def _markdown_how_measured(report: EvalReport) -> str:
    parts = []
    if report.suite.tasks:
        template = " in the model's chat template" if report.suite.apply_chat_template else ""
        parts.append(f"Tasks by lm-evaluation-harness on llama.cpp{template}, seed {report.suite.seed}")
    if first := next((m.divergence for m in report.measurements if m.divergence), None):
        text = (
            f"divergence over {numbers.format_count(first.n_tokens)} tokens of {first.text}, in chunks of {first.n_ctx}"
        )
        parts.append(text if parts else text.capitalize())
    if similar := next((m.similarity for m in report.measurements if m.similarity), None):
        queries, documents = numbers.format_count(similar.n_queries), numbers.format_count(similar.n_documents)
        parts.append(f"{queries} queries and {documents} documents in several languages, from Quantyard")
    return "; ".join(parts) + "." if parts else ""


def _markdown_list_line(name: str, items: Iterable[tuple[str, object]]) -> str:
    text = ", ".join(numbers.format_fact(key, value) for key, value in items)
    return f"{name}: {text}." if text else ""


# ---- tables ------------------------------------------------------------------------------------------


def _markdown_files_table(report: EvalReport) -> str:
    figures = similarity_figures(report.measurements)
    head = (
        "file", "size", "bits per weight", *(figure.name for figure in figures), "PPL", "rolling PPL", "ΔPPL",
        "mean KLD", FILE_PART, BACKEND_PART, "p99 KLD", "same top token", "prompt tokens/s",
        "generated tokens/s", "peak memory",
    )  # fmt: skip
    rows = [_markdown_file_row(m, figures) for m in report.measurements]
    keep = [i for i in range(len(head)) if i == 0 or any(row[i] != DASH for row in rows)]
    table = markdown_table([head[i] for i in keep], ([row[i] for i in keep] for row in rows), 1)
    notes = "".join(f"\n\n{note}" for note in divergence_parts_notes(report.measurements))
    return f"## Files\n\n{table}{notes}{_markdown_languages(report)}"


def _markdown_languages(report: EvalReport) -> str:
    """Mean cosines of the texts of each language."""
    found = [(m.file.label, m.similarity.cosine_by_language) for m in report.measurements if m.similarity]
    names = list(dict.fromkeys(name for _, by_language in found for name in by_language))
    if not names:
        return ""
    rows = [
        [label, *(numbers.format_cosine(by_language[name]) for name in names)] for label, by_language in found
        if by_language
    ]  # fmt: skip
    return f"\n\nMean cosine by language:\n\n{markdown_table(['file', *names], rows, 1)}"


def _markdown_file_row(m: Measurement, figures: Sequence[SimilarityFigure] = ()) -> list[str]:
    d, s, file = m.divergence, m.speed, m.file
    return [
        file.label, numbers.format_file_size(file.size_bytes), numbers.format_bits_per_weight(file.bits_per_weight),
        *(figure.shown(m.similarity) for figure in figures),
        numbers.format_perplexity(d.perplexity.value) if d else DASH,
        numbers.format_perplexity(d.rolling_perplexity) if d and d.rolling_perplexity else DASH,
        render_ppl_change(d) if d else DASH,
        numbers.format_kld(d.mean_kld.value) if d and d.mean_kld else DASH,
        file_divergence_shown(d), backend_divergence_shown(d),
        numbers.format_kld(d.kld_percentiles["99"]) if d and "99" in d.kld_percentiles else DASH,
        numbers.format_percent(d.top1_agreement.value) if d and d.top1_agreement else DASH,
        numbers.format_tokens_per_s(s.prompt_tokens_per_s) if s else DASH,
        numbers.format_tokens_per_s(s.generated_tokens_per_s) if s else DASH,
        numbers.format_memory(s.peak_memory_bytes) if s else DASH,
    ]  # fmt: skip


def _markdown_task_sections(report: EvalReport) -> list[str]:
    """One section per file with the metrics of the suite's entries; tasks within groups are summarized in a line."""
    sections = [_markdown_task_section(report, m) for m in report.measurements[1:] if m.comparisons]
    return [f"## Tasks\n\n{sections[0]}", *sections[1:]] if sections else _markdown_scores_alone(report)


def _markdown_task_section(report: EvalReport, m: Measurement) -> str:
    shown = {score.task for score in headline_scores(report.suite, report.measurements[0].scores)}
    chances = {(s.task, s.metric): s.chance for s in report.measurements[0].scores}
    head = ("task", "metric", "verdict", "questions", report.baseline, m.file.label, "Δ (95 %)", "lost / gained", "p")
    first: dict[str, str] = {}
    rows, hidden = [], []
    for c in m.comparisons:
        if c.task not in shown:
            hidden.append(c)
        elif not (is_perplexity_metric(c.metric) and c.task in first):
            rows.append(_markdown_task_row(c, chances.get((c.task, c.metric))))
            first.setdefault(c.task, c.metric)
    text = f"### {m.file.label}\n\n{markdown_table(head, rows, 3)}"
    return f"{text}\n\n{_markdown_hidden_tasks(hidden)}" if hidden else text


def _markdown_hidden_tasks(hidden: Sequence[Comparison]) -> str:
    counts = Counter(c.verdict for c in hidden)
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in GOOD_TO_BAD if counts[verdict])
    return f"Within the groups, {len(hidden)} further comparisons ({told}) are in report.json."


def _markdown_task_row(c: Comparison, chance: float | None) -> list[str]:
    kind = score_metric_kind(c)
    value = [numbers.format_metric_value(x, kind) for x in (c.baseline, c.value)]
    if c.verdict == "no signal" and chance is not None:
        value[0] += f" (chance {numbers.format_percent(chance)})"
    is_paired = c.mcnemar_p is not None
    return [
        c.task, c.metric, _markdown_verdict(c), numbers.format_count(c.n), *value,
        str(numbers.format_delta_interval(c.delta, kind)),
        f"{c.lost} / {c.gained}" if is_paired else DASH,
        DASH if c.adjusted_p is None else numbers.format_p_value(c.adjusted_p),
    ]  # fmt: skip


def _markdown_verdict(c: Comparison) -> str:
    if note := open_verdict_note(c):
        return f"too few questions ({note})"
    return f"**{c.verdict}**" if c.verdict in ("worse", "better") else c.verdict


def _markdown_scores_alone(report: EvalReport) -> list[str]:
    """The scores of the baseline, for a report without other files."""
    shown = headline_scores(report.suite, report.measurements[0].scores)
    if not shown:
        return []
    rows = [(s.task, s.metric, numbers.format_count(s.n), _markdown_score(s)) for s in shown]
    return [f"## Tasks\n\n{markdown_table(('task', 'metric', 'questions', f'{report.baseline} (95 %)'), rows, 2)}"]


def _markdown_score(s: Score) -> str:
    return str(numbers.format_score_interval(s.result, score_metric_kind(s)))


def _markdown_behaviours(report: EvalReport) -> str:
    """One row for each kind of scenario and file."""
    rows = [[row.title, row.label, *map(_markdown_behaviour_cell, row.cells)]
            for row in behaviour_rows(report.measurements)]  # fmt: skip
    if not rows:
        return ""
    heads = ["behaviour", "file", *(figure.name for figure in BEHAVIOUR_FIGURES)]
    told = behaviour_variance_sentence(report.measurements)
    return f"## Behaviour\n\n{_BEHAVIOUR}{f' {told}.' if told else ''}\n\n{markdown_table(heads, rows, 2)}"


def _markdown_behaviour_cell(cell: BehaviourCell) -> str:
    return f"**{cell}**" if cell.text in ("worse", "better") else str(cell)


# ---- the end -----------------------------------------------------------------------------------------


def _markdown_layout_noise(report: EvalReport) -> str:
    rows = [list(row) for row in layout_rows(report.measurements)]
    return f"## Layout noise\n\n{markdown_table(LAYOUT_COLUMNS, rows, 1)}\n\n{LAYOUT_NOTE}" if rows else ""


def _markdown_self_check(report: EvalReport) -> str:
    rows = [_markdown_self_check_row(m.file.label, m.self_check) for m in report.measurements if m.self_check]
    if not rows:
        return ""
    head = ("file", "known answers right", "packed vs plain", "continued vs rolling", "noise (A/A)")
    return f"## Self-check of the measurement\n\n{_CHECKED}\n\n{markdown_table(head, rows, 1)}"


def _markdown_self_check_row(label: str, check: SelfCheck) -> list[str]:
    found = (check.packed_difference, check.rolling_difference, check.noise)
    return [
        label,
        f"{check.known_answers_right} of {check.known_answers}",
        *(numbers.format_digits(x, 2) for x in found),
    ]


def _markdown_not_measured(report: EvalReport) -> str:
    if any(m.similarity for m in report.measurements):
        missing = ["tasks, perplexity, divergence, behaviour and speed: the model does not generate text"]
        return "## Not measured\n\n" + "\n".join(
            f"- {what}" for what in [*missing, *_markdown_without_comparison(report)]
        )
    missing = []
    if not any(m.scores for m in report.measurements):
        missing.append("tasks (the suite has none)")
    missing += _markdown_without_comparison(report)
    missing += behaviours_left_out(report)
    for name, found in (("divergence", "divergence"), ("speed and memory", "speed")):
        without = [m.file.label for m in report.measurements if getattr(m, found) is None]
        if len(without) == len(report.measurements):
            missing.append(f"{name} (the suite asks for none)")
        elif without:
            missing.append(f"{name} of {', '.join(without)}")
    missing += [
        f"the beginning of {m.n_truncated} requests of {m.file.label}: they are longer than the context used"
        for m in report.measurements if m.n_truncated
    ]  # fmt: skip
    missing += [
        f"the answers to {m.n_unanswered} requests of {m.file.label}: it still thought after "
        f"{report.suite.thought_tokens} tokens, and scored as wrong (`thought_tokens` of the suite gives more room)"
        for m in report.measurements if m.n_unanswered
    ]  # fmt: skip
    return "## Not measured\n\n" + "\n".join(f"- {what}" for what in missing) if missing else ""


def _markdown_without_comparison(report: EvalReport) -> list[str]:
    if len(report.measurements) == 1:
        return ["the cost of quantization: no file beside the baseline"]
    shown = {s.task for s in headline_scores(report.suite, report.measurements[0].scores)}
    scored = {(s.task, s.metric): None for s in report.measurements[0].scores if s.task in shown}
    compared = {(c.task, c.metric) for m in report.measurements[1:] for c in m.comparisons}
    why = "its value is not a function of single questions, or there is only one question"
    return [f"a comparison of {task} by {metric}: {why}" for task, metric in scored if (task, metric) not in compared]
