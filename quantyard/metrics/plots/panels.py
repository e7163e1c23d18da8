"""The layout of the plots with one row per file; the page writes them as SVG, the report as pictures.

All coordinates are pixels of the drawing, y downwards. A drawing is at most as wide as a phone, so that its text stays
readable there. The largest plot is in `tradeoff.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from quantyard.formatting import numbers
from quantyard.formatting.numbers import Kind
from quantyard.metrics.headline_metrics import headline_scores
from quantyard.metrics.intervals import estimate_interval
from quantyard.metrics.kinds import score_metric_kind
from quantyard.metrics.plots.axes import CHAR_PX, AxisScale, plot_axis_span, shorten_plot_name
from quantyard.metrics.plots.marks import MARK_OF
from quantyard.metrics.speed_tests import generation_joules
from quantyard.protocol.divergence_results import Divergence
from quantyard.protocol.estimates import Estimate
from quantyard.protocol.measurements import Comparison, EvalReport, Measurement
from quantyard.protocol.speed_results import Speed

NARROW_PX: Final = 344
ROW_PX: Final = 21
MAX_PANELS: Final = 36


class PlottedFile(Protocol):
    """A file of a report as plots need it; a plot refers to it by its number."""

    @property
    def number(self) -> int: ...
    @property
    def label(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def is_baseline(self) -> bool: ...
    @property
    def found(self) -> Measurement | None: ...
    @property
    def divergence(self) -> Divergence | None: ...
    @property
    def speed(self) -> Speed | None: ...


@dataclass(frozen=True)
class MeasuredFile:
    """A file of a report alone."""

    number: int
    found: Measurement
    is_baseline: bool

    @property
    def label(self) -> str:
        """The quant."""
        return self.found.file.label

    @property
    def size_bytes(self) -> int:
        """Of the file."""
        return self.found.file.size_bytes

    @property
    def divergence(self) -> Divergence | None:
        """Its perplexity and divergence, if measured."""
        return self.found.divergence

    @property
    def speed(self) -> Speed | None:
        """Its speed and memory, if measured."""
        return self.found.speed


def plotted_files(report: EvalReport) -> tuple[MeasuredFile, ...]:
    """The files of a report: the baseline first, then by size, the largest first."""
    order = sorted(report.measurements, key=lambda m: (m.file.label != report.baseline, -m.file.size_bytes))
    return tuple(MeasuredFile(i, m, m.file.label == report.baseline) for i, m in enumerate(order))


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
class PlotPanel:
    """Marks with intervals, around a zero line if `zero` is its pixel; or `bars` from the left edge."""

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
    bars: bool = False


def plot_forest(report: EvalReport, files: Sequence[PlottedFile]) -> tuple[PlotPanel, ...]:
    """One panel per task: each file's difference from the baseline. Panels of one unit share a scale."""
    all_of_them = [c for s in files if s.found for c in s.found.comparisons]
    panels: list[PlotPanel] = []
    shown = [(c.task, c.metric) for c in headline_scores(report.suite, all_of_them)][:MAX_PANELS]
    for key in shown:
        found = [(s, c) for s in files for c in (s.found.comparisons if s.found else ()) if (c.task, c.metric) == key]
        key_of_scale = _panel_scale_key(found[0][1])
        alike = [c for c in all_of_them if _panel_scale_key(c) == key_of_scale and (c.task, c.metric) in shown]
        panels.append(_forest_panel(found, alike, report))
    return tuple(panels)


# Factor and unit in which a difference of each kind is drawn and labelled.
_SCALES: Final[dict[Kind, tuple[int, str]]] = {"share": (100, "points"), "relative": (100, "%"), "own unit": (1, "")}


def _panel_scale_key(c: Comparison) -> str:
    """Comparisons with the same key share a scale; a metric in its own unit has its own scale."""
    kind = score_metric_kind(c)
    return f"{c.task} {c.metric}" if kind == "own unit" else kind


