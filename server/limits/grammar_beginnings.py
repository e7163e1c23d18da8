"""Computes the first characters of each choice of a grammar, and refuses ambiguous or left recursion.

A rule that calls itself in two ways with a common first character doubles the parser's work with every character, and
a rule that begins with itself makes the parser recurse without end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from server.limits.grammar_size import GrammarPart, NotRead, ReadGrammar

Ranges = tuple[tuple[int, int], ...]  # of code points, both ends included
_LAST: Final = 0x10FFFF
_CHAR: Final = re.compile(r"\\x([0-9A-Fa-f]{2})|\\u([0-9A-Fa-f]{4})|\\U([0-9A-Fa-f]{8})|\\(.)|(.)", re.DOTALL)
_NAMED: Final = {"n": "\n", "r": "\r", "t": "\t"}


def check_grammar_beginnings(read: ReadGrammar) -> Beginnings:
    """Refuse recursion that the first character does not decide.

    Returns:
        The first characters of every rule.

    Raises:
        NotRead: a rule begins with itself, or calls itself in two ways that begin alike; or a class has no character.
        RecursionError: rules are nested too deeply.
    """
    beginnings = Beginnings(read)
    circles = _grammar_rule_circles(read)
    for name, choices in read.rules.items():
        beginnings.of_rule(name)
        circle = {other for other, number in circles.items() if number == circles[name]}
        if not circle.intersection(_grammar_references(choices)):
            continue  # the rule is not recursive
        for group in grammar_choice_groups(choices):
            deeper = [sequence for sequence in group if _grammar_leads_deeper(sequence, circle)]
            check_grammar_told_apart(name, [beginnings.of_sequence(sequence) for sequence in deeper])
            for sequence in deeper:
                beginnings.check_optional(name, sequence, circle)
    return beginnings


def _grammar_part_leads_back(part: GrammarPart, circle: set[str]) -> bool:
    return part.ref in circle if part.choices is None else not circle.isdisjoint(_grammar_references(part.choices))


def _grammar_leads_deeper(sequence: list[GrammarPart], circle: set[str]) -> bool:
    """Whether a rule of the cycle is followed by something: a tail call needs no entry on the parser's stack."""
    return any(
        _grammar_part_leads_back(part, circle) and (at < len(sequence) - 1 or (part.low, part.high) != (1, 1))
        for at, part in enumerate(sequence)
    )


@dataclass
class Beginnings:
    """The first characters of rules, sequences and parts."""

    read: ReadGrammar
    _of: dict[str, tuple[Ranges, bool] | None] = field(default_factory=dict)  # None: being computed

    def of_rule(self, name: str) -> tuple[Ranges, bool]:
        """The first characters of a rule, and whether it may be empty."""
        if name not in self._of:
            self._of[name] = None
            self._of[name] = self._of_choices(self.read.rules.get(name, []))
        found = self._of[name]
        if found is None:
            raise NotRead(f"rule {name[:40]!r} begins with itself")
        return found

    def _of_choices(self, choices: list[list[GrammarPart]]) -> tuple[Ranges, bool]:
        found = [self._of_parts(sequence) for sequence in choices]
        ranges = _merged_ranges([one for each, _empty in found for one in each])
        return ranges, any(empty for _each, empty in found)

    def of_sequence(self, parts: list[GrammarPart]) -> Ranges:
        return self._of_parts(parts)[0]

    def _of_parts(self, parts: list[GrammarPart]) -> tuple[Ranges, bool]:
        ranges: list[tuple[int, int]] = []
        for part in parts:
            found, may_be_empty = self.of_part(part)
            ranges.extend(found)
            if not may_be_empty:
                return _merged_ranges(ranges), False
        return _merged_ranges(ranges), True

    def of_part(self, part: GrammarPart) -> tuple[Ranges, bool]:
        if part.choices is not None:
            ranges, may_be_empty = self._of_choices(part.choices)
        elif part.ref is not None:
            ranges, may_be_empty = self.of_rule(part.ref)
        else:
            ranges, may_be_empty = grammar_first_points(part.chars), part.chars == '""'
        return ranges, may_be_empty or part.low == 0

    def check_optional(self, name: str, parts: list[GrammarPart], circle: set[str]) -> None:
        """If two parts of a sequence are recursive, an optional one must not begin like what follows it."""
        for at, part in enumerate(parts):
            rest = parts[at + 1 :]
            is_open = self.of_part(part)[1] and _grammar_part_leads_back(part, circle)
            if is_open and any(_grammar_part_leads_back(other, circle) for other in rest):
                check_grammar_told_apart(name, [self.of_part(part)[0], self.of_sequence(rest)])


