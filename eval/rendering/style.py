"""The style of plots, on light and dark backgrounds, and how figures are laid out and saved.

Colours are Okabe and Ito's, which colour-blind readers can tell apart (Color Universal Design, 2008), a few lightened
for the dark background; each colour goes with a marker shape. Drawing an SVG again gives the same bytes: ids are fixed,
there is no date, and text is drawn as outlines.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from quantyard.protocol.measurements import Verdict

PIXELS_PER_IN: Final = 100  # of the layouts; a picture of 364 pixels is 3.64 inches wide
PNG_DPI: Final = 250  # sharp on a phone
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
    band: str  # what counts as the same


THEMES: Final = (
    Theme(
        "light", ground="#FFFFFF", text="#1A1A1A", faint="#DADADA", muted="#5E5E5E", green="#009E73",
        vermillion="#D55E00", blue="#0072B2", orange="#E69F00", purple="#CC79A7", band="#E3EEE6",
    ),
    Theme(
        "dark", ground="#0D1117", text="#E8E8E8", faint="#343B45", muted="#A3ABB5", green="#1FC698",
        vermillion="#FF7A29", blue="#56B4E9", orange="#F0B73A", purple="#E39AC4", band="#1D2B26",
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
        "figure.facecolor": theme.ground, "savefig.facecolor": theme.ground, "text.color": theme.text,
    }  # fmt: skip
    defaults = {key: value for key, value in mpl.rcParamsDefault.items() if key != "backend"}
    # The defaults override a user's matplotlibrc, so that plots look the same everywhere.
    context: AbstractContextManager[None] = mpl.rc_context({**defaults, **settings})
    return context


def new_plot_figure(width_in: float, height_in: float) -> Any:
    """A figure without pyplot: it needs no window system and leaves no global state."""
    figure = Figure(figsize=(width_in, height_in))
    FigureCanvasAgg(figure)
    return figure


def save_plot(figure: Any, folder: Path, name: str, theme: Theme) -> list[Path]:
    """Write `<name>-<theme>.svg` and `.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}-{theme.name}.{extension}" for extension in _FORMATS]
    for path in paths:
        kind = path.suffix[1:]
        figure.savefig(path, format=kind, dpi=PNG_DPI, metadata=dict(_METADATA[kind]))
    return paths
