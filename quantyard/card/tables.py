"""The card's tables: files, speed, tasks, API test, gate, hashes. Rows are the published files, the largest first."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from types import ModuleType
from typing import Final

from quantyard.card import cells as cells_now
from quantyard.card.blocks import Block, CardTable, card_table
from quantyard.card.cells import NOTHING
from quantyard.card.escaping import SafeMarkdown, escape_markdown, markdown_code
from quantyard.card.subject import CardSubject
from quantyard.errors import UnknownQuant
from quantyard.protocol.gate import BudgetResult
from quantyard.protocol.measurements import Measurement, Score, Verdict
from quantyard.quants.catalog import find_quant

_GOOD_TO_BAD: Final[tuple[Verdict, ...]] = ("same", "better", "worse", "too few questions", "no signal")
NOT_COMPARED: Final = SafeMarkdown("not comparable")


def card_tables(subject: CardSubject, cells: ModuleType = cells_now) -> Iterator[Block]:
    """Every table that has rows.

    Args:
        cells: the notation of numbers: the current one, or an earlier version's.
    """
    found = [
        _gate(cells, subject, "gate-failed", "failed"), _gate(cells, subject, "gate-open", "too few questions"),
        _gate(cells, subject, "gate-unmeasured", "not measured"),
        _choice(cells, subject), _files(cells, subject), _speed(cells, subject), _verdicts(subject),
        *card_task_tables(subject, cells), _contract(cells, subject), _hashes(cells, subject),
    ]  # fmt: skip
    yield from (block for block in found if block)


def _choice(cells: ModuleType, subject: CardSubject) -> CardTable | None:
    """The files by memory, the smallest first."""
    head = ("memory", "file", "size", "what it costs", "when to choose it")
    rows = [
        (_memory(cells, subject.measurement(label)), markdown_code(label), cells.card_size(record.size_bytes),
         _cost(cells, subject.measurement(label)), _use(label))
        for label, record in reversed(subject.quants.items())
    ]  # fmt: skip
    return card_table("choice", "table of choices", head, rows, words=("file", "what it costs", "when to choose it"))


def _memory(cells: ModuleType, found: Measurement | None) -> SafeMarkdown:
    if found is None or found.speed is None:
        return SafeMarkdown("not measured")
    return SafeMarkdown(f"{cells.card_speed(found)[2]}")


def _cost(cells: ModuleType, found: Measurement | None) -> SafeMarkdown:
    """The change of perplexity, which most people compare."""
    change = cells.card_ppl_change(found.divergence) if found and found.divergence else NOTHING
    return change if change == NOTHING else SafeMarkdown(f"perplexity {change}")


def _use(label: str) -> SafeMarkdown:
    try:
        return escape_markdown(find_quant(label).use)
    except UnknownQuant:
        return NOTHING


def _files(cells: ModuleType, subject: CardSubject) -> CardTable | None:
    head = ("file", "size", "bits per weight", "PPL", "ΔPPL", "mean KLD", "p99 KLD", "same top token")
    rows = [
        (_name_of(subject, label), cells.card_size(q.size_bytes), cells.card_bits(q.bits_per_weight),
         *_quality(cells, subject.measurement(label)))
        for label, q in subject.quants.items()
    ]  # fmt: skip
    base = subject.baseline
    if base and base.file.label not in subject.quants:
        facts = (cells.card_size(base.file.size_bytes), cells.card_bits(base.file.bits_per_weight))
        rows.insert(0, (_name_of(subject, base.file.label), *facts, *_quality(cells, base)))
    return card_table("files", "files table", head, rows)


def _quality(cells: ModuleType, found: Measurement | None) -> tuple[SafeMarkdown, ...]:
    quality: tuple[SafeMarkdown, ...] = cells.card_quality(found.divergence if found else None)
    return quality


def _name_of(subject: CardSubject, label: str) -> SafeMarkdown:
    """A file in the first column of a table."""
    is_baseline = subject.report is not None and label == subject.report.baseline
    return SafeMarkdown(f"{markdown_code(label)} (baseline)") if is_baseline else markdown_code(label)


def _speed(cells: ModuleType, subject: CardSubject) -> CardTable | None:
    head = ("file", "prompt tokens/s", "generated tokens/s", "peak memory")
    rows = [(_name_of(subject, label), *cells.card_speed(m)) for label, m in subject.measured.items() if m.speed]
    base = subject.baseline
    if rows and base and base.speed and base.file.label not in subject.quants:
        rows.insert(0, (_name_of(subject, base.file.label), *cells.card_speed(base)))
    return card_table("speed", "speed table", head, rows)


# ---- tasks -------------------------------------------------------------------------------------------


def _verdicts(subject: CardSubject) -> CardTable | None:
    """The number of tasks by verdict, per file."""
    shown = {(s.task, s.metric) for s in subject.headlines}
    counts = {
        label: Counter(c.verdict for c in m.comparisons if (c.task, c.metric) in shown)
        for label, m in subject.measured.items() if m.comparisons
    }  # fmt: skip
    used = [verdict for verdict in _GOOD_TO_BAD if any(count[verdict] for count in counts.values())]
    rows = [
        (markdown_code(label), *(SafeMarkdown(count[verdict]) for verdict in used)) for label, count in counts.items()
    ]
    return card_table("verdicts", "verdicts table", ("file", *used), rows) if used else None


def card_task_tables(subject: CardSubject, cells: ModuleType = cells_now) -> Iterator[CardTable]:
    """One table per measured file; the baseline's has only its scores."""
    for number, (label, found) in enumerate(subject.measured.items(), 1):
        name = f"tasks-{number}-{re.sub(r'[^A-Za-z0-9_.-]', '', label)[:40]}"
        base = subject.baseline
        if base is None or found is base:
            head = ["task", "questions", str(escape_markdown(label))]
            rows: list[tuple[SafeMarkdown, ...]] = [
                (_name(cells, s), cells.card_count(s.n), cells.card_score(s)) for s in subject.headlines
            ]
        else:
            head = [
                "task",
                "questions",
                str(escape_markdown(base.file.label)),
                str(escape_markdown(label)),
                "Δ (95 %)",
                "verdict",
            ]
            rows = [_task_row(cells, found, s) for s in subject.headlines]
        if made := card_table(name, f"tasks of {escape_markdown(label)}", head, rows, words=("verdict",)):
            yield made


