"""Refuses ambiguous repetitions and choices of a grammar or a pattern.

llama.cpp's parser follows every way through a text at once, so there must be few. server/proxy/loops.js has the same
rules.
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
_LONG: Final = 4  # characters; ways this long may begin alike, since one token passes through few of them


def check_grammar_loops(read: ReadGrammar, beginnings: Beginnings) -> None:
    """Refuse loops whose body can be read in two ways, and choices that list a word twice.

    Raises:
        NotRead: with the name of the rule.
    """
    shortest = _Shortest(read)
    for name, choices in read.rules.items():
        for group in grammar_choice_groups(choices):
            _check_repeated_grammar_words(name, [word for word in map(_grammar_word, group) if word])
            for part in (part for sequence in group for part in sequence):
                if part.high != 1 and not part.chars:
                    _check_loop(name, part, beginnings, shortest)


def _check_repeated_grammar_words(name: str, words: list[tuple[int, ...]]) -> None:
    if len(set(words)) < len(words):
        raise NotRead(f"rule {name[:40]!r} lists one word twice in a choice")


def _check_loop(name: str, part: GrammarPart, beginnings: Beginnings, shortest: _Shortest) -> None:
    if beginnings.of_part(GrammarPart(part.choices, part.ref))[1]:
        raise NotRead(f"rule {name[:40]!r} repeats something that may be empty")
    ways = list(_grammar_choice_sequences([[GrammarPart(part.choices, part.ref)]], beginnings.read, set()))
    if any(len(way) == 1 and way[0].high != 1 and way[0].low != way[0].high for way in ways):
        raise NotRead(f"rule {name[:40]!r} repeats a repetition")
    words = [_grammar_word(way) for way in ways]
    if all(words):
        _check_grammar_words(name, [word for word in words if word])
    else:
        short = [way for way in ways if shortest.of_sequence(way) < _LONG]
        check_grammar_told_apart(name, [beginnings.of_sequence(way) for way in short])


def _check_grammar_words(name: str, words: list[tuple[int, ...]]) -> None:
    """Words may begin alike, unless one is a prefix of another whose rest begins like a word."""
    _check_repeated_grammar_words(name, words)
    starts, known = {word[0] for word in words}, set(words)
    if any(word[:end] in known and word[end] in starts for word in words for end in range(1, len(word))):
        raise NotRead(f"rule {name[:40]!r} repeats words of which one may be a sequence of others")


def _grammar_choice_sequences(choices: Choices, read: ReadGrammar, seen: set[str]) -> Iterator[list[GrammarPart]]:
    """The sequences of a choice; one that is only a group or a reference is replaced by its sequences."""
    for sequence in choices:
        only = sequence[0] if len(sequence) == 1 and (sequence[0].low, sequence[0].high) == (1, 1) else GrammarPart()
        if only.choices is not None:
            yield from _grammar_choice_sequences(only.choices, read, seen)
        elif only.ref is not None and only.ref not in seen:
            yield from _grammar_choice_sequences(read.rules.get(only.ref, []), read, seen | {only.ref})
        else:
            yield sequence


def _grammar_word(sequence: list[GrammarPart]) -> tuple[int, ...] | None:
    """The code points of a sequence of plain texts; None if it has other parts or is empty."""
    if any(not part.chars.startswith('"') or (part.low, part.high) != (1, 1) for part in sequence):
        return None
    return tuple(point for part in sequence for point in grammar_code_points(part.chars[1:-1])) or None


class _Shortest:
    """The minimum number of characters that rules and sequences match."""

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
                self._of[part.ref] = 0  # a recursive reference counts 0
                self._of[part.ref] = min(map(self.of_sequence, self._read.rules.get(part.ref, [[]])))
            return self._of[part.ref]
        return len(list(grammar_code_points(part.chars[1:-1]))) if part.chars.startswith('"') else 1
