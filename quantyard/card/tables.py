"""The card's tables: files, speed, tasks, API test, limits, hashes. Rows are the published files, the largest first."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from types import ModuleType
from typing import Final

from quantyard.card import cells as cells_now
from quantyard.card.behaviour_table import card_behaviours_table
from quantyard.card.blocks import Block, CardTable, card_table
from quantyard.card.cache_table import card_cache_table
from quantyard.card.cells import NOTHING
from quantyard.card.domain_tables import card_domain_tables
from quantyard.card.escaping import SafeMarkdown, escape_markdown, markdown_code
from quantyard.card.openvino_table import card_openvino_table
from quantyard.card.subject import CardSubject
from quantyard.card.which import card_which_table
from quantyard.metrics.budget_figures import BUDGET_OUTCOMES, metric_budget_name
from quantyard.metrics.divergence_parts import (
    BACKEND_PART,
    FILE_PART,
    FILE_PPL,
    backend_divergence_shown,
    file_divergence_shown,
    file_perplexity_shown,
)
from quantyard.metrics.layout_figures import LAYOUT_COLUMNS, layout_rows
from quantyard.metrics.similarity_figures import similarity_figures
from quantyard.protocol.gate import OUTCOMES, BudgetResult
from quantyard.protocol.measurements import Measurement, Score, Verdict

_GOOD_TO_BAD: Final[tuple[Verdict, ...]] = ("same", "better", "worse", "too few questions", "no signal")
NOT_COMPARED: Final = SafeMarkdown("not comparable")


def card_tables(subject: CardSubject) -> Iterator[Block]:
    """Every table that has rows."""
    found = (
        card_which_table(subject), _card_limits_table(subject), _card_divergence_parts_table(subject),
        _card_layout_table(subject),
    )  # fmt: skip
    yield from (block for block in found if block)
    yield from card_measured_tables(subject, cells_now)
    yield from card_domain_tables(subject)
    last = (card_behaviours_table(subject), card_cache_table(subject), card_openvino_table(subject))
    yield from filter(None, last)


def card_measured_tables(subject: CardSubject, cells: ModuleType) -> Iterator[Block]:
    """The tables that every version of the card has.

    Args:
        cells: the notation of numbers: the current one, or an earlier version's.
    """
    found = [
        _card_similarity_table(subject) or _card_files_table(cells, subject),
        _card_speed_table(cells, subject), _card_verdicts_table(subject),
        *card_task_tables(subject, cells), _card_contract_table(cells, subject), _card_hashes_table(cells, subject),
    ]  # fmt: skip
    yield from (block for block in found if block)


def _card_files_table(cells: ModuleType, subject: CardSubject) -> CardTable | None:
    head = ("file", "size", "bits per weight", "PPL", "ΔPPL", "mean KLD", "p99 KLD", "same top token")
    rows = [
        (_card_file_name(subject, label), cells.card_size(q.size_bytes), cells.card_bits(q.bits_per_weight),
         *_card_quality_cells(cells, subject.measurement(label)))
        for label, q in subject.quants.items()
    ]  # fmt: skip
    base = subject.baseline
    if base and base.file.label not in subject.quants:
        facts = (cells.card_size(base.file.size_bytes), cells.card_bits(base.file.bits_per_weight))
        rows.insert(0, (_card_file_name(subject, base.file.label), *facts, *_card_quality_cells(cells, base)))
    return card_table("files", "files table", head, rows)


def _card_similarity_table(subject: CardSubject) -> CardTable | None:
    """In place of perplexity and divergence, of a model that embeds texts or ranks documents."""
    base = subject.baseline
    measured = {label: found for label in subject.quants if (found := subject.measurement(label))}
    if base and base.file.label not in subject.quants:
        measured = {base.file.label: base, **measured}
    figures = similarity_figures([*measured.values()])
    rows = [
        (_card_file_name(subject, label), cells_now.card_size(m.file.size_bytes),
         cells_now.card_bits(m.file.bits_per_weight), *(SafeMarkdown(figure.shown(m.similarity)) for figure in figures))
        for label, m in measured.items()
    ]  # fmt: skip
    head = ("file", "size", "bits per weight", *(figure.name for figure in figures))
    return card_table("similarity", "similarity table", head, rows) if figures else None


def _card_quality_cells(cells: ModuleType, found: Measurement | None) -> tuple[SafeMarkdown, ...]:
    quality: tuple[SafeMarkdown, ...] = cells.card_quality(found.divergence if found else None)
    return quality


def _card_file_name(subject: CardSubject, label: str) -> SafeMarkdown:
    """A file in the first column of a table."""
    is_baseline = subject.report is not None and label == subject.report.baseline
    return SafeMarkdown(f"{markdown_code(label)} (baseline)") if is_baseline else markdown_code(label)


def _card_speed_table(cells: ModuleType, subject: CardSubject) -> CardTable | None:
    head = ("file", "prompt tokens/s", "generated tokens/s", "peak memory")
    rows = [(_card_file_name(subject, label), *cells.card_speed(m)) for label, m in subject.measured.items() if m.speed]
    base = subject.baseline
    if rows and base and base.speed and base.file.label not in subject.quants:
        rows.insert(0, (_card_file_name(subject, base.file.label), *cells.card_speed(base)))
    return card_table("speed", "speed table", head, rows)


# ---- tasks -------------------------------------------------------------------------------------------


def _card_verdicts_table(subject: CardSubject) -> CardTable | None:
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
                (_card_task_metric(cells, s), cells.card_count(s.n), cells.card_score(s)) for s in subject.headlines
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
            rows = [_card_task_row(cells, found, s) for s in subject.headlines]
        if made := card_table(name, f"tasks of {escape_markdown(label)}", head, rows, words=("verdict",)):
            yield made


def _card_task_row(cells: ModuleType, found: Measurement, base: Score) -> tuple[SafeMarkdown, ...]:
    key = (base.task, base.metric)
    compared = next((c for c in found.comparisons if (c.task, c.metric) == key), None)
    if compared is None:
        own = next((s for s in found.scores if (s.task, s.metric) == key), None)
        return (
            _card_task_metric(cells, base),
            cells.card_count(base.n),
            cells.card_score(base),
            cells.card_score(own),
            NOTHING,
            NOT_COMPARED,
        )
    share = base.higher_is_better
    told = (*cells.card_score_values(compared, share=share), cells.card_delta(compared, share=share))
    return (
        _card_task_metric(cells, base),
        cells.card_count(compared.n),
        *told,
        cells.card_verdict(compared, base.chance),
    )


def _card_task_metric(cells: ModuleType, found: Score) -> SafeMarkdown:
    name: SafeMarkdown = cells.card_task_name(found.task, found.metric)
    return name


# ---- the rest ----------------------------------------------------------------------------------------


def _card_contract_table(cells: ModuleType, subject: CardSubject) -> CardTable | None:
    head = ("file", "passed", "not supported", "failed", cells.CONFORMANCE)
    rows = [
        (markdown_code(label),
            *(SafeMarkdown(len(found.with_status(status))) for status in ("passed", "not supported", "failed")),
         cells.card_conformance(found.schemas))
        for label in subject.quants if (found := subject.manifest.contracts.get(label))
    ]  # fmt: skip
    return card_table("contract", "API test table", head, rows)


def _card_limits_table(subject: CardSubject) -> CardTable | None:
    """The quality limits that are not met, the worst outcome first; the value beside its limit."""
    order = {outcome: number for number, outcome in enumerate(OUTCOMES)}
    found = sorted((r for r in subject.limits if r.outcome != "passed"), key=lambda r: order[r.outcome])
    rows = [
        (markdown_code(r.quant), _card_limit_name(r), cells_now.card_budget_limit(r), cells_now.card_budget_value(r),
         cells_now.card_budget_interval(r), SafeMarkdown(BUDGET_OUTCOMES[r.outcome]))
        for r in found
    ]  # fmt: skip
    head = ("file", "what", "limit", "found", "interval", "outcome")
    return card_table("limits", "table of limits", head, rows, words=("what", "interval", "outcome"))


def _card_divergence_parts_table(subject: CardSubject) -> CardTable | None:
    """What of each file's divergence is its own."""
    measured = ((label, m.divergence) for label, m in subject.measured.items() if m.divergence)
    rows = [
        (markdown_code(label), SafeMarkdown(file_divergence_shown(d)), SafeMarkdown(backend_divergence_shown(d)),
         SafeMarkdown(file_perplexity_shown(d)))
        for label, d in measured if d.parts
    ]  # fmt: skip
    return card_table("divergence-parts", "table of divergences", ("file", FILE_PART, BACKEND_PART, FILE_PPL), rows)