def _task_row(cells: ModuleType, found: Measurement, base: Score) -> tuple[SafeMarkdown, ...]:
    key = (base.task, base.metric)
    compared = next((c for c in found.comparisons if (c.task, c.metric) == key), None)
    if compared is None:
        own = next((s for s in found.scores if (s.task, s.metric) == key), None)
        return (
            _name(cells, base),
            cells.card_count(base.n),
            cells.card_score(base),
            cells.card_score(own),
            NOTHING,
            NOT_COMPARED,
        )
    share = base.higher_is_better
    told = (*cells.card_score_values(compared, share=share), cells.card_delta(compared, share=share))
    return (_name(cells, base), cells.card_count(compared.n), *told, cells.card_verdict(compared, base.chance))


def _name(cells: ModuleType, found: Score) -> SafeMarkdown:
    name: SafeMarkdown = cells.card_task_name(found.task, found.metric)
    return name


# ---- the rest ----------------------------------------------------------------------------------------


def _contract(cells: ModuleType, subject: CardSubject) -> CardTable | None:
    head = ("file", "passed", "not supported", "failed", cells.CONFORMANCE)
    rows = [
        (markdown_code(label),
            *(SafeMarkdown(len(found.with_status(status))) for status in ("passed", "not supported", "failed")),
         cells.card_conformance(found.schemas))
        for label in subject.quants if (found := subject.manifest.contracts.get(label))
    ]  # fmt: skip
    return card_table("contract", "API test table", head, rows)


def _gate(cells: ModuleType, subject: CardSubject, name: str, outcome: str) -> CardTable | None:
    found = [r for r in subject.manifest.gate.results if r.outcome == outcome] if subject.manifest.gate else []
    rows = [_gate_row(cells, result) for result in found if result.quant in subject.quants]
    head = ("budget", "limit", "found", "interval", "finding")
    return card_table(name, f"gate table ({outcome})", head, rows, words=("interval", "finding"), quoted=True)


def _gate_row(cells: ModuleType, found: BudgetResult) -> tuple[SafeMarkdown, ...]:
    budget = " ".join(part for part in (found.quant, found.budget, found.task) if part)
    return (
        escape_markdown(budget),
        cells.card_budget_limit(found),
        cells.card_budget_value(found),
        cells.card_budget_interval(found),
        escape_markdown(found.finding),
    )


def _hashes(cells: ModuleType, subject: CardSubject) -> CardTable | None:
    files = [file for record in subject.quants.values() for file in record.files]
    rows = [
        (markdown_code(file.path), cells.card_count(file.size_bytes), markdown_code(file.sha256 or ""))
        for file in files
    ]
    rows += [
        (markdown_code(m.file), cells.card_count(m.size_bytes), markdown_code(m.sha256)) for m in subject.imatrices
    ]
    return card_table("hashes", "hashes table", ("file", "bytes", "SHA-256"), rows)
