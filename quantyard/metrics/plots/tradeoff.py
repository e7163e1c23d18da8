"""The layout of the plot of size against quality.

All coordinates are pixels of the drawing, y downwards. There are two layouts, wide and narrow; the page shows the one
that fits, the report the narrow one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from quantyard.formatting.numbers import (
    FormattedNumber,
    format_change_interval,
    format_file_size,
    format_kld_interval,
    format_tokens_per_s,
)
from quantyard.metrics.divergence_parts import file_divergence
from quantyard.metrics.intervals import estimate_interval, ppl_change_interval
from quantyard.metrics.pareto import ParetoEntry, pareto_beaten_by, pareto_standings
from quantyard.metrics.plots.axes import (
    AxisScale,
    Box,
    PlacedName,
    place_plot_names,
    plot_axis_span,
    plot_line_segments,
    shorten_plot_name,
)
from quantyard.metrics.plots.panels import NARROW_PX, PlotSpot, PlottedFile
from quantyard.protocol.estimates import Estimate, Interval

WIDE_PX: Final = 720
LEAST_FOR_LINE: Final = 3  # points of a front; a line through two is no trend
_STRIP_PX: Final = 36.0  # below a log scale, for the original at 0


@dataclass(frozen=True)
class PlotQuality:
    """The quality of one file in one metric; lower is better."""

    number: int
    label: str
    size_bytes: int
    of: Interval
    said: tuple[str, ...]
    tokens_per_s: float | None = None
    shown: str = ""
    is_baseline: bool = False

    @property
    def entry(self) -> ParetoEntry:
        """Size, quality and speed, as the Pareto front compares them."""
        return ParetoEntry(self.label, self.size_bytes, self.of.value, self.tokens_per_s, self.shown)


@dataclass(frozen=True)
class PlotPoint(PlotSpot):
    """A file in the plot, with the values from which the page's script computes the front of the visible files."""

    on_front: bool
    size_bytes: int
    value: float
    tokens_per_s: float  # 0 if it was not measured for all files
    is_baseline: bool = False


@dataclass(frozen=True)
class PlotDrawing:
    """The drawing at one width."""

    form: str  # wide or narrow
    width: float
    height: float
    frame: Box
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    spots: tuple[PlotPoint, ...]
    names: tuple[tuple[int, PlacedName], ...]
    front: tuple[tuple[float, float], ...]
    zero: float | None


@dataclass(frozen=True)
class Tradeoff:
    """A plot of size against quality. `aside` is a sentence on what it cannot show; `standings` holds number and name
    of each beaten file, with the files that beat it.
    """

    key: str
    name: str
    title: str
    unit: str
    aside: str
    standings: tuple[tuple[int, str, str], ...]
    drawings: tuple[PlotDrawing, ...]
    is_log: bool = False

    @property
    def has_front(self) -> bool:
        """Whether a line is drawn: below three files there is no trend."""
        return any(drawing.front for drawing in self.drawings)


def plot_tradeoffs(files: Sequence[PlottedFile]) -> tuple[Tradeoff, ...]:
    """Mean KL divergence, or the distance of embeddings or rankings, and change of perplexity against size, as far as
    they were measured.
    """
    distances, changes = _similarity_plot_qualities(files), _ppl_plot_qualities(files)
    klds = distances or _kld_plot_qualities(files)
    shown = [q for q in klds if q.of.value > 0]  # a log scale cannot show 0
    unseen = ", ".join(q.label for q in klds if q not in shown)
    original = [_original_plot_quality(s) for s in files if s.is_baseline and s.size_bytes]
    aside = f"{original[0].label} itself is 0 by definition{', below the scale' if shown else ''}." if original else ""
    aside += f" The scale cannot show {unseen}, at 0 or below." if unseen else ""
    found = []
    if shown:
        key, name, title = ("kld", "Mean KLD", "Mean KL divergence, nats per token")
        if not distances and "KLD of the file" in shown[0].said[1]:
            title = "KL divergence of the files' weights, nats per token"
        if distances:
            key, name, title = ("distance", "Distance", "Distance: 1 less mean cosine, or Kendall τ")
        found.append(_plot_tradeoff(key, name, title, aside, shown + original, log=True))
    if changes:
        found.append(_plot_tradeoff("ppl", "ΔPPL", "Change of perplexity, %", "The dashed line is the original.",
                                    changes + original))  # fmt: skip
    return tuple(found)


def _original_plot_quality(s: PlottedFile) -> PlotQuality:
    speed = s.speed.generated_tokens_per_s if s.speed else None
    said = (format_file_size(s.size_bytes), "the original")
    return PlotQuality(s.number, s.label, s.size_bytes, Interval(value=0.0, low=0.0, high=0.0), said, speed, "0", True)


def _similarity_plot_qualities(files: Sequence[PlottedFile]) -> list[PlotQuality]:
    """Of embeddings 1 less the mean cosine, of rankings 1 less Kendall's τ, as the Pareto front has them."""
    found = []
    for s in files:
        similar = s.found.similarity if s.found else None
        close = (similar.mean_cosine or similar.kendall_tau) if similar else None
        if close is not None and s.size_bytes:
            of = estimate_interval(Estimate(value=1 - close.value, stderr=close.stderr))
            found.append(_plot_quality(s, of, "distance", format_kld_interval(of)))
    return found


def _kld_plot_qualities(files: Sequence[PlottedFile]) -> list[PlotQuality]:
    """Of the files alone where that is known of all of them, as the Pareto front has it."""
    compared = [s for s in files if s.divergence and s.divergence.mean_kld]
    of_files = all(file_divergence(s.divergence) for s in compared)
    found = []
    for s in compared:
        kld = file_divergence(s.divergence) if of_files else s.divergence.mean_kld if s.divergence else None
        if kld is not None and s.size_bytes:
            of = estimate_interval(kld)
            found.append(_plot_quality(s, of, "KLD of the file" if of_files else "mean KLD", format_kld_interval(of)))
    return found


