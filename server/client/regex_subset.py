r"""Rewrites regular expressions so that both constrainers, llama.cpp's grammar and Outlines' automaton, enforce them.

Each interprets a schema's `pattern` differently, and neither reports what it misreads. llama.cpp ignores a pattern with
`\d`, applies a quantifier after an escape to the whole literal before it, and lets `.` and `[^…]` match a quotation
mark, which ends the JSON string. Outlines drops the group around `a|b`. Both apply the pattern to the JSON text
*between the quotation marks*, where a line break is two characters.

So a pattern is parsed and rewritten in the few forms that both interpret alike: literals, classes of code points,
groups, `|`, `?`, `*`, `+`, `{m}` and `{m,n}`, anchored at both ends. The result matches a subset of what the original
matches: `\d` is 0 to 9, and a negated class excludes every character that JSON must escape.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, Final

# Python's own parser of regular expressions has no public name.
_parser: Any = importlib.import_module("re._parser")
_UNBOUNDED: Final = int(_parser.MAXREPEAT)
MAX_REPEATS: Final = 1000  # llama.cpp refuses a grammar with 2,000 repetitions
MAX_DEPTH: Final = 50  # llama.cpp ignores a pattern with groups nested 100 deep

Range = tuple[int, int]  # code points, both ends included
_ASCII: Final[tuple[Range, ...]] = ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0x7E))  # characters without a JSON escape
# All characters without a JSON escape, except line separators, surrogates and U+FFFD (invalid UTF-8).
_SAFE: Final[tuple[Range, ...]] = (*_ASCII, (0xA0, 0x2027), (0x202A, 0xD7FF), (0xE000, 0xFFFC), (0xFFFE, 0x10FFFF))
_DIGIT: Final[tuple[Range, ...]] = ((0x30, 0x39),)
_WORD: Final[tuple[Range, ...]] = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_BLANK: Final[tuple[Range, ...]] = ((0x20, 0x20),)
_PLAIN: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_ @:;,-=/")

_REASONS: Final = {
    "ASSERT": "it looks ahead or behind", "ASSERT_NOT": "it looks ahead or behind",
    "GROUPREF": "it refers back to a group", "GROUPREF_EXISTS": "it depends on a group",
    "POSSESSIVE_REPEAT": "a possessive quantifier", "ATOMIC_GROUP": "an atomic group",
}
_ANCHORS: Final = {
    "AT_BEGINNING": "^", "AT_BEGINNING_STRING": "^", "AT_END": "$", "AT_END_STRING": "$",
}


class PatternRefused(ValueError):
    """A pattern that cannot be enforced; `reason` says why."""

    def __init__(self, pattern: str, reason: str) -> None:
        super().__init__(f"The pattern {pattern!r} cannot be enforced during generation: {reason}.")
        self.pattern, self.reason = pattern, reason


class _Reason(Exception):
    """The reason of a `PatternRefused`, raised where the whole pattern is not known."""


def normalise_client_regex(pattern: str) -> str:
    """The same pattern, or a narrower one, in the forms that llama.cpp and Outlines interpret alike.

    The result matches the *JSON text* of a string, without its quotation marks, from `^` to `$`. A pattern that is not
    anchored may match anywhere in the string, so the result allows other characters around it.

    Raises:
        PatternRefused: the pattern has no such form, or is not a regular expression.
    """
    try:
        text = _write_regex_sequence(list(_parse_regex(pattern)), starts=True, ends=True)
        if max(_regex_group_depths(text), default=0) > MAX_DEPTH:
            raise _Reason(f"its groups are nested more than {MAX_DEPTH} deep")
    except _Reason as reason:
        raise PatternRefused(pattern, str(reason)) from None
    except RecursionError:
        raise PatternRefused(pattern, "it is nested too deeply") from None
    return f"^{text}$"


def _parse_regex(pattern: str) -> Any:
    if "{," in pattern:  # Python reads `{,3}` as `{0,3}`, other dialects as literal characters
        raise _Reason("dialects disagree about `{,`: write `{0,`")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # `[[:alpha:]]`, `[a&&b]`: other dialects read them differently
        try:
            tree = _parser.parse(pattern)
        except (_parser.error, OverflowError) as error:
            raise _Reason(f"it is not a regular expression of every dialect ({error})") from None
        except FutureWarning as warning:
            raise _Reason(f"dialects disagree about it ({warning})") from None
    if tree.state.flags & ~_parser.SRE_FLAG_UNICODE:
        raise _Reason("inline flags")
    return tree


def _write_regex_sequence(items: list[Any], *, starts: bool, ends: bool) -> str:
    """Write a sequence of items.

    `starts` (`ends`): the sequence begins (ends) the whole pattern, so an anchor is allowed there; without an anchor,
    any characters may come before (after) it.
    """
    first = starts and bool(items) and _regex_anchor(items[0]) == "^"
    items = items[1:] if first else items
    last = ends and bool(items) and _regex_anchor(items[-1]) == "$"
    items = items[:-1] if last else items
    opens, closes = starts and not first, ends and not last
    if len(items) == 1 and _is_regex_group(items[0]):  # the anchors may be inside the group
        return _write_regex_item(items[0], starts=opens, ends=closes)
    return _write_regex_between(items, opens, closes)


def _write_regex_between(items: list[Any], opens: bool, closes: bool) -> str:
    head = tail = ""
    if opens:  # an anchor may be inside the first group; without one, anything may come before
        if len(items) > 1 and _is_regex_group(items[0]):
            head, items = _write_regex_item(items[0], starts=True, ends=False), items[1:]
        else:
            head = _any_regex_character()
    if closes:
        if items and _is_regex_group(items[-1]):
            tail, items = _write_regex_item(items[-1], starts=False, ends=True), items[:-1]
        elif items or not opens:
            tail = _any_regex_character()
    return head + "".join(_write_regex_item(item) for item in items) + tail


def _regex_anchor(item: Any) -> str:
    return _ANCHORS.get(str(item[1]), "") if str(item[0]) == "AT" else ""


def _is_regex_group(item: Any) -> bool:
    return str(item[0]) in ("BRANCH", "SUBPATTERN")


def _write_regex_item(item: Any, *, starts: bool = False, ends: bool = False) -> str:
    kind, value = str(item[0]), item[1]
    if kind == "BRANCH":
        return _write_regex_branch(
            [_write_regex_sequence(list(option), starts=starts, ends=ends) for option in value[1]]
        )
    if kind == "SUBPATTERN":
        return _write_regex_group(value, starts, ends)
    if kind in ("MAX_REPEAT", "MIN_REPEAT"):  # a lazy one matches the same whole strings
        return _write_regex_repeat(*value)
    if kind in _WRITERS:
        return _WRITERS[kind](value)
    if kind == "AT":
        raise _Reason("it has an anchor inside" if str(value) in _ANCHORS else "it has a word boundary")
    raise _Reason(_REASONS.get(kind, kind.lower()))


def _write_regex_group(value: Any, starts: bool, ends: bool) -> str:
    _number, added, removed, inner = value
    if added or removed:
        raise _Reason("inline flags")
    return _wrap_regex(_write_regex_sequence(list(inner), starts=starts, ends=ends))


def _write_regex_branch(options: Sequence[str]) -> str:
    """`(?:a|b)`; an empty option becomes a question mark, which grammars handle better."""
    written = [option for option in options if option]
    if not written:
        return ""
    return f"(?:{'|'.join(written)})" + ("?" if len(written) < len(options) else "")


def _write_regex_repeat(least: int, most: int, inner: Any) -> str:
    text = _wrap_regex(_write_regex_sequence(list(inner), starts=False, ends=False))
    bounded = least if most == _UNBOUNDED else int(most)
    if max(least, bounded) > MAX_REPEATS:
        raise _Reason(f"it repeats something {max(least, bounded):,} times, and the limit is {MAX_REPEATS:,}")
    if not text or most == 0:
        return ""
    if most == _UNBOUNDED:  # `{3,}` is not interpreted alike, so it becomes `{3}` and `*`
        return {0: f"{text}*", 1: f"{text}+"}.get(least, f"{text}{{{least}}}{text}*")
    if (least, most) == (0, 1):
        return f"{text}?"
    return f"{text}{{{least}}}" if least == most else f"{text}{{{least},{most}}}"


def _wrap_regex(text: str) -> str:
    """The text as one unit, so that a quantifier may follow it."""
    is_class = text.startswith("[") and text.find("]") == len(text) - 1
    is_group = text.startswith("(") and all(_regex_group_depths(text)[:-1]) and text.endswith(")")
    return text if is_class or is_group or not text else f"(?:{text})"


def _regex_literal(code: int) -> str:
    return chr(code) if chr(code) in _PLAIN else _regex_class_or_escapes([("LITERAL", code)])


def _regex_not_literal(code: int) -> str:
    return _write_regex_class(_regex_ranges_without(_SAFE, [(code, code)]))


def _regex_class_or_escapes(members: Sequence[Any]) -> str:
    """A class. Characters that JSON escapes are kept, as their escapes, if they are listed one by one."""
    pairs = [(str(kind), value) for kind, value in members]
    if pairs[0][0] == "NEGATE":
        # Outside of ASCII, dialects disagree about what a category excludes, so only ASCII is allowed.
        universe = _ASCII if any(kind == "CATEGORY" for kind, _ in pairs) else _SAFE
        return _write_regex_class(
            _regex_ranges_without(universe, [r for pair in pairs[1:] for r in _regex_class_ranges(*pair)])
        )
    named = [chr(value) for kind, value in pairs if kind == "LITERAL" and not _is_safe_in_regex(value)]
    escaped = [
        "".join(_spell_regex_character(c) for c in json.dumps(char)[1:-1])
        for char in named
        if not _is_surrogate_in_regex(char)
    ]
    safe = [r for pair in pairs for r in _regex_class_ranges(*pair)]
    kept = _regex_ranges_without(_SAFE, _regex_ranges_without(((0, 0x10FFFF),), safe))
    options = [*([_write_regex_class(kept)] if kept or not escaped else []), *escaped]
    return options[0] if options == escaped[:1] or len(options) == 1 else f"(?:{'|'.join(options)})"


def _spell_regex_character(char: str) -> str:
    return char if char in _PLAIN else _write_regex_class([(ord(char), ord(char))])


def _is_safe_in_regex(code: int) -> bool:
    return any(low <= code <= high for low, high in _SAFE)


def _is_surrogate_in_regex(char: str) -> bool:
    return 0xD800 <= ord(char) <= 0xDFFF


def _regex_class_ranges(kind: str, value: Any) -> Iterable[Range]:
    if kind == "LITERAL":
        return [(value, value)]
    if kind == "RANGE":
        return [value]
    return _CATEGORIES[str(value)]


def _regex_ranges_without(ranges: Sequence[Range], holes: Iterable[Range]) -> list[Range]:
    """The code points of `ranges` that are in no hole."""
    left = list(ranges)
    for low, high in holes:
        pieces = [piece for a, b in left for piece in ((a, min(b, low - 1)), (max(a, high + 1), b))]
        left = sorted({(a, b) for a, b in pieces if a <= b})
    return left


def _write_regex_class(ranges: Sequence[Range]) -> str:
    if not ranges:
        raise _Reason("it has a class without any allowed character")
    return "[" + "".join(_regex_point(a) if a == b else f"{_regex_point(a)}-{_regex_point(b)}" for a, b in ranges) + "]"


def _regex_point(code: int) -> str:
    if chr(code).isascii() and chr(code).isalnum():
        return chr(code)
    return f"\\x{code:02X}" if code < 0x100 else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


def _any_regex_character() -> str:
    return _write_regex_class(_SAFE) + "*"


def _regex_group_depths(text: str) -> list[int]:
    """How many groups are open after each character; literal brackets do not count, they are written as classes."""
    return list(accumulate((char == "(") - (char == ")") for char in text))


_CATEGORIES: Final = {
    "CATEGORY_DIGIT": _DIGIT, "CATEGORY_NOT_DIGIT": _regex_ranges_without(_ASCII, _DIGIT),
    "CATEGORY_WORD": _WORD, "CATEGORY_NOT_WORD": _regex_ranges_without(_ASCII, _WORD),
    "CATEGORY_SPACE": _BLANK, "CATEGORY_NOT_SPACE": _regex_ranges_without(_ASCII, _BLANK),
}
_WRITERS: Final[dict[str, Callable[[Any], str]]] = {
    "LITERAL": _regex_literal,
    "NOT_LITERAL": _regex_not_literal,
    "IN": _regex_class_or_escapes,
    "ANY": lambda _value: _write_regex_class(_SAFE),
}
