"""The card shows the manifest in blocks: a table or a list between two marks, `<!-- quantyard:files -->` and
`<!-- /quantyard:files -->`, so that `verify` can read it back and compare it with the manifest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from quantyard.card.escaping import SafeMarkdown
from quantyard.formatting.numbers import DASH

_MARK: Final = re.compile(r"<!-- (/?)quantyard:([A-Za-z0-9_.-]+) -->")
_FRONT_MATTER: Final = re.compile(r"\A---\r?\n.*?\n---[ \t]*\r?\n", re.DOTALL)
_NO_BREAK: Final = "\N{NO-BREAK SPACE}"
_UNBROKEN: Final = 40  # characters; a longer cell may take two lines
_UNBROKEN_WORDS: Final = 28
_FENCE: Final = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")


@dataclass(frozen=True)
class CardTable:
    """A table. The first column names the rows; the columns listed in `words` are text too, the others are numbers."""

    name: str
    title: str  # for people: "files table"
    head: tuple[str, ...]
    rows: tuple[tuple[SafeMarkdown, ...], ...]
    words: frozenset[str] = frozenset()
    quoted: bool = False  # inside a warning

    def lines(self) -> list[str]:
        """Its Markdown, line by line; a number stays beside its unit."""
        rule = [":---" if i == 0 or name in self.words else "---:" for i, name in enumerate(self.head)]
        rows = ([self._unbroken(i, cell) for i, cell in enumerate(row)] for row in self.rows)
        return [f"| {' | '.join(row)} |" for row in (self.head, rule, *rows)]

    def _unbroken(self, column: int, cell: str) -> str:
        narrow = len(cell) <= (_UNBROKEN_WORDS if self.head[column] in self.words else _UNBROKEN)
        return cell.replace(" ", _NO_BREAK) if narrow else cell


@dataclass(frozen=True)
class CardList:
    """A list with one fact per item; an item may have several lines. A `plain` one is a paragraph."""

    name: str
    title: str
    items: tuple[SafeMarkdown, ...]
    quoted: bool = False
    plain: bool = False

    def lines(self) -> list[str]:
        """Its Markdown, line by line."""
        if self.plain:
            return [str(item) for item in self.items]
        return [line for item in self.items for line in f"- {item}".split("\n")]


Block = CardTable | CardList


def card_table(
    name: str, title: str, head: Sequence[str], rows: Iterable[Sequence[SafeMarkdown]], *, words: Iterable[str] = (),
    quoted: bool = False,
) -> CardTable | None:
    """A table without its empty columns; None if it has no rows."""
    found = [tuple(row) for row in rows]
    keep = [i for i in range(len(head)) if i == 0 or any(row[i] != DASH for row in found)]
    kept = tuple(tuple(row[i] for i in keep) for row in found)
    return CardTable(name, title, tuple(head[i] for i in keep), kept, frozenset(words), quoted) if found else None


def render_card_block(block: Block) -> SafeMarkdown:
    """The block between its marks."""
    lines = [f"<!-- quantyard:{block.name} -->", "", *block.lines(), "", f"<!-- /quantyard:{block.name} -->"]
    return SafeMarkdown("\n".join(f"> {line}".rstrip() if block.quoted else line for line in lines))


def card_blocks(card: str) -> Iterator[tuple[str, list[str]]]:
    """Every block of a card, in order: name and lines. Marks inside a code block are ignored."""
    name, lines, fence = "", list[str](), ""
    for raw in _FRONT_MATTER.sub("", card).splitlines():  # where a folded tag could look like a fence
        line = raw.removeprefix(">").removeprefix(" ") if raw.startswith(">") else raw
        fence = card_fence_after(line, fence)
        mark = None if fence else _MARK.fullmatch(line.strip())
        if mark and not mark[1]:
            name, lines = mark[2], []
        elif mark and mark[2] == name:
            yield name, lines
            name = ""
        elif name and line.strip():
            lines.append(line.rstrip())


def card_fence_after(line: str, fence: str) -> str:
    """The fence of the code block that is open after this line; "" if there is none."""
    found = _FENCE.match(line)
    if not found:
        return fence
    if not fence:
        return str(found[1])
    closes = found[1].startswith(fence) and not found[2].strip()
    return "" if closes else fence


def card_table_cells(line: str) -> list[str]:
    """The cells of one line of a table; the cells never contain a bar."""
    return [cell.replace(_NO_BREAK, " ").strip() for cell in line.strip().strip("|").split("|")]
