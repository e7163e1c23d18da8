"""Breaks lines for a terminal: at words, later lines below the text of the first, commands and paths whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from rich.cells import cell_len
from rich.text import Text

# A command after a colon ends at the end of its sentence: whoever copies it must not copy a line end with it.
_COMMAND: Final = re.compile(
    r"(?<=: )(?: ?)(?:[A-Z_]+=\S* +)*(?:make|quantyard|docker|env|hf|pip|curl) \S.*?(?=[.;,)](?: |$)| or |  |$)"
)
_UNIT: Final = re.compile(r"\S+")
# One name or two before a text: two blanks or more end a name.
_NAMES: Final = (re.compile(r" *(?:\S+(?: \S+)*  +){2}"), re.compile(r" *(?:\S+(?: \S+)*  +)"))
_WIDEST_NAMES: Final = (34, 22)
_LATER: Final = 2  # blanks before the later lines of a text without a name


def wrapped_lines(text: Text, width: int) -> Iterator[Text]:
    """The lines of a text, none wider than `width` unless it holds a longer word, path or command."""
    for line in text.split("\n", allow_blank=True):
        if cell_len(line.plain) <= width:
            yield line
        else:
            yield from _wrapped_lines(line, width)


def _wrapped_lines(line: Text, width: int) -> Iterator[Text]:
    start, hang = 0, _wrapped_indent(line.plain, width)
    for begin, end in _unwrapped_units(line.plain):
        used = hang if start else 0
        if line.plain[start:begin].strip() and used + cell_len(line.plain[start:end]) > width:
            yield _wrapped_part(line, start, begin, hang, width)
            start = begin
    yield _wrapped_part(line, start, len(line.plain), hang, width)


def _wrapped_part(line: Text, start: int, end: int, hang: int, width: int) -> Text:
    """What is too long begins further to the left."""
    begin = start or len(line.plain) - len(line.plain.lstrip())
    part = line[begin:end]
    part.rstrip()
    indent = min(hang if start else begin, max(0, width - part.cell_len))
    return Text(" " * indent).append_text(part)


def _wrapped_indent(line: str, width: int) -> int:
    """Where later lines begin: below the text after the name, else two blanks in."""
    for names, widest in zip(_NAMES, _WIDEST_NAMES, strict=True):
        match = names.match(line)
        if match and not match[0].rstrip().endswith(":") and match.end() <= min(widest, 2 * width // 3):
            return match.end()
    leading = len(line) - len(line.lstrip())
    return leading if 0 < leading <= 2 * width // 3 else _LATER


def _unwrapped_units(line: str) -> Iterator[tuple[int, int]]:
    """Where what must not be broken begins and ends."""
    commands = [(match.start() + (match[0][0] == " "), match.end()) for match in _COMMAND.finditer(line)]
    for match in _UNIT.finditer(line):
        inside = next(((begin, end) for begin, end in commands if begin <= match.start() < end), None)
        if inside is None:
            yield match.span()
        elif match.start() == inside[0]:
            yield inside[0], max(inside[1], match.end())
