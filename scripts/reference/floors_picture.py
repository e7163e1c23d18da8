# ruff: noqa: INP001 (a helper of scripts, not a package)
"""The picture of the floors in docs/architecture/, drawn from the contract that import-linter enforces."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

_WIDTH, _HEIGHT, _GAP = 880, 44, 8
_HOST, _SHARED = "#5b7fb5", "#2f9167"  # readable on light and dark pages


def floors_picture(pyproject: Path) -> str:
    """An SVG with one row for each layer, the highest first; rooms that images hold too have a colour of their own."""
    contracts = tomllib.loads(pyproject.read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    host_only = next(contract["forbidden_modules"] for contract in contracts if contract["type"] == "forbidden")
    floors = [[room.strip().strip("()") for room in re.split(r"[|:]", layer)] for layer in layers]
    return _svg(floors, {name.removeprefix("quantyard.") for name in host_only})


def _svg(floors: list[list[str]], host_only: set[str]) -> str:
    bottom = len(floors) * (_HEIGHT + _GAP) + _GAP
    size = f"0 0 {_WIDTH} {bottom + _HEIGHT}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" font-family="sans-serif" font-size="15">'
    parts = [head, "<title>The floors: imports point down only</title>"]
    for number, rooms in enumerate(floors):
        y = _GAP + number * (_HEIGHT + _GAP)
        width = (_WIDTH - _GAP * (len(rooms) + 1)) / len(rooms)
        for place, room in enumerate(rooms):
            colour = _HOST if room in host_only else _SHARED
            parts.append(_box(_GAP + place * (width + _GAP), y, width, room, colour))
    legend = f'<text x="{_GAP}" y="{bottom + _HEIGHT / 2}" fill="{_SHARED}">green: images hold these too, and builder,'
    return "\n".join([*parts, f"{legend} eval and server may import them</text>", "</svg>"]) + "\n"


def _box(x: float, y: float, width: float, room: str, colour: str) -> str:
    frame = f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_HEIGHT}" rx="6"'
    text = f'<text x="{x + width / 2:.1f}" y="{y + _HEIGHT / 2 + 5}" text-anchor="middle" font-weight="600"'
    fill = f'fill="{colour}"'
    return f'{frame} {fill} fill-opacity="0.18" stroke="{colour}"/>{text} {fill}>{room}</text>'
