"""Measures the work that a grammar or a pattern costs a parser without limits, without running it.

GBNF and regular expressions are parsed into the same small tree: choices of sequences of parts, each with its number of
repetitions. A reference counts as much as the rule that it refers to.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

_GBNF: Final = re.compile(
    r"""(?P<skip>[\s]+|\#[^\n]*)|(?P<rule>[A-Za-z0-9_-]+)\s*::=|(?P<ref>[A-Za-z0-9_-]+)|(?P<text>"(?:\\.|[^"\\])*")
    |(?P<class>\[(?:\\.|[^\]\\])*\])|(?P<token>!?<[^>\n]*>)|(?P<any>\.)|(?P<open>\()|(?P<close>\))|(?P<or>\|)
    |(?P<times>[*+?]|\{\s*\d*\s*(?:,\s*\d*\s*)?\})""",
    re.VERBOSE | re.DOTALL,
)
_REGEX: Final = re.compile(
    r"""(?P<class>\[\^?\]?(?:\\.|[^\]\\])*\])|(?P<open>\((?:\?(?:[:=!]|<[=!]))?)|(?P<close>\))|(?P<or>\|)
    |(?P<times>(?:[*+?]|\{\s*\d+\s*(?:,\s*\d*\s*)?\}|\{\s*,\s*\d+\s*\})[?+]?)|(?P<any>\\.|.)""",
    re.VERBOSE | re.DOTALL,
)
_LARGE: Final = 1 << 40  # products are capped here
_CLASSES: Final = {"d": "0-9", "w": "A-Za-z0-9_", "s": r" \t\n\r"}  # of regular expressions, as GBNF writes them
_CHARS_A_WAY: Final = 32  # scanning this many characters of a text or a class costs as much as another way


class NotRead(ValueError):
    """A text that is not a valid grammar or pattern, or an ambiguous one."""


@dataclass
class GrammarPart:
    """A part of a sequence and its number of repetitions; `high` None: unbounded."""

    choices: list[list[GrammarPart]] | None = None  # of a group
    ref: str | None = None
    chars: str = ""  # a text in its quotes, a class in its brackets, or "."
    low: int = 1
    high: int | None = 1

    @property
    def times(self) -> int:
        return max(1, self.low) if self.high is None else self.high


@dataclass
class ReadGrammar:
    """A parsed grammar or pattern; the only rule of a pattern is named ""."""

    rules: dict[str, list[list[GrammarPart]]] = field(default_factory=dict)
    depth: int = 0  # nested groups
    n_optional: int = 0
    n_written: int = 0  # the sum of all repetitions
    n_rules: int = 0
    is_pattern: bool = False


def read_gbnf_grammar(text: str) -> ReadGrammar:
    """Parse GBNF.

    Raises:
        NotRead: it is not GBNF; the message names the first wrong character.
    """
    return _read_grammar_text(text, _GBNF, ReadGrammar(), [])


def read_regex_grammar(text: str) -> ReadGrammar:
    """Parse a regular expression. Raises the same."""
    read = ReadGrammar(n_rules=1, is_pattern=True)
    top: list[list[GrammarPart]] = [[]]
    read.rules[""] = top
    return _read_grammar_text(text, _REGEX, read, [top])


def _read_grammar_text(
    text: str, syntax: re.Pattern[str], read: ReadGrammar, open_groups: list[list[list[GrammarPart]]]
) -> ReadGrammar:
    at = 0
    while at < len(text):
        found = syntax.match(text, at)
        if found is None:
            raise NotRead(f"character {at} is not understood: {text[at : at + 20]!r}")
        kind, at = str(found.lastgroup), found.end()
        if kind == "rule":
            if len(open_groups) > 1:
                raise NotRead(f"a group is not closed before rule {found['rule'][:40]!r}")
            read.n_rules += 1
            open_groups = [read.rules.setdefault(found["rule"], [])]
            open_groups[0].append([])
        elif kind != "skip":
            _take_grammar_token(kind, found, read, open_groups)
    if len(open_groups) > 1:
        raise NotRead("a group is not closed")
    return read


def _take_grammar_token(
    kind: str, found: re.Match[str], read: ReadGrammar, open_groups: list[list[list[GrammarPart]]]
) -> None:
    if not open_groups:
        raise NotRead("it does not begin with a rule")
    sequence = open_groups[-1][-1]
    if kind == "open":
        sequence.append(GrammarPart(choices=[[]]))
        open_groups.append(sequence[-1].choices or [])
        read.depth = max(read.depth, len(open_groups) - 1)
    elif kind == "close":
        if len(open_groups) == 1:
            raise NotRead("a group is closed that is not open")
        open_groups.pop()
    elif kind == "or":
        open_groups[-1].append([])
    elif kind == "times":
        if not sequence:
            raise NotRead(f"nothing stands before {found['times']!r}")
        _repeat_grammar_part(sequence, *_grammar_repetition_bounds(found["times"]))
        read.n_optional += sequence[-1].low == 0
        read.n_written += max(sequence[-1].low, sequence[-1].high or 0)
    elif kind == "ref":
        sequence.append(GrammarPart(ref=found["ref"]))
    elif read.is_pattern:
        sequence.extend(GrammarPart(chars=chars) for chars in _pattern_as_gbnf(found[0]))
    else:
        sequence.append(GrammarPart(chars=found[0]))


def _pattern_as_gbnf(piece: str) -> list[str]:
    """A character or class of a regular expression as GBNF; an anchor becomes nothing."""
    if piece in {"^", "$"}:
        return []
    if piece == ".":
        return [r"[^\n]"]
    if piece[0] == "[" and len(piece) > 1:
        return [re.sub(r"\\([dws])", lambda found: _CLASSES[found[1]], piece)]
    if piece[0] == "\\" and piece[1:] in _CLASSES:
        return [f"[{_CLASSES[piece[1:]]}]"]
    return ["." if piece in {r"\D", r"\W", r"\S"} else f'"{piece}"']


def _repeat_grammar_part(sequence: list[GrammarPart], low: int, high: int | None) -> None:
    """Set the repetitions of the last part; one that already has some, as in `a*{3}`, becomes a group."""
    last = sequence[-1]
    if (last.low, last.high) != (1, 1):
        sequence[-1] = last = GrammarPart(choices=[[last]])
    last.low, last.high = low, high


def _grammar_repetition_bounds(times: str) -> tuple[int, int | None]:
    if times[0] != "{":
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[times[0]]
    first, comma, second = times.rstrip("?+").strip("{} ").partition(",")
    low = _grammar_repetition_number(first)
    if not comma:
        return low, low
    return low, _grammar_repetition_number(second) if second.strip() else None


def _grammar_repetition_number(digits: str) -> int:
    digits = digits.strip()
    return min(int(digits or 0), _LARGE) if len(digits) < 20 else _LARGE


@dataclass(frozen=True)
class GrammarSize:
    """The size of a part, sequence or rule, including everything that it refers to."""

    may_be_empty: bool = False
    ways: int = 1  # positions at which matching may continue at the same time
    run: int = 0  # consecutive optional parts
    repeats: int = 1  # the product of nested repetitions
    loops: int = 0  # consecutive parts that may be empty or repeat
    open_loops: int = 0  # the same, if it has no other parts

    def with_most_of(self, other: GrammarSize) -> GrammarSize:
        """The same with the larger value of each field, except `may_be_empty`."""
        repeats, loops = max(self.repeats, other.repeats), max(self.loops, other.loops)
        open_loops = max(self.open_loops, other.open_loops)
        ways, run = max(self.ways, other.ways), max(self.run, other.run)
        return GrammarSize(self.may_be_empty, ways, run, repeats, loops, open_loops)


@dataclass
class GrammarSizes:
    """The size of every rule of a grammar.

    Raises:
        RecursionError: references are nested too deeply.
    """

    read: ReadGrammar
    _of: dict[str, GrammarSize] = field(default_factory=dict)

    def all(self) -> GrammarSize:
        """The largest value of each field over all rules."""
        most = GrammarSize()
        for name in self.read.rules:
            most = most.with_most_of(self._rule(name))
        return most

    def _rule(self, name: str) -> GrammarSize:
        if name not in self._of:
            self._of[name] = GrammarSize()  # a recursive reference counts as nothing
            self._of[name] = self._choice(self.read.rules.get(name, []))
        return self._of[name]

    def _choice(self, choices: list[list[GrammarPart]]) -> GrammarSize:
        sizes = [self._sequence(sequence) for sequence in choices]
        most = GrammarSize()
        for size in sizes:
            most = most.with_most_of(size)
        may_be_empty = any(size.may_be_empty for size in sizes)
        return GrammarSize(may_be_empty, min(_LARGE, sum(size.ways for size in sizes))).with_most_of(most)

    def _sequence(self, parts: list[GrammarPart]) -> GrammarSize:
        """Consecutive optional parts add up, up to and including the next part that is not optional."""
        most, ways, run, loops, may_be_empty = GrammarSize(), 0, 0, 0, True
        for part in parts:
            size = self._part(part)
            ways, run = ways + size.ways, run + size.run if size.may_be_empty else size.run
            loops = loops + size.open_loops if size.may_be_empty else 0
            most = GrammarSize(False, ways, run, loops=loops).with_most_of(most).with_most_of(size)
            if not size.may_be_empty:
                ways, run, may_be_empty = 0, 0, False
        open_loops = loops if may_be_empty else 0
        return GrammarSize(may_be_empty, max(ways, most.ways), most.run, most.repeats, most.loops, open_loops)

    def _part(self, part: GrammarPart) -> GrammarSize:
        one = self._one(part)
        may_be_empty = one.may_be_empty or part.low == 0
        copies = part.times if one.may_be_empty else 1  # only a body that may be empty can be skipped repeatedly
        run = max(one.run, int(may_be_empty)) * copies
        repeats = min(_LARGE, one.repeats * max(1, part.times))
        loops = 0 if not may_be_empty else one.open_loops if part.high == 1 else 1
        ways = min(_LARGE, one.ways * max(1, copies))
        return GrammarSize(may_be_empty, ways, min(_LARGE, run), repeats, max(loops, one.loops), loops)

    def _one(self, part: GrammarPart) -> GrammarSize:
        if part.choices is not None:
            return self._choice(part.choices)
        if part.ref is not None:
            return self._rule(part.ref)
        return GrammarSize(may_be_empty=part.chars == '""', ways=1 + len(part.chars) // _CHARS_A_WAY)