def _forest_panel(
    found: Sequence[tuple[PlottedFile, Comparison]], alike: Sequence[Comparison], report: EvalReport
) -> PlotPanel:
    first, margin = found[0][1], report.suite.margin
    factor, unit = _SCALES[score_metric_kind(first)]
    left, right, bottom = _panel_gutter([s.label for s, _ in found]), NARROW_PX - 62, ROW_PX * len(found) + 8
    ends = [factor * end for c in alike for end in (c.delta.low, c.delta.high)] + [-factor * margin, factor * margin]
    x = AxisScale(*plot_axis_span(ends, 0.04), left, right)
    rows = tuple(
        PanelRow(shorten_plot_name(s.label, left - 10),
            numbers.format_delta_interval(c.delta, score_metric_kind(c)).value, NARROW_PX - 2,
                 PlotSpot(s.number, x(factor * c.delta.value), ROW_PX * (i + 0.5) + 4, x(factor * c.delta.low),
                      x(factor * c.delta.high), _comparison_tooltip(s, c)), MARK_OF[c.verdict])
        for i, (s, c) in enumerate(found)
    )  # fmt: skip
    band = (x(-factor * margin), x(factor * margin))
    note = " · ".join([first.metric, f"n = {numbers.format_count(first.n)}", *_panel_score_notes(report, first)])
    return PlotPanel(
        first.task, note, unit or first.metric, NARROW_PX, bottom + 24, left, right, x.ticks(5), rows,
        zero=x(0.0), band=band,
    )  # fmt: skip


def _panel_score_notes(report: EvalReport, first: Comparison) -> Iterator[str]:
    """The chance level, and which way is better, as the baseline's score tells them."""
    scores = (s for m in report.measurements if m.file.label == report.baseline for s in m.scores)
    score = next((s for s in scores if (s.task, s.metric) == (first.task, first.metric)), None)
    if score and score.chance is not None:
        yield f"chance {numbers.format_percent(score.chance)}"
    if score:
        yield f"{'higher' if score.higher_is_better else 'lower'} is better"


def _panel_gutter(labels: Sequence[str]) -> float:
    """The width of the name column, in pixels."""
    return min(118.0, max(48.0, CHAR_PX * max(len(label) for label in labels) + 14))


def _comparison_tooltip(s: PlottedFile, c: Comparison) -> tuple[str, ...]:
    kind = score_metric_kind(c)
    value, baseline = (numbers.format_metric_value(x, kind) for x in (c.value, c.baseline))
    delta = numbers.format_delta_interval(c.delta, kind)
    lines = [s.label, f"{c.task}, {c.metric}", f"{value}, baseline {baseline}", f"Δ {delta}"]
    if c.mcnemar_p is not None:
        lines.append(f"{c.lost} lost, {c.gained} gained of {numbers.format_count(c.n)}")
    return (*lines, c.verdict)


# ---- speed -------------------------------------------------------------------------------------------


def plot_speed(files: Sequence[PlottedFile]) -> tuple[PlotPanel, ...]:
    """Bars for prompt processing, generation and peak memory."""
    timed = [(s, s.speed) for s in files if s.speed]
    if not timed:
        return ()
    rate = numbers.format_tokens_per_s
    prompt = [(s, v.prompt_tokens_per_s, v.prompt_spread, rate(v.prompt_tokens_per_s)) for s, v in timed]
    written = [(s, v.generated_tokens_per_s, v.generated_spread, rate(v.generated_tokens_per_s)) for s, v in timed]
    memory = [(s, float(v.peak_memory_bytes), 0.0, numbers.format_memory(v.peak_memory_bytes)) for s, v in timed]
    return (
        _bars_panel("Reading a prompt", "tokens per second", "higher is better", prompt),
        _bars_panel("Generating", "tokens per second", "higher is better", written),
        _bars_panel("Peak memory", "resident, with the weights", "lower is better", memory),
    )


