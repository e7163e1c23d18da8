"""The style of plots, on light and dark backgrounds, and how figures are laid out and saved.

Colours are Okabe and Ito's, which colour-blind readers can tell apart (Color Universal Design, 2008), a few lightened
for the dark background; each colour goes with a marker shape. Drawing an SVG again gives the same bytes: ids are fixed,
there is no date, and text is drawn as outlines.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import Bbox

from quantyard.formatting.numbers import format_axis_label, format_leading_digit
from quantyard.protocol.measurements import Verdict

PNG_DPI: Final = 160
_FORMATS: Final = ("svg", "png")
_METADATA: Final[Mapping[str, Mapping[str, str | None]]] = {
    "svg": {"Date": None, "Creator": "Quantyard"},
    "png": {"Software": "Quantyard"},
}


@dataclass(frozen=True)
class Theme:
    """A background and the colours used on it."""

    name: str
    ground: str
    text: str
    faint: str  # grid, secondary marks
    muted: str  # secondary text
    green: str
    vermillion: str
    blue: str
    orange: str
    purple: str


THEMES: Final = (
    Theme(
        "light", ground="#FFFFFF", text="#1A1A1A", faint="#DADADA", muted="#5E5E5E", green="#009E73",
        vermillion="#D55E00", blue="#0072B2", orange="#E69F00", purple="#CC79A7",
    ),
    Theme(
        "dark", ground="#0D1117", text="#E8E8E8", faint="#343B45", muted="#A3ABB5", green="#1FC698",
        vermillion="#FF7A29", blue="#56B4E9", orange="#F0B73A", purple="#E39AC4",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Mark:
    """A marker: its shape, the name of its colour in the theme, and whether it is hollow."""

    shape: str
    colour: str
    hollow: bool = False

    def style(self, theme: Theme) -> dict[str, Any]:
        """Keyword arguments for matplotlib's `plot`."""
        colour = getattr(theme, self.colour)
        face = theme.ground if self.hollow else colour
        return {"marker": self.shape, "color": colour, "markerfacecolor": face, "markeredgecolor": colour}


BASELINE: Final = Mark("s", "text")
MARKS: Final[Mapping[Verdict, Mark]] = {
    "better": Mark("^", "blue"),
    "same": Mark("o", "green"),
    "worse": Mark("v", "vermillion"),
    "too few questions": Mark("D", "muted", hollow=True),
    "no signal": Mark("X", "muted"),
}


def plot_style(theme: Theme) -> AbstractContextManager[None]:
    """Matplotlib's settings while a plot of this theme is drawn."""
    settings: dict[str, Any] = {
        "svg.hashsalt": "quantyard", "svg.fonttype": "path", "font.family": "DejaVu Sans", "font.size": 10,
        "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.labelsize": 10,
        "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "axes.grid": True,
        "grid.color": theme.faint, "grid.linewidth": 0.7, "figure.facecolor": theme.ground,
        "savefig.facecolor": theme.ground, "axes.facecolor": theme.ground, "axes.edgecolor": theme.muted,
        "text.color": theme.text, "axes.labelcolor": theme.text, "axes.titlecolor": theme.text,
        "xtick.color": theme.muted, "ytick.color": theme.muted, "xtick.labelcolor": theme.text,
        "ytick.labelcolor": theme.text, "legend.frameon": False, "legend.fontsize": 9, "lines.markersize": 6,
        "ytick.major.size": 0, "xtick.minor.pad": 5.0, "ytick.minor.pad": 3.5, "ytick.minor.size": 0,
    }  # fmt: skip
    defaults = {key: value for key, value in mpl.rcParamsDefault.items() if key != "backend"}
    # The defaults override a user's matplotlibrc, so that plots look the same everywhere.
    context: AbstractContextManager[None] = mpl.rc_context({**defaults, **settings})
    return context


