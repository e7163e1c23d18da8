"""The card's lists: how it was measured, what was not measured, API test findings, and how the files were made."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from quantyard.card.blocks import Block, CardList
from quantyard.card.cells import card_task_name
from quantyard.card.escaping import SafeMarkdown, escape_markdown, join_markdown, markdown_code
from quantyard.card.media import card_media
from quantyard.card.provenance import card_file_provenance, card_provenance
from quantyard.card.subject import CardSubject
from quantyard.card.which import card_gate_line, card_settings, card_take_lines
from quantyard.formatting.numbers import format_count, format_duration, format_fact
from quantyard.metrics.behaviour_figures import behaviours_left_out
from quantyard.protocol.api_tests import AS_MEASURED
from quantyard.protocol.evaluation import TaskEntry
from quantyard.protocol.facts import TwinFacts
from quantyard.protocol.measurements import EvalReport

_MAX_NAMED: Final = 20
_PARAGRAPHS: Final = frozenset({"gate", "take"})


def card_lists(subject: CardSubject) -> Iterator[Block]:
    """Every list that is not empty."""
    found = {
        "gate": ("summary of the limits", card_gate_line(subject)),
        "take": ("recommendation", card_take_lines(subject)),
        "settings": ("settings", card_settings(subject)),
    }
    yield from _card_list_blocks(found)
    yield from card_shared_lists(subject, " This was allowed.")


Facts = Callable[[str, object], SafeMarkdown]


def card_fact(name: str, value: object) -> SafeMarkdown:
    """A fact of a machine, or a version."""
    return escape_markdown(format_fact(name, value))


def card_shared_lists(subject: CardSubject, allowed: str, fact: Facts = card_fact) -> Iterator[Block]:
    """The lists that every version of the card has.

    Args:
        allowed: what is added if a difference was allowed.
        fact: how a fact of a machine is written.
    """
    found = {
        "twin": ("what it computes", _card_twin_items(subject, {"proved", "known", "unproved"}, allowed)),
        "twin-warning": ("what it computes", _card_twin_items(subject, {"limited", "differs"}, allowed)),
        "media": ("pictures and sound", card_media(subject)),
        "contract-findings": ("API test findings", _card_contract_items(subject)),
        "measured": ("how it was measured", _card_measured_items(subject, fact)),
        "not-measured": ("what was not measured", _card_not_measured_items(subject)),
        "apart": ("importance matrices and recipes", card_file_provenance(subject)),
        "made": ("how it was made", card_provenance(subject)),
    }
    yield from _card_list_blocks(found)


def _card_list_blocks(found: Mapping[str, tuple[str, Iterator[SafeMarkdown]]]) -> Iterator[Block]:
    for name, (title, lines) in found.items():
        if items := tuple(lines):
            yield CardList(name, title, items, quoted=name == "twin-warning", plain=name in _PARAGRAPHS)


def _card_twin_items(subject: CardSubject, statuses: set[str], allowed: str) -> Iterator[SafeMarkdown]:
    """What a small random model of the same kind showed, if it showed one of these."""
    for _, stage in (*subject.stages("twin"), *subject.stages("parity")):
        facts = TwinFacts.read(stage.facts)
        if facts.status in statuses:
            yield SafeMarkdown(f"{escape_markdown(facts.finding, 2000)}{allowed if facts.allowed else ''}")


def _card_contract_items(subject: CardSubject) -> Iterator[SafeMarkdown]:
    """Checks that failed or are not supported, and how far what is served is from what was measured; identical findings
    of several files share an item.
    """
    seen: dict[tuple[str, str, str], list[str]] = {}
    for label in subject.quants:
        report = subject.manifest.contracts.get(label)
        for check in report.checks if report else ():
            if check.status != "passed" or check.name == AS_MEASURED:
                seen.setdefault((check.name, check.status, check.finding), []).append(label)
    for (name, status, finding), labels in seen.items():
        told = f"**{status}**" if status == "failed" else status
        yield SafeMarkdown(
            f"{escape_markdown(name)}: {told} ({join_markdown(', ', map(escape_markdown, labels))}): "
            f"{escape_markdown(finding)}"
        )


# ---- how it was measured -----------------------------------------------------------------------------


def _card_measured_items(subject: CardSubject, fact: Facts) -> Iterator[SafeMarkdown]:
    report = subject.report
    if report is None:
        return
    suite = report.suite
    asked = f", {format_count(report.n_questions)} questions" if report.n_questions else ""
    took = f"; {format_duration(report.duration_s)} in all" if report.duration_s else ""
    yield SafeMarkdown(f"Suite {markdown_code(suite.name)}{asked}, seed {suite.seed}{took}.")
    if suite.tasks:
        how = "in the chat template of the model" if suite.apply_chat_template else "as plain text"
        yield SafeMarkdown(
            f"Tasks by lm-evaluation-harness, in one process with llama.cpp, {how}: {_card_suite_tasks(suite.tasks)}."
        )
    yield from _card_divergence_items(report)
    yield from _card_similarity_items(report)
    yield from _card_speed_items(report)
    yield from _card_facts_items("Versions", report.versions, fact)
    yield from _card_facts_items("Hardware", report.hardware, fact)
    yield from _card_gate_items(subject)
    yield from _card_hidden_task_items(subject)


def _card_suite_tasks(tasks: tuple[TaskEntry, ...]) -> SafeMarkdown:
    rest = [escape_markdown(f"and {len(tasks) - _MAX_NAMED} more")] if len(tasks) > _MAX_NAMED else []
    return join_markdown(", ", [*map(_card_suite_task, tasks[:_MAX_NAMED]), *rest])


def _card_suite_task(task: TaskEntry) -> SafeMarkdown:
    shots = "" if task.num_fewshot is None else f"{task.num_fewshot} shots"
    limit = "" if task.limit is None else f"{format_count(task.limit)} questions drawn"
    more = ", ".join(part for part in (shots, limit) if part)
    return SafeMarkdown(f"{escape_markdown(task.task, 60)} ({more})" if more else escape_markdown(task.task, 60))


def _card_divergence_items(report: EvalReport) -> Iterator[SafeMarkdown]:
    if found := next((m.divergence for m in report.measurements if m.divergence), None):
        chunks = f"{format_count(found.n_chunks)} chunks of {format_count(found.n_ctx)}"
        yield SafeMarkdown(
            f"Perplexity (PPL) and KL divergence (KLD, in nats) over {format_count(found.n_tokens)} tokens of "
            f"{escape_markdown(found.text)}, in {chunks}, as llama-perplexity defines them."
        )


def _card_similarity_items(report: EvalReport) -> Iterator[SafeMarkdown]:
    if found := next((m.similarity for m in report.measurements if m.similarity), None):
        what = "Embeddings compared by their cosine, and rankings" if found.purpose == "embed" else "Rankings compared"
        yield SafeMarkdown(
            f"{what} by Kendall τ, on {format_count(found.n_queries)} queries and {format_count(found.n_documents)} "
            "documents in several languages, written for Quantyard."
        )


def _card_speed_items(report: EvalReport) -> Iterator[SafeMarkdown]:
    """One item for all files that were timed with the same settings."""
    timed = (m.speed for m in report.measurements if m.speed)
    for settings, threads, n_ctx, gpu in dict.fromkeys((s.settings, s.threads, s.n_ctx, s.n_gpu_layers) for s in timed):
        layers = "all layers" if gpu < 0 else f"{gpu} layers"
        where = f"{threads} threads, {layers} on a GPU" if gpu else f"{threads} threads, no GPU"
        yield SafeMarkdown(
            f"Speed and peak memory: {format_count(settings.prompt_tokens)} tokens in, "
            f"{format_count(settings.generated_tokens)} "
            f"out, median of {settings.repeats}, context of {format_count(n_ctx)} tokens, {where}."
        )


def _card_facts_items(name: str, found: Mapping[str, object], fact: Facts) -> Iterator[SafeMarkdown]:
    parts = [fact(key, value) for key, value in list(found.items())[:_MAX_NAMED]]
    if parts:
        yield SafeMarkdown(f"{name}: {join_markdown(', ', parts)}.")


def _card_gate_items(subject: CardSubject) -> Iterator[SafeMarkdown]:
    gate = subject.manifest.gate
    if gate is None:
        return
    counts = Counter(result.outcome for result in gate.results if result.quant in subject.quants)
    told = ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items())) or "no budget applies"
    yield SafeMarkdown(f"Quality gate {escape_markdown(gate.budgets)} (SHA-256 `{gate.sha256[:12]}`), suite "
    f"{markdown_code(gate.suite)}: {told}."
               if re.fullmatch("[0-9a-f]{64}", gate.sha256) else
               f"Quality gate {escape_markdown(gate.budgets)}, suite {markdown_code(gate.suite)}: {told}.")  # fmt: skip


def _card_hidden_task_items(subject: CardSubject) -> Iterator[SafeMarkdown]:
    """Counts the comparisons that only the manifest has: tasks inside groups, and further metrics."""
    shown = {(s.task, s.metric) for s in subject.headlines}
    left = [c for m in subject.measured.values() for c in m.comparisons if (c.task, c.metric) not in shown]
    if left:
        such = card_task_name(left[0].task, left[0].metric)
        yield SafeMarkdown(f"{format_count(len(left))} further comparisons, such as {such}, are in `manifest.json`.")


# ---- what was not ------------------------------------------------------------------------------------


def _card_not_measured_items(subject: CardSubject) -> Iterator[SafeMarkdown]:
    report = subject.report
    if report is None:
        yield SafeMarkdown("Anything: these files have not been evaluated.")
    else:
        yield from _card_missing_items(subject, report)
    languages = subject.manifest.source.card.languages
    if len(languages) > 1:
        named = join_markdown(", ", [markdown_code(language, 20) for language in languages[:_MAX_NAMED]])
        yield SafeMarkdown(f"Languages other than those of the tasks; the model's card names {named}.")
    else:
        yield SafeMarkdown("Languages other than those of the tasks.")
    yield SafeMarkdown("Whether the questions were in the training data.")
    yield SafeMarkdown("Safety: nothing here says what the model will refuse or make up.")
    untested = [label for label in subject.quants if label not in subject.manifest.contracts]
    if untested:
        yield SafeMarkdown(f"How it serves: no contract test of {join_markdown(', ', map(markdown_code, untested))}.")


def _card_missing_items(subject: CardSubject, report: EvalReport) -> Iterator[SafeMarkdown]:
    if unmeasured := [label for label in subject.quants if label not in subject.measured]:
        yield SafeMarkdown(f"{join_markdown(', ', map(markdown_code, unmeasured))}: not evaluated at all.")
    if not any(m.scores for m in report.measurements):
        yield SafeMarkdown("Tasks: the suite has none.")
    for what, name in (("Divergence from the baseline", "divergence"), ("Speed and memory", "speed")):
        without = [label for label, m in subject.measured.items() if getattr(m, name) is None]
        if without:
            yield SafeMarkdown(f"{what} of {join_markdown(', ', map(markdown_code, without))}.")
    for missing in behaviours_left_out(report):
        yield SafeMarkdown(f"{escape_markdown(missing[0].upper() + missing[1:], 2000)}.")
    yield from _card_context_items(report)
    for label, found in subject.measured.items():
        if found.n_truncated:
            yield SafeMarkdown(
                f"The beginning of {format_count(found.n_truncated)} requests of {markdown_code(label)}: they were "
                f"too long."
            )
        if found.n_unanswered:
            yield SafeMarkdown(
                f"The answers to {format_count(found.n_unanswered)} requests of {markdown_code(label)}: it still "
                f"thought after {format_count(report.suite.thought_tokens)} tokens, which counts as wrong."
            )


def _card_context_items(report: EvalReport) -> Iterator[SafeMarkdown]:
    speeds = [m.speed for m in report.measurements if m.speed]
    if speeds and not any(s.n_gpu_layers for s in speeds):
        yield SafeMarkdown("Speed on a GPU.")
    texts = [m.divergence.n_ctx for m in report.measurements if m.divergence]
    if longest := max([*texts, *(s.n_ctx for s in speeds)], default=0):
        yield SafeMarkdown(f"Long context: divergence and speed were measured within {format_count(longest)} tokens, "
        f"and a longer "
                   "context takes more memory than the table says.")  # fmt: skip