def plot_overview(files: Sequence[PlottedFile]) -> tuple[PlotPanel, ...]:
    """Size, quality, speed and energy of each file, in the same order: what one gives up for what.

    A panel of what was not measured is left out; () unless quality and speed both were.
    """
    nothing = Estimate(value=0.0, stderr=0.0)
    quality = [(s, d.mean_kld or nothing) for s in files if (d := s.divergence) and (d.mean_kld or s.is_baseline)]
    timed = [(s, s.speed) for s in files if s.speed]
    if not timed or all(kld.value == 0 for _, kld in quality):
        return ()
    size = [(s, float(s.size_bytes), 0.0, numbers.format_file_size(s.size_bytes)) for s in files if s.size_bytes]
    lost = [(s, k.value, _relative_width(k), numbers.format_kld(k.value)) for s, k in quality]
    rate = [(s, v.generated_tokens_per_s, v.generated_spread, numbers.format_tokens_per_s(v.generated_tokens_per_s))
            for s, v in timed]  # fmt: skip
    joules = [
        (s, test.joules_per_token or 0.0, 0.0, f"{numbers.format_digits(test.joules_per_token or 0.0, 2)} J")
        for s, v in timed if (test := generation_joules(v))
    ]  # fmt: skip
    panels = (
        _bars_panel("Size", "of the file", "smaller is better", size) if size else None,
        _bars_panel("Quality lost", "mean KLD from the original", "smaller is better", lost),
        _bars_panel("Speed", "generated tokens per second", "larger is better", rate),
        _bars_panel("Energy", "joules per generated token", "smaller is better", joules) if joules else None,
    )
    return tuple(panel for panel in panels if panel)


def _relative_width(found: Estimate) -> float:
    """The whole interval as a share of the value."""
    interval = estimate_interval(found)
    return (interval.high - interval.low) / found.value if found.value else 0.0


def _bars_panel(name: str, unit: str, better: str, found: Sequence[tuple[PlottedFile, float, float, str]]) -> PlotPanel:
    """One bar per file; its whisker spans the spread of the runs, which is a share of the value."""
    left, right = _panel_gutter([s.label for s, *_ in found]), NARROW_PX - 62
    x = AxisScale(0.0, max(value * (1 + spread / 2) for _, value, spread, _ in found) or 1.0, left, right)
    rows = []
    for i, (s, value, spread, text) in enumerate(found):
        low, high = (x(max(0.0, value * (1 + sign * spread / 2))) for sign in (-1, 1))
        said = (s.label, name.lower(), f"{text} tokens per second" if "token" in unit else text)
        spot = PlotSpot(s.number, x(value), ROW_PX * (i + 0.5) + 4, low, high, said)
        mark = "baseline" if s.is_baseline else "file"
        rows.append(PanelRow(shorten_plot_name(s.label, left - 10), text, NARROW_PX - 2, spot, mark))
    height = ROW_PX * len(found) + 8
    return PlotPanel(name, f"{unit} · {better}", unit, NARROW_PX, height, left, right, (), tuple(rows), bars=True)


# ---- divergence --------------------------------------------------------------------------------------


def plot_divergence(files: Sequence[PlottedFile]) -> PlotPanel | None:
    """KL divergence of the tokens, on a log scale: from the median token to one in a hundred, and the mean."""
    known = [(s, found) for s in files if (found := _kld_percentiles(s))]
    if not known:
        return None
    left, right, bottom = _panel_gutter([s.label for s, _ in known]), NARROW_PX - 62, ROW_PX * len(known) + 8
    x = AxisScale(*plot_axis_span([end for _, ends in known for end in ends], 0.04, log=True), left, right, log=True)
    rows = []
    for i, (s, (mean, median, rare)) in enumerate(known):
        shown = [numbers.format_kld(value) for value in (mean, median, rare)]
        said = (s.label, f"mean {shown[0]} nats", f"median token {shown[1]}", f"one token in 100 above {shown[2]}")
        spot = PlotSpot(s.number, x(mean), ROW_PX * (i + 0.5) + 4, x(median), x(rare), said)
        rows.append(PanelRow(shorten_plot_name(s.label, left - 10), shown[0], NARROW_PX - 2, spot, "plain"))
    name, note = "KL divergence of the tokens, nats", "log scale · lower is better · dot: mean; line: median to 99 %"
    return PlotPanel(name, note, "nats", NARROW_PX, bottom + 24, left, right, x.ticks(6), tuple(rows))


def _kld_percentiles(s: PlottedFile) -> tuple[float, float, float] | None:
    """Mean, median and 99th percentile, if a log scale can show all three."""
    d = s.divergence
    if d is None or d.mean_kld is None or not {"50", "99"} <= set(d.kld_percentiles):
        return None
    found = (d.mean_kld.value, d.kld_percentiles["50"], d.kld_percentiles["99"])
    return found if min(found) > 0 else None