def grammar_choice_groups(choices: list[list[GrammarPart]]) -> Iterator[list[list[GrammarPart]]]:
    yield choices
    for sequence in choices:
        for part in sequence:
            if part.choices is not None:
                yield from grammar_choice_groups(part.choices)


def check_grammar_told_apart(name: str, beginnings: list[Ranges]) -> None:
    """Refuse first characters that overlap."""
    ordered = sorted(one for ranges in beginnings for one in ranges)
    if any(first[1] >= second[0] for first, second in pairwise(ordered)):
        raise NotRead(f"rule {name[:40]!r} calls itself, or repeats, in two ways that begin alike")


def _grammar_rule_circles(read: ReadGrammar) -> dict[str, int]:
    """A number for each rule, the same for mutually recursive ones: strongly connected components (Tarjan, 1972)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    circles: dict[str, int] = {}

    def visit(name: str) -> None:
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for other in dict.fromkeys(_grammar_references(read.rules.get(name, []))):
            if other not in order:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other not in circles:
                lowest[name] = min(lowest[name], order[other])
        if lowest[name] == order[name]:
            at = stack.index(name)
            circles.update(dict.fromkeys(stack[at:], order[name]))
            del stack[at:]

    for name in read.rules:
        if name not in order:
            visit(name)
    return circles


def _grammar_references(choices: list[list[GrammarPart]]) -> Iterator[str]:
    for group in grammar_choice_groups(choices):
        yield from (part.ref for sequence in group for part in sequence if part.ref is not None)


def grammar_first_points(chars: str) -> Ranges:
    """The first code points of a text, a class or "."; none for an empty text."""
    if chars.startswith('"'):
        first = next(grammar_code_points(chars[1:-1]), None)
        return () if first is None else ((first, first),)
    if chars.startswith("["):
        return _ranges_of_grammar_class(chars)
    return ((0, _LAST),)


def _ranges_of_grammar_class(chars: str) -> Ranges:
    is_negated = chars.startswith("[^")
    points = list(grammar_code_points(chars[2 if is_negated else 1 : -1], dash=-1))
    ranges, at = [], 0
    while at < len(points):
        is_range = at + 2 < len(points) and points[at + 1] == -1
        low, high = (points[at], points[at + 2]) if is_range else (points[at], points[at])
        ranges.append((ord("-") if low == -1 else low, ord("-") if high == -1 else high))
        at += 3 if is_range else 1
    merged = _merged_ranges([(low, high) for low, high in ranges if low <= high])
    found = _ranges_not_in_grammar_class(merged) if is_negated else merged
    if not any(low <= _LAST for low, _high in found):
        raise NotRead(f"the class {chars[:40]} has no character")
    return found


def grammar_code_points(chars: str, dash: int = ord("-")) -> Iterator[int]:
    for two, four, eight, named, plain in _CHAR.findall(chars):
        if digits := two or four or eight:
            yield int(digits, 16)
        elif named:
            yield ord(_NAMED.get(named, named))
        else:
            yield dash if plain == "-" else ord(plain)


def _merged_ranges(ranges: list[tuple[int, int]]) -> Ranges:
    """The same code points in the fewest ranges, in order."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return tuple(merged)


def _ranges_not_in_grammar_class(ranges: Ranges) -> Ranges:
    """The complement: every code point that is not in these ranges."""
    found, start = [], 0
    for low, high in ranges:
        if start < low:
            found.append((start, low - 1))
        start = max(start, high + 1)
    return (*found, (start, _LAST)) if start <= _LAST else tuple(found)
