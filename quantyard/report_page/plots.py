"""The layout of the comparison page's plots; `report.html.jinja` writes them as SVG.

All coordinates are pixels of the drawing, y downwards. A drawing is at most as wide as a phone, so that its text stays
readable there. The largest plot is in `tradeoff.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from quantyard.formatting import numbers
from quantyard.formatting.numbers import Kind
from quantyard.metrics.headline_metrics import headline_scores
from quantyard.metrics.kinds import score_metric_kind
from quantyard.protocol.measurements import Comparison, EvalReport
from quantyard.report_page.axes import CHAR_PX, AxisScale, page_axis_span, shorten_page_name
from quantyard.report_page.marks import MARK_OF
from quantyard.report_page.tables import PageFile

NARROW_PX: Final = 344
ROW_PX: Final = 21
MAX_PANELS: Final = 36


@dataclass(frozen=True)
class PlotSpot:
    """One file in a plot: its position, the ends of its interval, and the lines of its tooltip (`said`)."""

    number: int
    x: float
    y: float
    low: float
    high: float
    said: tuple[str, ...]


# ---- one row per file --------------------------------------------------------------------------------


@dataclass(frozen=True)
class PanelRow:
    """One file in a panel: its name, its spot, and the value written beside it."""

    label: str
    text: str
    text_x: float
    spot: PlotSpot
    mark: str


@dataclass(frozen=True)
class PagePanel:
    """Intervals around a zero line (`zero` is its pixel), or bars from the left edge (`zero` None)."""

    name: str
    note: str
    unit: str
    width: float
    height: float
    left: float
    right: float
    ticks: tuple[tuple[float, str], ...]
    rows: tuple[PanelRow, ...]
    zero: float | None = None
    band: tuple[float, float] | None = None  # the suite's margin, in pixels


def page_forest_plot(report: EvalReport, files: Sequence[PageFile]) -> tuple[PagePanel, ...]:
    """One panel per task: each file's difference from the baseline. Panels of one unit share a scale."""
    all_of_them = [c for s in files if s.found for c in s.found.comparisons]
    panels: list[PagePanel] = []
    shown = [(c.task, c.metric) for c in headline_scores(report.suite, all_of_them)][:MAX_PANELS]
    for key in shown:
        found = [(s, c) for s in files for c in (s.found.comparisons if s.found else ()) if (c.task, c.metric) == key]
        key_of_scale = _scale_key(found[0][1])
        alike = [c for c in all_of_them if _scale_key(c) == key_of_scale and (c.task, c.metric) in shown]
        panels.append(_forest_panel(found, alike, report.suite.margin))
    return tuple(panels)


# Factor and unit in which a difference of each kind is drawn and labelled.
_SCALES: Final[dict[Kind, tuple[int, str]]] = {"share": (100, "points"), "relative": (100, "%"), "own unit": (1, "")}


def _scale_key(c: Comparison) -> str:
    """Comparisons with the same key share a scale; a metric in its own unit has its own scale."""
    kind = score_metric_kind(c)
    return f"{c.task} {c.metric}" if kind == "own unit" else kind


def _forest_panel(
    found: Sequence[tuple[PageFile, Comparison]], alike: Sequence[Comparison], margin: float
) -> PagePanel:
    first = found[0][1]
    factor, unit = _SCALES[score_metric_kind(first)]
    left, right, bottom = _gutter([s.label for s, _ in found]), NARROW_PX - 62, ROW_PX * len(found) + 8
    ends = [factor * end for c in alike for end in (c.delta.low, c.delta.high)] + [-factor * margin, factor * margin]
    x = AxisScale(*page_axis_span(ends, 0.04), left, right)
    rows = tuple(
        PanelRow(shorten_page_name(s.label, left - 10),
            numbers.format_delta_interval(c.delta, score_metric_kind(c)).value, NARROW_PX - 2,
                 PlotSpot(s.number, x(factor * c.delta.value), ROW_PX * (i + 0.5) + 4, x(factor * c.delta.low),
                      x(factor * c.delta.high), _said(s, c)), MARK_OF[c.verdict])
        for i, (s, c) in enumerate(found)
    )  # fmt: skip
    band = (x(-factor * margin), x(factor * margin))
    note = f"{first.metric} · n = {numbers.format_count(first.n)}"
    return PagePanel(
        first.task, note, unit or first.metric, NARROW_PX, bottom + 24, left, right, x.ticks(5), rows,
        zero=x(0.0), band=band,
    )  # fmt: skip


def _gutter(labels: Sequence[str]) -> float:
    """The width of the name column, in pixels."""
    return min(118.0, max(48.0, CHAR_PX * max(len(label) for label in labels) + 14))


def _said(s: PageFile, c: Comparison) -> tuple[str, ...]:
    kind = score_metric_kind(c)
    value, baseline = (numbers.format_metric_value(x, kind) for x in (c.value, c.baseline))
    delta = numbers.format_delta_interval(c.delta, kind)
    lines = [s.label, f"{c.task}, {c.metric}", f"{value}, baseline {baseline}", f"Δ {delta}"]
    if c.mcnemar_p is not None:
        lines.append(f"{c.lost} lost, {c.gained} gained of {numbers.format_count(c.n)}")
    return (*lines, c.verdict)


# ---- speed -------------------------------------------------------------------------------------------


def page_speed_plot(files: Sequence[PageFile]) -> tuple[PagePanel, ...]:
    """Bars for prompt processing, generation and peak memory."""
    timed = [(s, s.speed) for s in files if s.speed]
    if not timed:
        return ()
    rate = numbers.format_tokens_per_s
    prompt = [(s, v.prompt_tokens_per_s, v.prompt_spread, rate(v.prompt_tokens_per_s)) for s, v in timed]
    written = [(s, v.generated_tokens_per_s, v.generated_spread, rate(v.generated_tokens_per_s)) for s, v in timed]
    memory = [(s, float(v.peak_memory_bytes), 0.0, numbers.format_memory(v.peak_memory_bytes)) for s, v in timed]
    return (
        _bars("Reading a prompt", "tokens per second", prompt),
        _bars("Generating", "tokens per second", written),
        _bars("Peak memory", "resident, mapped weights included", memory),
    )


def _bars(name: str, unit: str, found: Sequence[tuple[PageFile, float, float, str]]) -> PagePanel:
    """One bar per file; its whisker spans the spread of the runs, which is a share of the value."""
    left, right = _gutter([s.label for s, *_ in found]), NARROW_PX - 62
    x = AxisScale(0.0, max(value * (1 + spread / 2) for _, value, spread, _ in found) or 1.0, left, right)
    rows = []
    for i, (s, value, spread, text) in enumerate(found):
        low, high = (x(max(0.0, value * (1 + sign * spread / 2))) for sign in (-1, 1))
        said = (s.label, name.lower(), f"{text} tokens per second" if "token" in unit else text)
        spot = PlotSpot(s.number, x(value), ROW_PX * (i + 0.5) + 4, low, high, said)
        mark = "baseline" if s.is_baseline else "file"
        rows.append(PanelRow(shorten_page_name(s.label, left - 10), text, NARROW_PX - 2, spot, mark))
    return PagePanel(name, unit, unit, NARROW_PX, ROW_PX * len(found) + 8, left, right, (), tuple(rows))
