"""The card's lists: how it was measured, what was not, what the server could not do, and how the files were made."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from quantyard.card.blocks import Block, Items
from quantyard.card.cells import task_name
from quantyard.card.escaping import Safe, code, joined, text
from quantyard.card.provenance import apart, made
from quantyard.card.subject import Subject
from quantyard.formatting.numbers import count, duration, human_bytes
from quantyard.protocol.evaluation import TaskEntry
from quantyard.protocol.measurements import EvalReport

_MAX_NAMED: Final = 20


def lists(subject: Subject) -> Iterator[Block]:
    """Every list that says something."""
    found = {
        "contract-findings": ("contract findings", _contract_findings(subject)),
        "measured": ("how it was measured", _measured(subject)),
        "not-measured": ("what was not measured", _not_measured(subject)),
        "apart": ("what sets files apart", apart(subject)),
        "made": ("how it was made", made(subject)),
    }
    yield from (Items(name, title, tuple(items)) for name, (title, lines) in found.items() if (items := list(lines)))


def _contract_findings(subject: Subject) -> Iterator[Safe]:
    """What failed or is not supported, once for all files of which the same is true."""
    seen: dict[tuple[str, str, str], list[str]] = {}
    for label in subject.quants:
        report = subject.manifest.contracts.get(label)
        for check in report.checks if report else ():
            if check.status != "passed":
                seen.setdefault((check.name, check.status, check.finding), []).append(label)
    for (name, status, finding), labels in seen.items():
        told = f"**{status}**" if status == "failed" else status
        yield Safe(f"{text(name)}: {told} ({joined(', ', map(text, labels))}): {text(finding)}")


# ---- how it was measured -----------------------------------------------------------------------------


def _measured(subject: Subject) -> Iterator[Safe]:
    report = subject.report
    if report is None:
        return
    suite = report.suite
    asked = f", {count(report.n_questions)} questions" if report.n_questions else ""
    took = f"; {duration(report.duration_s)} in all" if report.duration_s else ""
    yield Safe(f"Suite {code(suite.name)}{asked}, seed {suite.seed}{took}.")
    if suite.tasks:
        how = "in the chat template of the model" if suite.apply_chat_template else "as plain text"
        yield Safe(f"Tasks by lm-evaluation-harness, in one process with llama.cpp, {how}: {_entries(suite.tasks)}.")
    yield from _divergence(report)
    yield from _speed(report)
    yield from _pairs("Versions", report.versions)
    yield from _pairs("Hardware", report.hardware)
    yield from _gate(subject)
    yield from _hidden(subject)


def _entries(tasks: tuple[TaskEntry, ...]) -> Safe:
    rest = [text(f"and {len(tasks) - _MAX_NAMED} more")] if len(tasks) > _MAX_NAMED else []
    return joined(", ", [*map(_entry, tasks[:_MAX_NAMED]), *rest])


def _entry(task: TaskEntry) -> Safe:
    shots = "" if task.num_fewshot is None else f"{task.num_fewshot} shots"
    limit = "" if task.limit is None else f"the first {count(task.limit)} questions"
    more = ", ".join(part for part in (shots, limit) if part)
    return Safe(f"{text(task.task, 60)} ({more})" if more else text(task.task, 60))


def _divergence(report: EvalReport) -> Iterator[Safe]:
    if found := next((m.divergence for m in report.measurements if m.divergence), None):
        chunks = f"{count(found.n_chunks)} chunks of {count(found.n_ctx)}"
        yield Safe(
            f"Perplexity (PPL) and KL divergence (KLD, in nats) over {count(found.n_tokens)} tokens of "
            f"{text(found.text)}, in {chunks}, as llama-perplexity defines them."
        )


def _speed(report: EvalReport) -> Iterator[Safe]:
    """Once for all files that were timed alike."""
    timed = (m.speed for m in report.measurements if m.speed)
    for settings, threads, n_ctx, gpu in dict.fromkeys((s.settings, s.threads, s.n_ctx, s.n_gpu_layers) for s in timed):
        layers = "all layers" if gpu < 0 else f"{gpu} layers"
        where = f"{threads} threads, {layers} on a GPU" if gpu else f"{threads} threads, no GPU"
        yield Safe(
            f"Speed and peak memory: {count(settings.prompt_tokens)} tokens in, {count(settings.generated_tokens)} "
            f"out, median of {settings.repeats}, context of {count(n_ctx)} tokens, {where}."
        )


def _pairs(name: str, found: Mapping[str, object]) -> Iterator[Safe]:
    parts = [_pair(key, value) for key, value in list(found.items())[:_MAX_NAMED]]
    if parts:
        yield Safe(f"{name}: {joined(', ', parts)}.")


def _pair(key: str, value: object) -> Safe:
    if key.endswith("_bytes") and isinstance(value, int):
        return Safe(f"{text(key.removesuffix('_bytes').replace('_', ' '))} {human_bytes(value)}")
    return Safe(f"{text(key)} {text(value)}")


def _gate(subject: Subject) -> Iterator[Safe]:
    gate = subject.manifest.gate
    if gate is None:
        return
    counts = Counter(result.outcome for result in gate.results if result.quant in subject.quants)
    told = ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items())) or "no budget applies"
    yield Safe(f"Quality gate {text(gate.budgets)} (SHA-256 `{gate.sha256[:12]}`), suite {code(gate.suite)}: {told}."
               if re.fullmatch("[0-9a-f]{64}", gate.sha256) else
               f"Quality gate {text(gate.budgets)}, suite {code(gate.suite)}: {told}.")  # fmt: skip


def _hidden(subject: Subject) -> Iterator[Safe]:
    """The tasks inside groups, and further metrics, are in the manifest alone."""
    shown = {(s.task, s.metric) for s in subject.headlines}
    left = [c for m in subject.measured.values() for c in m.comparisons if (c.task, c.metric) not in shown]
    if left:
        such = task_name(left[0].task, left[0].metric)
        yield Safe(f"{count(len(left))} further comparisons, such as {such}, are in `manifest.json`.")


# ---- what was not ------------------------------------------------------------------------------------


def _not_measured(subject: Subject) -> Iterator[Safe]:
    report = subject.report
    if report is None:
        yield Safe("Anything: these files have not been evaluated.")
    else:
        yield from _missing(subject, report)
    languages = subject.manifest.source.card.languages
    if len(languages) > 1:
        named = joined(", ", [code(language, 20) for language in languages[:_MAX_NAMED]])
        yield Safe(f"Languages other than those of the tasks; the model's card names {named}.")
    else:
        yield Safe("Languages other than those of the tasks.")
    yield Safe("Whether the questions were in the training data.")
    yield Safe("Safety: nothing here says what the model will refuse or make up.")
    untested = [label for label in subject.quants if label not in subject.manifest.contracts]
    if untested:
        yield Safe(f"How it serves: no contract test of {joined(', ', map(code, untested))}.")


def _missing(subject: Subject, report: EvalReport) -> Iterator[Safe]:
    if unmeasured := [label for label in subject.quants if label not in subject.measured]:
        yield Safe(f"{joined(', ', map(code, unmeasured))}: not evaluated at all.")
    if not any(m.scores for m in report.measurements):
        yield Safe("Tasks: the suite has none.")
    for what, name in (("Divergence from the baseline", "divergence"), ("Speed and memory", "speed")):
        without = [label for label, m in subject.measured.items() if getattr(m, name) is None]
        if without:
            yield Safe(f"{what} of {joined(', ', map(code, without))}.")
    yield from _context(report)
    for label, found in subject.measured.items():
        if found.n_truncated:
            yield Safe(f"The beginning of {count(found.n_truncated)} requests of {code(label)}: they were too long.")


def _context(report: EvalReport) -> Iterator[Safe]:
    speeds = [m.speed for m in report.measurements if m.speed]
    if speeds and not any(s.n_gpu_layers for s in speeds):
        yield Safe("Speed on a GPU.")
    texts = [m.divergence.n_ctx for m in report.measurements if m.divergence]
    if longest := max([*texts, *(s.n_ctx for s in speeds)], default=0):
        yield Safe(f"Long context: divergence and speed were measured within {count(longest)} tokens, and a longer "
                   "context takes more memory than the table says.")  # fmt: skip
