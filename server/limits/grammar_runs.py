"""Counts exactly in how many ways a grammar or a pattern matches a run of one character.

Vocabularies have tokens that are such runs ("--------", blanks), and llama.cpp's parser, which does not memoize,
follows each way through them separately. Ambiguity of any kind (overlapping choices, adjacent loops, recursion)
multiplies the ways through a run. server/proxy/runs.js counts the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from server.limits.grammar_beginnings import Ranges, grammar_choice_groups, grammar_code_points, grammar_first_points
from server.limits.grammar_size import GrammarPart, NotRead, ReadGrammar

RUN: Final = 64  # characters
_STEPS: Final = 150_000  # steps of counting, after which a text is refused as too large
Counts = tuple[int, ...]  # [n]: ways to match n characters completely; without trailing zeros
_NOTHING: Final[Counts] = (1,)


class TooManyWays(NotRead):
    """More ways than a limit; `ways` is the count that exceeded it."""

    def __init__(self, ways: int) -> None:
        super().__init__(f"{ways} ways")
        self.ways = ways


def check_grammar_runs(read: ReadGrammar, most: int) -> None:
    """Count the ways for every character that the grammar distinguishes.

    Raises:
        TooManyWays: there are more than `most`.
        NotRead: a class has no character, or the grammar is too large to count.
    """
    atoms = {part.chars: _grammar_atom(part.chars) for part in _grammar_parts(read) if part.chars}
    left = _Left(_STEPS)
    seen = set()  # characters that match the same texts and classes have the same counts
    for char in sorted({point for ranges, _n in atoms.values() for low, high in ranges for point in (low, high + 1)}):
        left.take(len(atoms))
        lengths = {
            chars: n if any(low <= char <= high for low, high in ranges) else -1 for chars, (ranges, n) in atoms.items()
        }
        matched = tuple(lengths.values())
        if matched not in seen and any(length > 0 for length in matched):
            seen.add(matched)
            _Runs(read, lengths, most, left).check()


def _grammar_parts(read: ReadGrammar) -> Iterator[GrammarPart]:
    for choices in read.rules.values():
        yield from (part for group in grammar_choice_groups(choices) for sequence in group for part in sequence)


def _grammar_atom(chars: str) -> tuple[Ranges, int]:
    """The characters of which a text or class is a run, and the length of that run."""
    if not chars.startswith('"'):
        return grammar_first_points(chars), 1
    points = list(grammar_code_points(chars[1:-1]))
    return (((points[0], points[0]),) if len(set(points)) == 1 else ()), len(points)


@dataclass
class _Left:
    """The number of steps left."""

    n: int

    def take(self, n: int) -> None:
        self.n -= n
        if self.n < 0:
            raise NotRead("it is too large to count its ways: use fewer parts or characters")


@dataclass(frozen=True)
class _Ways:
    """Ways to match a part completely, and to reach a recursive call in it of a rule that is being counted."""

    done: Counts = ()
    again: Counts = ()


@dataclass
class _Runs:
    """The counts for one character; recursive rules are counted until a fixed point is reached."""

    read: ReadGrammar
    lengths: dict[str, int]  # of texts and classes that match the character; -1 for others
    most: int
    left: _Left
    _before: dict[str, Counts] = field(default_factory=dict)  # counts of recursive rules in the previous iteration
    _met: dict[str, bool] = field(default_factory=dict)  # recursive rules → whether they are still being counted
    _of: dict[str, _Ways | None] = field(default_factory=dict)  # None: being counted

    def check(self) -> None:
        while True:
            self._of, self._met = {}, {}
            for name in self.read.rules:
                self._rule(name)
            found = {name: self._rule(name).done for name in self._met}
            if all(done == self._before.get(name, ()) for name, done in found.items()):
                return
            self._before = found

    def _rule(self, name: str) -> _Ways:
        if name not in self._of:
            self._of[name] = None
            self._of[name] = self._counted(name)
        if (found := self._of[name]) is not None:
            return found
        self._met[name] = True
        return _Ways(self._before.get(name, ()), _NOTHING)

    def _counted(self, name: str) -> _Ways:
        """Count a rule; if it is recursive, also the ways through repeated recursion."""
        ways = self._choice(self.read.rules.get(name, []))
        if self._met.get(name):
            self._met[name] = False
            self._repeated(_Ways(ways.again), 0, None)
        return ways if any(self._met.values()) else _Ways(ways.done)

    def _choice(self, choices: list[list[GrammarPart]]) -> _Ways:
        done: Counts = ()
        again: Counts = ()
        for ways in map(self._sequence, choices):
            done, again = self._sum(done, ways.done), self._sum(again, ways.again)
        return _Ways(done, again)

    def _sequence(self, parts: list[GrammarPart]) -> _Ways:
        """Join the parts. `fresh` is the same count for runs that begin anywhere in the sequence."""
        done = fresh = _NOTHING
        again: Counts = ()
        for part in parts:
            ways = self._part(part)
            again = self._sum(again, self._joined(done, ways.again))
            self._joined(fresh, ways.again)
            fresh = self._joined(fresh, ways.done)
            fresh = fresh if fresh[:1] > (0,) else (1, *fresh[1:])
            done = self._joined(done, ways.done)
        return _Ways(done, again)

    def _part(self, part: GrammarPart) -> _Ways:
        self.left.take(1)
        if part.choices is not None:
            ways = self._choice(part.choices)
        elif part.ref is not None:
            ways = self._rule(part.ref)
        else:
            length = 0 if part.chars == '""' else self.lengths[part.chars]
            ways = _Ways((0,) * length + (1,) if 0 <= length <= RUN else ())
        return ways if (part.low, part.high) == (1, 1) else self._repeated(ways, part.low, part.high)

    def _repeated(self, ways: _Ways, low: int, high: int | None) -> _Ways:
        power, done, times = _NOTHING, _NOTHING if low == 0 else (), 0
        again: Counts = ()
        one = ways.done if (low, high) == (0, 1) else (0, *ways.done[1:])  # an empty iteration adds no way
        while any(power) and (high is None or times < high):
            again = self._sum(again, self._joined(power, ways.again))
            power, times = self._joined(power, one), times + 1
            done = self._sum(done, power) if times >= low else done
        return _Ways(done, again)

    def _joined(self, first: Counts, second: Counts) -> Counts:
        """The counts of one part followed by another (a convolution)."""
        if first == _NOTHING:
            return second
        if second == _NOTHING:
            return first
        if not first or not second:
            return ()
        counts = [0] * min(RUN + 1, len(first) + len(second) - 1)
        for at, ways in enumerate(first):
            if ways:
                self.left.take(len(second))
                for length, more in enumerate(second[: len(counts) - at]):
                    counts[at + length] += ways * more
        return self._held(_trimmed_run_counts(counts))

    def _sum(self, first: Counts, second: Counts) -> Counts:
        return self._held(_sum_of_run_counts(first, second))

    def _held(self, counts: Counts) -> Counts:
        if (ways := max(counts, default=0)) > self.most:
            raise TooManyWays(ways)
        return counts


def _sum_of_run_counts(first: Counts, second: Counts) -> Counts:
    longer, shorter = (first, second) if len(first) >= len(second) else (second, first)
    return tuple(ways + (shorter[at] if at < len(shorter) else 0) for at, ways in enumerate(longer))


def _trimmed_run_counts(counts: list[int]) -> Counts:
    while counts and counts[-1] == 0:
        counts.pop()
    return tuple(counts)