def _card_layout_table(subject: CardSubject) -> CardTable | None:
    """How far scores depend on the packing of the questions."""
    base = [subject.baseline] if subject.baseline else []
    measured = [*base, *(m for m in subject.measured.values() if m not in base)]
    rows = [
        (markdown_code(label), *(SafeMarkdown(cell) for cell in cells)) for label, *cells in layout_rows(measured)
    ]
    return card_table("layout", "layout noise", LAYOUT_COLUMNS, rows, words=("picks flipped",))


def _card_limit_name(found: BudgetResult) -> SafeMarkdown:
    name = metric_budget_name(found.budget)
    return escape_markdown(f"{name}, {found.task}" if found.task else name)


def _card_hashes_table(cells: ModuleType, subject: CardSubject) -> CardTable | None:
    files = [file for record in subject.quants.values() for file in record.files]
    files += subject.manifest.projector.files if subject.manifest.projector else []
    rows = [
        (markdown_code(file.path), cells.card_count(file.size_bytes), markdown_code(file.sha256 or ""))
        for file in files
    ]
    rows += [
        (markdown_code(m.file), cells.card_count(m.size_bytes), markdown_code(m.sha256)) for m in subject.imatrices
    ]
    return card_table("hashes", "hashes table", ("file", "bytes", "SHA-256"), rows)
