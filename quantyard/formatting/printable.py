r"""Text that others wrote, made harmless for a terminal and a log: nothing acts, nothing hides, no password is shown.

A character that a terminal obeys, that turns the direction of writing, or that nobody sees comes out as its escape,
`\x1b` or `\u202e`, as Python writes it. Letters of every script and emoji stay as they are.
"""

from __future__ import annotations

import re
from typing import Final

# C0, DEL, C1; what Unicode calls ignorable (zero width, bidirectional, tags, fillers); other line ends; surrogates.
_FORBIDDEN: Final = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    "\ud800-\udfff"
)
# What joins letters or picks the form of the sign before it: part of a word or an emoji, hidden after anything else.
_JOINING: Final = "\u034f\u180b-\u180d\u180f\u200c\u200d\ufe00-\ufe0f"
_LINES: Final = re.compile(
    f"[{_FORBIDDEN}]|(?<![^\x00-\xbf{_FORBIDDEN}])(?<![0-9#*](?=\ufe0f))[{_JOINING}]|(?<=[{_JOINING}]{{2}})[{_JOINING}]"
)
_ONE_LINE: Final = re.compile(f"[\t\n]|{_LINES.pattern}")
# Of an address: `user:password@`, where no port is meant, or `token@`. Bounded: foreign text may hold many of them.
_USER_INFO: Final = re.compile(r"(?<=://)(?:([^/\s:@]{0,200}):(?!\d+(?:/|\s|$))\S{0,500}@|[^/\s]{0,500}@)")
_BARE_USER_INFO: Final = re.compile(r"[^/\s@]*:[^/\s]*@")
_TOKEN: Final = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
_HIDDEN: Final = "***"


def printable(text: str) -> str:
    """Text of several lines: its line ends and tabs stay. Made so twice, it is the same."""
    return _LINES.sub(_escape_unprintable, text)


def printable_line(value: object) -> str:
    """What has to stay on its line: line ends and tabs are escaped too."""
    return _ONE_LINE.sub(_escape_unprintable, str(value))


def printable_words(text: str) -> str:
    """The words of a server's message, on one line with single spaces, without anything that cannot be shown."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def replace_unprintable(text: str, sign: str) -> str:
    """The text with this sign in place of everything that acts or hides."""
    return _LINES.sub(sign, text)


def printable_url(text: str) -> str:
    """`http://me:secret@host` as `http://me:***@host`; a name alone may be a token and goes too, and the Hub's go."""
    return _TOKEN.sub(f"hf_{_HIDDEN}", _USER_INFO.sub(_printable_without_password, text))


def url_has_user_info(url: str) -> bool:
    """Whether a user's password or a token stands in an address, which may lack its `https://`."""
    return bool(_USER_INFO.search(url) or _BARE_USER_INFO.match(url))


def _escape_unprintable(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def _printable_without_password(found: re.Match[str]) -> str:
    return f"{_HIDDEN}@" if found[1] is None else f"{found[1]}:{_HIDDEN}@"
