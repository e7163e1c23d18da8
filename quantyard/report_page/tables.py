"""What the tables of the comparison page are made of: its files, and the text of each cell with its sort key."""

from __future__ import annotations

from dataclasses import dataclass

from quantyard.metrics.plots.marks import NO_MARK
from quantyard.protocol.api_tests import ContractReport
from quantyard.protocol.divergence_results import Divergence
from quantyard.protocol.gate import BudgetResult
from quantyard.protocol.measurements import EvalReport, Measurement
from quantyard.protocol.speed_results import Speed
from quantyard.store.manifest import Manifest


@dataclass(frozen=True)
class PageFile:
    """One file of the model; `found` is None if the suite has not measured it. The page refers to it by `number`."""

    number: int
    label: str
    size_bytes: int
    bits_per_weight: float
    is_baseline: bool
    found: Measurement | None = None
    contract: ContractReport | None = None
    limits: tuple[BudgetResult, ...] = ()  # of the gate, but for those that were not judged

    @property
    def divergence(self) -> Divergence | None:
        """Its perplexity and divergence, if measured."""
        return self.found.divergence if self.found else None

    @property
    def speed(self) -> Speed | None:
        """Its speed and memory, if measured."""
        return self.found.speed if self.found else None


@dataclass(frozen=True)
class PageCell:
    """The text of a cell, the small `note` below it (an interval), and its sort key; cells without one sort last."""

    text: str
    note: str = ""
    sort: float | str | None = None
    mark: str = NO_MARK
    kind: str = "number"


@dataclass(frozen=True)
class PageColumn:
    """One column; `group` is the heading above it and its neighbours."""

    name: str
    help: str
    kind: str = "number"
    group: str = ""


@dataclass(frozen=True)
class PageRow:
    """One row; `number` is the file's."""

    number: int
    cells: tuple[PageCell, ...]
    verdict: str = ""


@dataclass(frozen=True)
class PageTable:
    """A table, for the template."""

    name: str
    caption: str
    columns: tuple[PageColumn, ...]
    rows: tuple[PageRow, ...]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """The upper header row: each group and its number of columns; empty if no column has a group."""
        spans: list[tuple[str, int]] = []
        for column in self.columns:
            if spans and spans[-1][0] == column.group:
                spans[-1] = (column.group, spans[-1][1] + 1)
            else:
                spans.append((column.group, 1))
        return spans if any(name for name, _ in spans) else []


def page_files(manifest: Manifest, report: EvalReport) -> tuple[PageFile, ...]:
    """Every file of the manifest: the baseline first, then by size, the largest first."""
    measured = {m.file.label: m for m in report.measurements}
    sizes = {label: (record.size_bytes, record.bits_per_weight) for label, record in manifest.quants.items()}
    sizes |= {label: (m.file.size_bytes, m.file.bits_per_weight) for label, m in measured.items()}
    order = sorted(sizes, key=lambda label: (label != report.baseline, -sizes[label][0]))
    return tuple(
        PageFile(
            number, label, *sizes[label], is_baseline=label == report.baseline, found=measured.get(label),
            contract=manifest.contracts.get(label), limits=_page_limits_of_file(manifest, label),
        )
        for number, label in enumerate(order)
    )  # fmt: skip


def _page_limits_of_file(manifest: Manifest, label: str) -> tuple[BudgetResult, ...]:
    results = manifest.gate.results if manifest.gate else ()
    return tuple(r for r in results if r.quant == label and r.outcome != "not judged")
