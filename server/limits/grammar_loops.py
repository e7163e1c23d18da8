"""What a grammar or a pattern repeats, and between what it chooses.

A parser that follows every way through a text at once must find few of them; server/proxy/loops.js keeps these rules
too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from server.limits.grammar_beginnings import (
    Beginnings,
    check_grammar_told_apart,
    grammar_choice_groups,
    grammar_code_points,
)
from server.limits.grammar_size import GrammarPart, NotRead, ReadGrammar

Choices = list[list[GrammarPart]]
_LONG: Final = 4  # characters: ways of so many may begin alike, since a token holds few of them


def check_grammar_loops(read: ReadGrammar, beginnings: Beginnings) -> None:
    """Refuse what may be read in two ways at each turn of a loop, and a choice that names a word twice.

    Raises:
        NotRead: which rule does.
    """
    shortest = _Shortest(read)
    for name, choices in read.rules.items():
        for group in grammar_choice_groups(choices):
            _check_twice(name, [word for word in map(_word, group) if word])
            for part in (part for sequence in group for part in sequence):
                if part.high != 1 and not part.chars:
                    _check_loop(name, part, beginnings, shortest)


def _check_twice(name: str, words: list[tuple[int, ...]]) -> None:
    if len(set(words)) < len(words):
        raise NotRead(f"rule {name[:40]!r} names one word twice in a choice")


def _check_loop(name: str, part: GrammarPart, beginnings: Beginnings, shortest: _Shortest) -> None:
    if beginnings.of_part(GrammarPart(part.choices, part.ref))[1]:
        raise NotRead(f"rule {name[:40]!r} repeats what may be nothing")
    ways = list(_ways([[GrammarPart(part.choices, part.ref)]], beginnings.read, set()))
    if any(len(way) == 1 and way[0].high != 1 and way[0].low != way[0].high for way in ways):
        raise NotRead(f"rule {name[:40]!r} repeats a repetition")
    words = [_word(way) for way in ways]
    if all(words):
        _check_words(name, [word for word in words if word])
    else:
        short = [way for way in ways if shortest.of_sequence(way) < _LONG]
        check_grammar_told_apart(name, [beginnings.of_sequence(way) for way in short])


def _check_words(name: str, words: list[tuple[int, ...]]) -> None:
    """Words may begin alike, as long as what is left of the longer one begins none."""
    _check_twice(name, words)
    starts, known = {word[0] for word in words}, set(words)
    if any(word[:end] in known and word[end] in starts for word in words for end in range(1, len(word))):
        raise NotRead(f"rule {name[:40]!r} repeats words of which one may be others")


def _ways(choices: Choices, read: ReadGrammar, seen: set[str]) -> Iterator[list[GrammarPart]]:
    """The sequences of a choice, with those of the choices that alone are one of them."""
    for sequence in choices:
        only = sequence[0] if len(sequence) == 1 and (sequence[0].low, sequence[0].high) == (1, 1) else GrammarPart()
        if only.choices is not None:
            yield from _ways(only.choices, read, seen)
        elif only.ref is not None and only.ref not in seen:
            yield from _ways(read.rules.get(only.ref, []), read, seen | {only.ref})
        else:
            yield sequence


def _word(sequence: list[GrammarPart]) -> tuple[int, ...] | None:
    """The code points of a sequence of plain texts; None: it is not one, or empty."""
    if any(not part.chars.startswith('"') or (part.low, part.high) != (1, 1) for part in sequence):
        return None
    return tuple(point for part in sequence for point in grammar_code_points(part.chars[1:-1])) or None


class _Shortest:
    """How many characters rules and sequences read at least."""

    def __init__(self, read: ReadGrammar) -> None:
        self._read = read
        self._of: dict[str, int] = {}

    def of_sequence(self, sequence: list[GrammarPart]) -> int:
        return sum(part.low and part.low * self._of_one(part) for part in sequence)

    def _of_one(self, part: GrammarPart) -> int:
        if part.choices is not None:
            return min(map(self.of_sequence, part.choices))
        if part.ref is not None:
            if part.ref not in self._of:
                self._of[part.ref] = 0  # what refers to itself adds nothing to itself
                self._of[part.ref] = min(map(self.of_sequence, self._read.rules.get(part.ref, [[]])))
            return self._of[part.ref]
        return len(list(grammar_code_points(part.chars[1:-1]))) if part.chars.startswith('"') else 1