def _ppl_plot_qualities(files: Sequence[PlottedFile]) -> list[PlotQuality]:
    found = []
    for s in files:
        change = ppl_change_interval(s.divergence)
        if change is not None and s.size_bytes:
            value, low, high = (100 * x for x in (change.value, change.low, change.high))
            of = Interval(value=value, low=low, high=high)
            found.append(_plot_quality(s, of, "ΔPPL", format_change_interval(change)))
    return found


def _plot_quality(s: PlottedFile, of: Interval, name: str, written: FormattedNumber) -> PlotQuality:
    speed = s.speed.generated_tokens_per_s if s.speed else None
    said = (format_file_size(s.size_bytes), f"{name} {written}")
    return PlotQuality(s.number, s.label, s.size_bytes, of, said, speed, written.value)


def _plot_tradeoff(
    key: str, name: str, title: str, aside: str, found: list[PlotQuality], *, log: bool = False
) -> Tradeoff:
    scale, unit = (1e9, "GB") if max(q.size_bytes for q in found) >= 2e9 else (1e6, "MB")
    drawings = (
        _tradeoff_drawing("wide", WIDE_PX, 420, found, scale, log),
        _tradeoff_drawing("narrow", NARROW_PX, 340, found, scale, log),
    )
    compared = [q for q in found if not q.is_baseline]
    said = pareto_standings([q.entry for q in compared], name if key == "ppl" else f"{name[0].lower()}{name[1:]}")
    standing = tuple((q.number, q.label, said[q.label]) for q in compared if q.label in said)
    return Tradeoff(key, name, title, unit, aside, standing, drawings, is_log=log)


def _tradeoff_drawing(
    form: str, width: float, height: float, found: list[PlotQuality], unit: float, log: bool
) -> PlotDrawing:
    frame = Box(52, 12, width - 16, height - 34)
    compared = [q for q in found if not q.is_baseline]
    span = plot_axis_span([q.size_bytes / unit for q in found], 0.14, log=True)
    x = AxisScale(*span, frame.left, frame.right, log=True)
    y, zero = _tradeoff_quality_axis(compared, frame, log, below=len(compared) < len(found))
    beaten = pareto_beaten_by(q.entry for q in compared)
    front = sorted((q for q in compared if not beaten[q.label]), key=lambda q: (q.size_bytes, q.of.value))
    timed = all(q.tokens_per_s for q in compared)
    spots = tuple(_tradeoff_point(q, x(q.size_bytes / unit), y, zero, beaten.get(q.label, ()), timed) for q in found)
    line = tuple((x(q.size_bytes / unit), y(q.of.value)) for q in front) if len(front) >= LEAST_FOR_LINE else ()
    lines = [*plot_line_segments(line), *((s.x, s.low, s.x, s.high) for s in spots)]
    lines += [(frame.left, zero, frame.right, zero)] if zero is not None else []
    names = place_plot_names([(s.x, s.y, shorten_plot_name(s.said[0], 130)) for s in spots], lines, frame)
    y_ticks = (*y.ticks(7), *(((zero, "0"),) if log and zero is not None else ()))
    return PlotDrawing(
        form, width, height, frame, x.ticks(max(3, int(width / 110))), y_ticks, spots,
        tuple((s.number, name) for s, name in zip(spots, names, strict=True)), line, zero,
    )  # fmt: skip


def _tradeoff_quality_axis(
    found: list[PlotQuality], frame: Box, log: bool, *, below: bool
) -> tuple[AxisScale, float | None]:
    """The scale of the quality, and the pixel of 0; on a log scale a strip `below` it is for the original."""
    if not log:
        scale = AxisScale(*plot_axis_span([0.0, *_tradeoff_axis_ends(found, -math.inf)], 0.12), frame.bottom, frame.top)
        return scale, scale(0.0)
    floor = min(q.of.value for q in found) / 10
    bottom = frame.bottom - (_STRIP_PX if below else 0)
    scale = AxisScale(*plot_axis_span(_tradeoff_axis_ends(found, floor), 0.12, log=True), bottom, frame.top, log=True)
    return scale, frame.bottom - _STRIP_PX / 3 if below else None


def _tradeoff_axis_ends(found: list[PlotQuality], floor: float) -> list[float]:
    return [max(end, floor) for q in found for end in (q.of.low, q.of.high)]


def _tradeoff_point(
    q: PlotQuality, x: float, y: AxisScale, zero: float | None, winners: Sequence[str], timed: bool
) -> PlotPoint:
    if q.is_baseline:
        at = zero or 0.0
        return PlotPoint(q.number, x, at, at, at, (q.label, *q.said), False, q.size_bytes, 0.0, 0.0, is_baseline=True)
    low = max(q.of.low, y.low) if y.log else q.of.low
    at, ends = y(q.of.value), (y(low), y(q.of.high))
    said, speed = (q.label, *_tradeoff_tooltip(q, winners)), (timed and q.tokens_per_s) or 0.0
    return PlotPoint(q.number, x, at, *ends, said, not winners, q.size_bytes, q.of.value, speed)


def _tradeoff_tooltip(q: PlotQuality, winners: Sequence[str]) -> tuple[str, ...]:
    speed = (f"{format_tokens_per_s(q.tokens_per_s)} tokens per second",) if q.tokens_per_s else ()
    return (*q.said, *speed, f"beaten by {', '.join(winners)}" if winners else "on the front")
