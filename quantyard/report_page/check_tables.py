"""The tables of checks on the comparison page: the API test, and the quality limits of the gate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from quantyard.formatting.numbers import DASH
from quantyard.metrics.budget_figures import (
    BUDGET_OUTCOMES,
    metric_budget_interval,
    metric_budget_limit,
    metric_budget_name,
    metric_budget_value,
)
from quantyard.metrics.plots.marks import MARK_OF, NO_MARK
from quantyard.protocol.gate import OUTCOMES, BudgetResult
from quantyard.report_page.tables import PageCell, PageColumn, PageFile, PageRow, PageTable
from quantyard.store.manifest import Manifest


def page_checks_table(files: Sequence[PageFile]) -> PageTable:
    """The checks of the API test that did not pass."""
    columns = (
        PageColumn("File", "", "name"), PageColumn("Check", "", "text"), PageColumn("Promise", "", "text"),
        PageColumn("Result", "", "text"), PageColumn("Finding", "", "text"),
    )  # fmt: skip
    return PageTable("checks", "Checks that did not pass", columns, tuple(_page_check_rows(files)))


def _page_check_rows(files: Sequence[PageFile]) -> Iterator[PageRow]:
    for s in files:
        for check in s.contract.checks if s.contract else ():
            if check.status != "passed":
                yield _page_text_row(s, check.name, check.promise, check.status, check.finding, status_at=2)


def page_gate_table(manifest: Manifest, files: Sequence[PageFile]) -> PageTable:
    """Every limit of every file with what was found, the worst outcome first."""
    columns = (
        PageColumn("File", "", "name"), PageColumn("What", "", "text"), PageColumn("Limit", ""),
        PageColumn("Found", "with its interval"), PageColumn("Outcome", "", "text"),
    )  # fmt: skip
    by_label = {s.label: s for s in files}
    known = (r for r in (manifest.gate.results if manifest.gate else ()) if r.quant in by_label)
    results = sorted(known, key=lambda r: (OUTCOMES.index(r.outcome), by_label[r.quant].number))
    rows = (_page_limit_row(by_label[r.quant], r) for r in results)
    return PageTable("budgets", "Quality limits, the worst outcome first", columns, tuple(rows))


def _page_limit_row(s: PageFile, found: BudgetResult) -> PageRow:
    name, said = metric_budget_name(found.budget), BUDGET_OUTCOMES[found.outcome]
    interval = metric_budget_interval(found.budget, found.interval).ends if found.interval else ""
    value = DASH if found.value is None else metric_budget_value(found.budget, found.value)
    what = f"{name}, {found.task}" if found.task else name
    return PageRow(s.number, (
        PageCell(s.label, sort=s.label, kind="name"), PageCell(what, sort=what, kind="text"),
        PageCell(metric_budget_limit(found.budget, found.limit), sort=found.limit),
        PageCell(value, interval, found.value),
        PageCell(said, "", OUTCOMES.index(found.outcome), MARK_OF.get(found.outcome, NO_MARK), "text"),
    ))  # fmt: skip


def _page_text_row(s: PageFile, *texts: str, status_at: int) -> PageRow:
    cells = tuple(
        PageCell(text, sort=text, mark=MARK_OF.get(text, NO_MARK) if i == status_at else NO_MARK, kind="text")
        for i, text in enumerate(texts)
    )  # fmt: skip
    return PageRow(s.number, (PageCell(s.label, sort=s.label, kind="name"), *cells))
