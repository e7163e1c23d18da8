"""The card's tables: files, speed, tasks, contract, gate, hashes. Rows are the published files, the largest first."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from types import ModuleType
from typing import Final

from quantyard.card import cells as cells_now
from quantyard.card.blocks import Block, Table, table
from quantyard.card.cells import NOTHING
from quantyard.card.escaping import Safe, code, text
from quantyard.card.subject import Subject
from quantyard.errors import UnknownQuant
from quantyard.protocol.gate import BudgetResult
from quantyard.protocol.measurements import Measurement, Score, Verdict
from quantyard.quants.catalog import find

_GOOD_TO_BAD: Final[tuple[Verdict, ...]] = ("same", "better", "worse", "too few questions", "no signal")
NOT_COMPARED: Final = Safe("not comparable")


def tables(subject: Subject, cells: ModuleType = cells_now) -> Iterator[Block]:
    """Every table that has a row.

    Args:
        cells: how numbers are written: as now, or as an earlier version did.
    """
    found = [
        _gate(cells, subject, "gate-failed", "failed"), _gate(cells, subject, "gate-open", "too few questions"),
        _gate(cells, subject, "gate-unmeasured", "not measured"),
        _choice(cells, subject), _files(cells, subject), _speed(cells, subject), _verdicts(subject),
        *task_tables(subject, cells), _contract(cells, subject), _hashes(cells, subject),
    ]  # fmt: skip
    yield from (block for block in found if block)


def _choice(cells: ModuleType, subject: Subject) -> Table | None:
    """Which file for which memory, the smallest first."""
    head = ("memory", "file", "size", "what it costs", "when to choose it")
    rows = [
        (_memory(cells, subject.measurement(label)), code(label), cells.size(record.size_bytes),
         _cost(cells, subject.measurement(label)), _use(label))
        for label, record in reversed(subject.quants.items())
    ]  # fmt: skip
    return table("choice", "table of choices", head, rows, words=("file", "what it costs", "when to choose it"))


def _memory(cells: ModuleType, found: Measurement | None) -> Safe:
    if found is None or found.speed is None:
        return Safe("not measured")
    return Safe(f"{cells.speed(found)[2]}")


def _cost(cells: ModuleType, found: Measurement | None) -> Safe:
    """The number that most people compare."""
    change = cells.ppl_change(found.divergence) if found and found.divergence else NOTHING
    return change if change == NOTHING else Safe(f"perplexity {change}")


def _use(label: str) -> Safe:
    try:
        return text(find(label).use)
    except UnknownQuant:
        return NOTHING


def _files(cells: ModuleType, subject: Subject) -> Table | None:
    head = ("file", "size", "bits per weight", "PPL", "ΔPPL", "mean KLD", "p99 KLD", "same top token")
    rows = [
        (_name_of(subject, label), cells.size(q.size_bytes), cells.bits(q.bits_per_weight),
         *_quality(cells, subject.measurement(label)))
        for label, q in subject.quants.items()
    ]  # fmt: skip
    base = subject.baseline
    if base and base.file.label not in subject.quants:
        facts = (cells.size(base.file.size_bytes), cells.bits(base.file.bits_per_weight))
        rows.insert(0, (_name_of(subject, base.file.label), *facts, *_quality(cells, base)))
    return table("files", "files table", head, rows)


def _quality(cells: ModuleType, found: Measurement | None) -> tuple[Safe, ...]:
    quality: tuple[Safe, ...] = cells.quality(found.divergence if found else None)
    return quality


def _name_of(subject: Subject, label: str) -> Safe:
    """A file in the first column of a table."""
    is_baseline = subject.report is not None and label == subject.report.baseline
    return Safe(f"{code(label)} (baseline)") if is_baseline else code(label)


def _speed(cells: ModuleType, subject: Subject) -> Table | None:
    head = ("file", "prompt tokens/s", "generated tokens/s", "peak memory")
    rows = [(_name_of(subject, label), *cells.speed(m)) for label, m in subject.measured.items() if m.speed]
    base = subject.baseline
    if rows and base and base.speed and base.file.label not in subject.quants:
        rows.insert(0, (_name_of(subject, base.file.label), *cells.speed(base)))
    return table("speed", "speed table", head, rows)


# ---- tasks -------------------------------------------------------------------------------------------


def _verdicts(subject: Subject) -> Table | None:
    """How many tasks ended how, per file."""
    shown = {(s.task, s.metric) for s in subject.headlines}
    counts = {
        label: Counter(c.verdict for c in m.comparisons if (c.task, c.metric) in shown)
        for label, m in subject.measured.items() if m.comparisons
    }  # fmt: skip
    used = [verdict for verdict in _GOOD_TO_BAD if any(count[verdict] for count in counts.values())]
    rows = [(code(label), *(Safe(count[verdict]) for verdict in used)) for label, count in counts.items()]
    return table("verdicts", "verdicts table", ("file", *used), rows) if used else None


def task_tables(subject: Subject, cells: ModuleType = cells_now) -> Iterator[Table]:
    """One per published file that was measured; where it is the baseline, its scores alone."""
    for number, (label, found) in enumerate(subject.measured.items(), 1):
        name = f"tasks-{number}-{re.sub(r'[^A-Za-z0-9_.-]', '', label)[:40]}"
        base = subject.baseline
        if base is None or found is base:
            head = ["task", "questions", str(text(label))]
            rows: list[tuple[Safe, ...]] = [
                (_name(cells, s), cells.count(s.n), cells.score(s)) for s in subject.headlines
            ]
        else:
            head = ["task", "questions", str(text(base.file.label)), str(text(label)), "Δ (95 %)", "verdict"]
            rows = [_task_row(cells, found, s) for s in subject.headlines]
        if made := table(name, f"tasks of {text(label)}", head, rows, words=("verdict",)):
            yield made


def _task_row(cells: ModuleType, found: Measurement, base: Score) -> tuple[Safe, ...]:
    key = (base.task, base.metric)
    compared = next((c for c in found.comparisons if (c.task, c.metric) == key), None)
    if compared is None:
        own = next((s for s in found.scores if (s.task, s.metric) == key), None)
        return (_name(cells, base), cells.count(base.n), cells.score(base), cells.score(own), NOTHING, NOT_COMPARED)
    share = base.higher_is_better
    told = (*cells.values(compared, share=share), cells.delta(compared, share=share))
    return (_name(cells, base), cells.count(compared.n), *told, cells.verdict(compared, base.chance))


def _name(cells: ModuleType, found: Score) -> Safe:
    name: Safe = cells.task_name(found.task, found.metric)
    return name


# ---- the rest ----------------------------------------------------------------------------------------


def _contract(cells: ModuleType, subject: Subject) -> Table | None:
    head = ("file", "passed", "not supported", "failed", cells.CONFORMANCE)
    rows = [
        (code(label), *(Safe(len(found.with_status(status))) for status in ("passed", "not supported", "failed")),
         cells.conformance(found.schemas))
        for label in subject.quants if (found := subject.manifest.contracts.get(label))
    ]  # fmt: skip
    return table("contract", "contract table", head, rows)


def _gate(cells: ModuleType, subject: Subject, name: str, outcome: str) -> Table | None:
    found = [r for r in subject.manifest.gate.results if r.outcome == outcome] if subject.manifest.gate else []
    rows = [_gate_row(cells, result) for result in found if result.quant in subject.quants]
    head = ("budget", "limit", "found", "interval", "finding")
    return table(name, f"gate table ({outcome})", head, rows, words=("interval", "finding"), quoted=True)


def _gate_row(cells: ModuleType, found: BudgetResult) -> tuple[Safe, ...]:
    budget = " ".join(part for part in (found.quant, found.budget, found.task) if part)
    return (text(budget), cells.limit(found), cells.budgeted(found), cells.between(found), text(found.finding))


def _hashes(cells: ModuleType, subject: Subject) -> Table | None:
    files = [file for record in subject.quants.values() for file in record.files]
    rows = [(code(file.path), cells.count(file.size_bytes), code(file.sha256 or "")) for file in files]
    rows += [(code(m.file), cells.count(m.size_bytes), code(m.sha256)) for m in subject.imatrices]
    return table("hashes", "hashes table", ("file", "bytes", "SHA-256"), rows)
