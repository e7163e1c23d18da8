"""Writes the layouts of `quantyard/metrics/plots/` with matplotlib. Coordinates are pixels, y downwards."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Affine2D

from eval.rendering.style import MARKS, PIXELS_PER_IN, Mark, Theme, new_plot_figure
from quantyard.metrics.plots.marks import MARK_OF
from quantyard.metrics.plots.panels import NARROW_PX, PanelRow, PlotPanel
from quantyard.metrics.plots.tradeoff import PlotDrawing, PlotPoint, Tradeoff
from quantyard.protocol.measurements import Verdict

_MARGIN: Final = 10.0
_TITLE_PX, _TEXT_PX, _TICK_PX, _SMALL_PX = 15.0, 12.0, 11.0, 11.0
_LINE_PX: Final = 14.0
_PANEL_HEAD_PX: Final = 36.0
_GAP_PX: Final = 14.0
_MANY_PANELS: Final = 6  # from which on they stand in two columns
_PLAIN: Final = Mark("o", "blue")
_BY_SHAPE: Final[dict[str, Mark]] = {MARK_OF[verdict]: mark for verdict, mark in MARKS.items()} | {"plain": _PLAIN}


@dataclass(frozen=True)
class _Place:
    """The corner that a drawing is moved to."""

    x: float
    y: float


class Canvas:
    """A figure with its title and a few lines below it; what is drawn lies under them."""

    def __init__(self, theme: Theme, title: str, told: str, width: float, height: float) -> None:
        titles = textwrap.wrap(title, int(width / 9.4)) or [""]
        lines = textwrap.wrap(told, int(width / 6.4))
        self.theme, self.width = theme, width + 2 * _MARGIN
        self.top = _MARGIN + 19 * len(titles) + _LINE_PX * len(lines) + 8
        self.height = self.top + height + _MARGIN
        self.figure = new_plot_figure(self.width / PIXELS_PER_IN, self.height / PIXELS_PER_IN)
        flip = Affine2D().scale(1 / PIXELS_PER_IN, -1 / PIXELS_PER_IN).translate(0, self.height / PIXELS_PER_IN)
        self._to_figure = flip + self.figure.dpi_scale_trans
        for i, line in enumerate(titles):
            self.text(_MARGIN, _MARGIN + 14 + 19 * i, line, _TITLE_PX, weight="bold")
        for i, line in enumerate(lines):
            self.text(_MARGIN, _MARGIN + 19 * len(titles) + 12 + _LINE_PX * i, line, _SMALL_PX, theme.muted)

    def text(
        self, x: float, y: float, words: str, size: float, colour: str = "", anchor: str = "start",
        weight: str = "normal", halo: bool = False,
    ) -> None:  # fmt: skip
        """Words with their base line at `y`."""
        align = {"start": "left", "end": "right", "middle": "center"}[anchor]
        written = self.figure.text(
            x, y, words, transform=self._to_figure, size=size * 72 / PIXELS_PER_IN, ha=align, va="baseline",
            weight=weight, color=colour or self.theme.text,
        )  # fmt: skip
        if halo:
            written.set_path_effects([withStroke(linewidth=2.5, foreground=self.theme.ground)])

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 1.0, dash: Any = "-") -> None:
        """A line through these points; `width` in pixels."""
        xs, ys = zip(*points, strict=True)
        self.figure.add_artist(Line2D(xs, ys, transform=self._to_figure, color=colour, linewidth=_plot_points(width),
                                      linestyle=dash, solid_capstyle="butt"))  # fmt: skip

    def mark(self, x: float, y: float, mark: Mark, size: float = 9.0) -> None:
        """A marker."""
        self.figure.add_artist(Line2D([x], [y], transform=self._to_figure, linestyle="none",
                                      markersize=_plot_points(size), **mark.style(self.theme)))  # fmt: skip

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        """A filled rectangle."""
        self.figure.add_artist(
            Rectangle((x, y), width, height, transform=self._to_figure, color=colour, linewidth=0, zorder=0)
        )


def _plot_points(pixels: float) -> float:
    return pixels * 72 / PIXELS_PER_IN


# ---- size against quality ----------------------------------------------------------------------------


def draw_tradeoff(canvas: Canvas, plot: Tradeoff, drawing: PlotDrawing) -> None:
    """The axes, the front, the points and their names."""
    theme, at, frame = canvas.theme, _Place(_MARGIN, canvas.top + 26), drawing.frame
    way = "↓ lower is better, log scale" if plot.is_log else "↓ lower is better"
    canvas.text(_MARGIN, canvas.top + 10, plot.title, _TEXT_PX, weight="bold")
    canvas.text(_MARGIN, canvas.top + 25, way, _SMALL_PX, theme.muted)
    for y, words in drawing.y_ticks:
        canvas.line([(at.x + frame.left, at.y + y), (at.x + frame.right, at.y + y)], theme.faint)
        canvas.text(at.x + frame.left - 8, at.y + y + 4, words, _TICK_PX, theme.muted, "end")
    for x, words in drawing.x_ticks:
        canvas.line([(at.x + x, at.y + frame.bottom), (at.x + x, at.y + frame.bottom + 5)], theme.muted)
        canvas.text(at.x + x, at.y + frame.bottom + 19, words, _TICK_PX, theme.muted, "middle")
    bottom = at.y + frame.bottom
    canvas.line([(at.x + frame.left, bottom), (at.x + frame.right, bottom)], theme.muted)
    size = f"← smaller is better: size, {plot.unit}, log scale"
    canvas.text(at.x + frame.right, bottom + 36, size, _SMALL_PX, theme.muted, "end")
    if drawing.zero is not None:
        ends = [(at.x + frame.left, at.y + drawing.zero), (at.x + frame.right, at.y + drawing.zero)]
        canvas.line(ends, theme.muted, dash=(0, (4, 4)))
    if drawing.front:
        canvas.line([(at.x + x, at.y + y) for x, y in drawing.front], theme.blue, 1.5)
    for spot in drawing.spots:
        _draw_tradeoff_point(canvas, spot, at)
    for (_, name), spot in zip(drawing.names, drawing.spots, strict=True):
        if name.is_far:
            canvas.line([(at.x + spot.x, at.y + spot.y), (at.x + name.x, at.y + name.y - 4)], theme.muted, 0.8)
        canvas.text(at.x + name.x, at.y + name.y, name.text, _TEXT_PX, anchor=name.anchor, halo=True)


def _draw_tradeoff_point(canvas: Canvas, spot: PlotPoint, at: _Place) -> None:
    mark = Mark("s", "text") if spot.is_baseline else _PLAIN if spot.on_front else Mark("o", "muted", hollow=True)
    colour = getattr(canvas.theme, mark.colour)
    canvas.line([(at.x + spot.x, at.y + spot.low), (at.x + spot.x, at.y + spot.high)], colour, 1.5)
    canvas.mark(at.x + spot.x, at.y + spot.y, mark, 10)


# ---- panels ------------------------------------------------------------------------------------------


def draw_panels(theme: Theme, title: str, told: str, panels: Sequence[PlotPanel], *, key: bool = False) -> Any:
    """The panels below each other, many of them in two columns; with a `key` of the verdicts. None without panels."""
    if not panels:
        return None
    columns = 1 if len(panels) <= _MANY_PANELS else 2
    width = columns * NARROW_PX + (columns - 1) * 2 * _GAP_PX
    lines = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    verdicts = _panel_verdicts(panels) if key else []
    heights = [max(panel.height for panel in line) + _PANEL_HEAD_PX + _GAP_PX for line in lines]
    canvas = Canvas(theme, title, told, width, sum(heights) + 20 * math.ceil(len(verdicts) / 2))
    top = canvas.top + _draw_verdict_key(canvas, verdicts)
    for line, height in zip(lines, heights, strict=True):
        for i, panel in enumerate(line):
            _draw_panel(canvas, panel, _Place(_MARGIN + i * (NARROW_PX + 2 * _GAP_PX), top))
        top += height
    return canvas.figure


def _panel_verdicts(panels: Sequence[PlotPanel]) -> list[Verdict]:
    drawn = {row.mark for panel in panels for row in panel.rows}
    return [verdict for verdict in MARKS if MARK_OF[verdict] in drawn]


def _draw_verdict_key(canvas: Canvas, verdicts: Sequence[Verdict]) -> float:
    """The verdicts beside their marks, two in a line; returns the height."""
    for i, verdict in enumerate(verdicts):
        x, y = _MARGIN + (i % 2) * NARROW_PX / 2, canvas.top + 20 * (i // 2)
        canvas.mark(x + 5, y + 6, MARKS[verdict])
        canvas.text(x + 17, y + 10, verdict, _TEXT_PX)
    return 20 * math.ceil(len(verdicts) / 2)


def _draw_panel(canvas: Canvas, panel: PlotPanel, place: _Place) -> None:
    theme, at = canvas.theme, replace(place, y=place.y + _PANEL_HEAD_PX)
    canvas.text(place.x, place.y + 14, panel.name, min(13.0, 13.0 * 44 / len(panel.name)), weight="bold")
    canvas.text(place.x, place.y + 29, panel.note, min(10.5, 10.5 * 58 / len(panel.note)), theme.muted)
    bottom = at.y + panel.height - 22
    if panel.band:
        canvas.box(at.x + panel.band[0], at.y + 2, panel.band[1] - panel.band[0], panel.height - 24, theme.band)
    for x, words in panel.ticks:
        canvas.line([(at.x + x, at.y + 2), (at.x + x, bottom)], theme.faint)
        canvas.text(at.x + x, at.y + panel.height - 6, words, _TICK_PX, theme.muted, "middle")
    if panel.zero is not None:
        canvas.line([(at.x + panel.zero, at.y + 2), (at.x + panel.zero, bottom)], theme.muted)
    for row in panel.rows:
        _draw_panel_row(canvas, panel, row, at)


def _draw_panel_row(canvas: Canvas, panel: PlotPanel, row: PanelRow, at: _Place) -> None:
    theme, spot = canvas.theme, row.spot
    y = at.y + spot.y
    canvas.text(at.x, y + 4, row.label, _TEXT_PX)
    canvas.text(at.x + row.text_x, y + 4, row.text, _TEXT_PX, anchor="end")
    ends = [(at.x + spot.low, y), (at.x + spot.high, y)]
    if panel.bars:
        colour = theme.muted if row.mark == "baseline" else theme.blue
        canvas.box(at.x + panel.left, y - 6, max(spot.x - panel.left, 0.5), 12, colour)
        canvas.line(ends, theme.text, 1.2)
    else:
        mark = _BY_SHAPE[row.mark]
        canvas.line(ends, getattr(theme, mark.colour), 2)
        canvas.mark(at.x + spot.x, y, mark)
