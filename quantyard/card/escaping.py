"""Escapes foreign text for the card: it yields no Markdown, HTML or link, and its length is limited.

`SafeMarkdown` is escaped already. The card's template escapes every other string, so a forgotten escape shows as a
stray backslash, never as an injection.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

LIMIT: Final = 200  # characters of a name, a finding, a tag
TEXT_LIMIT: Final = 200_000  # characters of a licence
_PLAIN: Final = re.compile(r"[A-Za-z0-9 ._:/@+,=()%-]+")
_URL: Final = re.compile(r"https://[A-Za-z0-9.-]+(?:/[A-Za-z0-9._~/%+@:=&?#-]*)?")
# Entities mean the same in a table, in a heading and inside HTML; a backslash does not.
_ENTITIES: Final = {c: f"&#{ord(c)};" for c in '\\|`"$@~^{}'} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_LITERAL: Final = {c: f"\\{c}" for c in "*_[]!#"}
_ESCAPES: Final = str.maketrans(_ENTITIES | _LITERAL)
_HTML: Final = str.maketrans(_ENTITIES | {c: f"&#{ord(c)};" for c in "*_[]!#'"})
# The beginning of a list, a heading or a rule; a part of what a renderer may turn into a link.
_LEADING: Final = re.compile(r"^(?:([-+=])|(\d+)([.)])(?=\s|$))")
_ADDRESS: Final = re.compile(r":(?=/)|\.(?=[^\W\d_])")


class SafeMarkdown(str):
    """Markdown that needs no escaping."""

    __slots__ = ()


def clean_card_text(value: object, limit: int = LIMIT) -> str:
    """One line without control characters and direction marks, of at most `limit` characters."""
    kept = "".join(_kept_card_character(c) for c in str(value)[: 10 * limit])
    line = " ".join(kept.split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def _kept_card_character(c: str) -> str:
    category = unicodedata.category(c)
    if category in ("Cc", "Zl", "Zp"):
        return " "
    return "" if category in ("Cf", "Cs", "Co") else c


def escape_markdown(value: object, limit: int = LIMIT) -> SafeMarkdown:
    """The text with every character escaped that Markdown or HTML would interpret."""
    line = clean_card_text(value, limit).translate(_ESCAPES)
    line = _ADDRESS.sub(lambda found: f"&#{ord(found[0])};", line)
    return SafeMarkdown(_LEADING.sub(lambda f: f"\\{f[1]}" if f[1] else f"{f[2]}\\{f[3]}", line))


def escape_card_html(value: object, limit: int = LIMIT) -> SafeMarkdown:
    """The text for a line of HTML, where a backslash escapes nothing."""
    return SafeMarkdown(clean_card_text(value, limit).translate(_HTML))


def markdown_code(value: object, limit: int = LIMIT) -> SafeMarkdown:
    """A name as inline code if all its characters are plain; otherwise as escaped text."""
    line = clean_card_text(value, limit)
    return SafeMarkdown(f"`{line}`") if _PLAIN.fullmatch(line) else escape_markdown(value, limit)


def markdown_link(label: SafeMarkdown, url: str) -> SafeMarkdown:
    """A link if the address is a valid https URL; otherwise the label alone."""
    return SafeMarkdown(f"[{label}]({url})") if _URL.fullmatch(url) and len(url) <= 4 * LIMIT else label


def markdown_code_block(body: str, language: str = "text") -> SafeMarkdown:
    """A code block whose fence is longer than any in its content."""
    lines = (clean_card_line(line) for line in body[:TEXT_LIMIT].replace("\r\n", "\n").replace("\r", "\n").split("\n"))
    content = "\n".join(lines).strip("\n")
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", content)), default=0))
    return SafeMarkdown(f"{fence}{language}\n{content}\n{fence}")


def clean_card_line(line: str) -> str:
    """One line of a longer text, with its spaces."""
    return "".join(c if c == "\t" else _kept_card_character(c) for c in line).rstrip()


def join_markdown(separator: str, parts: Iterable[SafeMarkdown]) -> SafeMarkdown:
    """The non-empty parts, joined."""
    return SafeMarkdown(separator.join(part for part in parts if part))
