"""The plots in pixels: scales, ticks, and the placement of names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from quantyard.formatting.numbers import format_axis_label

CHAR_PX: Final = 8.0  # width of a capital in a wide font at 12 px, an upper bound for most names
LINE_PX: Final = 15.0


@dataclass(frozen=True)
class AxisScale:
    """Maps values from `low` to `high` to pixels from `start` to `end`, linearly or logarithmically."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high, value = (math.log(x) for x in (self.low, self.high, value)) if self.log else (
            self.low, self.high, value)  # fmt: skip
        return round(self.start + (self.end - self.start) * (value - low) / (high - low), 1)

    def ticks(self, at_most: int) -> tuple[tuple[float, str], ...]:
        """Pixel and label of at most `at_most` round values."""
        found = _log_ticks(self.low, self.high, at_most) if self.log else _axis_ticks(self.low, self.high, at_most)
        return tuple((self(value), format_axis_label(value)) for value in found)


def plot_axis_span(values: Sequence[float], pad: float, *, log: bool = False) -> tuple[float, float]:
    """The range of the values, extended at both ends by the share `pad` of the span; never empty."""
    low, high = min(values), max(values)
    if log:
        low_log, high_log = math.log(low), math.log(high)
        more = pad * (high_log - low_log) or math.log(3)
        return math.exp(low_log - more), math.exp(high_log + more)
    more = pad * (high - low) or abs(high) / 2 or 1.0
    return low - more, high + more


def _axis_ticks(low: float, high: float, at_most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / at_most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10, 20) if power * m >= rough)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float, at_most: int) -> list[float]:
    """1, 2 and 5 times the powers of ten, or the powers alone; on a short range evenly spaced values."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for steps in ((1, 2, 5), (1,)):
        found = [m * 10.0**p for p in powers for m in steps if low <= m * 10.0**p <= high]
        if len(found) <= at_most:
            break
    if len(found) <= 2 and high < 10 * low:
        return _axis_ticks(low, high, at_most)
    return found[:: max(1, math.ceil(len(found) / at_most))]


def shorten_plot_name(text: str, width_px: float) -> str:
    """The name, shortened to the width."""
    room = int(width_px / CHAR_PX)
    return text if len(text) <= room else f"{text[: max(1, room - 1)]}…"


# ---- names beside points -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Shared area in square pixels."""
        if (
            self.right <= other.left or other.right <= self.left or self.bottom <= other.top
            or other.bottom <= self.top
        ):  # fmt: skip  (as most are)
            return 0.0
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return width * height

    @property
    def area(self) -> float:
        """In square pixels."""
        return (self.right - self.left) * (self.bottom - self.top)

    def distance(self, x: float, y: float) -> float:
        """The distance of a point from the rectangle; 0 inside."""
        return math.hypot(max(self.left - x, 0.0, x - self.right), max(self.top - y, 0.0, y - self.bottom))


@dataclass(frozen=True)
class PlacedName:
    """A name: `x` is its start, end or middle (`anchor`), `y` its base line. A far name has a line to its point."""

    text: str
    x: float
    y: float
    anchor: str
    box: Box
    is_far: bool


# Right, left, above and below, then the corners, ever farther away.
_DIRECTIONS: Final = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1))
_REACH_PX: Final = (10.0, 16.0, 24.0, 34.0, 46.0, 60.0)
_AWAY_COST: Final = 1.5  # square pixels of overlap that a pixel of distance weighs as much as
_CONFUSING: Final = 120.0


def place_plot_names(
    points: Sequence[tuple[float, float, str]], lines: Sequence[tuple[float, float, float, float]], frame: Box
) -> list[PlacedName]:
    """Places each name near its point, inside the frame, and off other names, points and lines as far as possible."""
    taken = [Box(x - 6, y - 6, x + 6, y + 6) for x, y, _ in points]
    taken += [box for line in lines for box in _boxes_along_line(line)]
    placed: list[PlacedName] = []
    for i, (x, y, text) in enumerate(points):
        others = [(px, py) for j, (px, py, _) in enumerate(points) if j != i]
        places = _places_of_plot_name(x, y, text)
        reach = _box_around_names(places)
        near = [box for box in taken if box.overlap(reach) > 0]
        best = min(places, key=lambda p: _plot_name_cost(p.box, (x, y), others, near, frame))
        placed.append(best)
        taken.append(best.box)
    return placed


def _places_of_plot_name(x: float, y: float, text: str) -> list[PlacedName]:
    width, found = len(text) * CHAR_PX, []
    for reach in _REACH_PX:
        for dx, dy in _DIRECTIONS:
            at = x + dx * reach
            left = at - (width if dx < 0 else width / 2 if dx == 0 else 0)
            top = y + dy * reach - (LINE_PX if dy < 0 else LINE_PX / 2 if dy == 0 else 0)
            box = Box(left, top, left + width, top + LINE_PX)
            anchor = "start" if dx > 0 else "end" if dx < 0 else "middle"
            found.append(PlacedName(text, round(at, 1), round(top + LINE_PX - 4, 1), anchor, box, is_far=reach > 16))
    return found


def _box_around_names(places: Sequence[PlacedName]) -> Box:
    """The bounding box of all places."""
    boxes = [place.box for place in places]
    return Box(
        min(box.left for box in boxes), min(box.top for box in boxes),
        max(box.right for box in boxes), max(box.bottom for box in boxes),
    )  # fmt: skip


def _plot_name_cost(
    box: Box, own: tuple[float, float], others: Sequence[tuple[float, float]], taken: Sequence[Box], frame: Box
) -> float:
    away = box.distance(*own)
    covered = sum(box.overlap(other) for other in taken) + 3 * (box.area - box.overlap(frame))
    return covered + _AWAY_COST * away + _CONFUSING * sum(box.distance(*other) < away for other in others)


def _boxes_along_line(line: tuple[float, float, float, float]) -> list[Box]:
    """Small boxes along a line."""
    x0, y0, x1, y1 = line
    steps = 1 + int(math.hypot(x1 - x0, y1 - y0) / 4)
    spots = [(x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps) for i in range(steps + 1)]
    return [Box(x - 2, y - 2, x + 2, y + 2) for x, y in spots]


def plot_line_segments(corners: Sequence[tuple[float, float]]) -> list[tuple[float, float, float, float]]:
    """The segments of a polyline."""
    return [(*one, *two) for one, two in pairwise(corners)]