def new_plot_figure(width_in: float, height_in: float) -> Any:
    """A figure without pyplot: it needs no window system and leaves no global state."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_plot(figure: Any, folder: Path, name: str, theme: Theme) -> list[Path]:
    """Write `<name>-<theme>.svg` and `.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}-{theme.name}.{extension}" for extension in _FORMATS]
    settle_plot_layout(figure)
    for path in paths:
        kind = path.suffix[1:]
        figure.savefig(path, format=kind, dpi=PNG_DPI, metadata=dict(_METADATA[kind]))
    return paths


def plot_headline(figure: Any, theme: Theme, title: str, subtitle: str) -> None:
    """A title and a line or two below it, flush left above the panels."""
    width_in = float(figure.get_figwidth())
    lines = textwrap.wrap(subtitle, int(width_in * 14))
    height_pt = 20 + 13 * len(lines) + 6
    space = height_pt / 72 / float(figure.get_figheight())
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - space), w_pad=0.08, h_pad=0.08)
    inset = 0.1 / width_in
    figure.text(inset, 1 - 6 / 72 / figure.get_figheight(), title, size=12.5, weight="bold", va="top")
    below = 1 - 26 / 72 / figure.get_figheight()
    figure.text(inset, below, "\n".join(lines), size=9, color=theme.muted, va="top", linespacing=1.25)


def plot_plain_log_axis(axis: Any) -> None:
    """Label a log axis with plain numbers; on a short range also between the powers of ten."""
    low, high = axis.get_view_interval()
    between = "23468" if high < 4 * low else "25" if high < 15 * low else ""
    axis.set_major_formatter(FuncFormatter(lambda x, _: format_axis_label(x)))
    axis.set_minor_formatter(
        FuncFormatter(lambda x, _: format_axis_label(x) if format_leading_digit(x) in between else "")
    )


def plot_row_axis(axes: Any, names: Sequence[str]) -> None:
    """One named row for each file, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)


def settle_plot_layout(figure: Any) -> None:
    """Lay the figure out once and freeze it: layout takes most of the time, and would be repeated for every file."""
    if figure.get_layout_engine() is not None:
        figure.canvas.draw()
        figure.set_layout_engine("none")


def label_plot_points(
    axes: Any, theme: Theme, points: Sequence[tuple[float, float, str]], lines: Iterable[Sequence[tuple[float, float]]]
) -> None:
    """Write each name beside its point, at the first of several places where it covers nothing.

    Names avoid the points, the names already written, and `lines` (sequences of points in data units).
    """
    settle_plot_layout(axes.figure)
    renderer = axes.figure.canvas.get_renderer()
    places = axes.transData.transform([point[:2] for point in points])
    taken = [_box(x, y, 5) for x, y in places]
    for line in lines:
        taken += _along(axes.transData.transform(line))
    for i, (x, y, name) in enumerate(points):
        text = axes.annotate(
            name, (x, y), xytext=(0, 0), textcoords="offset points", size=9, color=theme.text,
            arrowprops={"arrowstyle": "-", "color": theme.muted, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 4},
        )  # fmt: skip
        text.set_path_effects([withStroke(linewidth=2.5, foreground=theme.ground)])
        others = [place for j, place in enumerate(places) if j != i]
        taken.append(_place(axes, text, taken, (places[i], others), renderer))


def _box(x: float, y: float, half: float) -> Bbox:
    return Bbox.from_bounds(x - half, y - half, 2 * half, 2 * half)


def _along(corners: Any) -> list[Bbox]:
    """Small boxes along a line, in pixels."""
    boxes = []
    for (x0, y0), (x1, y1) in pairwise(corners):
        steps = 1 + int(math.hypot(x1 - x0, y1 - y0) / 3)
        boxes += [_box(x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps, 1.5) for i in range(steps + 1)]
    return boxes


_MISTAKABLE: Final = 150.0  # the cost of a name nearer to another point, in covered square pixels
_PLACES: Final = [
    (dx * r, dy * r)
    for r in (1, 2, 3, 4, 5)
    for dx, dy in ((8, 6), (-8, 6), (8, -6), (-8, -6), (0, 9), (0, -9), (9, 0), (-9, 0))
]


def _place(axes: Any, text: Any, taken: Sequence[Bbox], points: tuple[Any, Sequence[Any]], renderer: Any) -> Bbox:
    """Move `text` to the best place: the nearest where it covers nothing and is closer to its own point than to others.

    Returns the box that the text then covers. `points` are its own point and the others, in pixels.
    """
    frame = axes.get_window_extent(renderer)
    best: tuple[float, int] | None = None
    for i, place in enumerate(_PLACES):
        box = _moved(text, place, renderer)
        outside = box.width * box.height - _overlap(box, frame)
        cost = 3 * outside + sum(_overlap(box, other) for other in taken)
        own = _distance(box, points[0])
        cost += sum(_MISTAKABLE for other in points[1] if _distance(box, other) < own + 4)
        if best is None or cost < best[0]:
            best = (cost, i)
        if cost <= 0:
            break
    assert best is not None
    return _moved(text, _PLACES[best[1]], renderer)


def _distance(box: Bbox, point: Any) -> float:
    x, y = point
    return math.hypot(max(box.x0 - x, 0, x - box.x1), max(box.y0 - y, 0, y - box.y1))


def _moved(text: Any, place: tuple[float, float], renderer: Any) -> Bbox:
    dx, dy = place
    text.arrow_patch.set_visible(math.hypot(dx, dy) > 11)
    text.set_position(place)
    text.set_horizontalalignment("left" if dx > 0 else "right" if dx < 0 else "center")
    text.set_verticalalignment("bottom" if dy > 0 else "top" if dy < 0 else "center")
    text.update_positions(renderer)
    return Text.get_window_extent(text, renderer).padded(1.0)  # the annotation's own extent would include the arrow


def _overlap(one: Bbox, two: Bbox) -> float:
    """Area in square pixels."""
    both = Bbox.intersection(one, two)
    return float(both.width * both.height) if both is not None else 0.0
