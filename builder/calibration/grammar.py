"""Grammars that generate calibration texts: one seed always gives the same texts.

A grammar file has comments (`#`), word lists (`name = one | two`) and blocks (`name:`, then one alternative per line,
indented by four spaces). In an alternative, `⟨name⟩` expands that rule, `⟨x=name⟩` also remembers the expansion (`⟨x⟩`
repeats it until the text ends), `⟨#3-40⟩` is a random number, and `¶` ends a line.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from pathlib import Path

Rules = Mapping[str, tuple[str, ...]]
_INDENT = "    "
_SLOT = re.compile(r"⟨(?:#(\d+)-(\d+)|(?:(\w+)=)?(\w+))⟩")


class BadCalibrationGrammar(Exception):
    """A line is not a rule, or a slot names a rule that does not exist; the message names the file."""


def read_calibration_grammar(path: Path) -> Rules:
    """The rules of one file.

    Raises:
        BadCalibrationGrammar: a line is not a rule, or a slot has no rule.
    """
    rules: dict[str, list[str]] = {}
    block = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith(_INDENT) and block:
            rules[block].append(line.removeprefix(_INDENT))
            continue
        block = _add_calibration_rule(line, rules)
        if block not in rules:
            raise BadCalibrationGrammar(f"{path.name}, line {number}: {line!r} is not a rule")
    _check_calibration_slots(path.name, rules)
    return {name: tuple(alternatives) for name, alternatives in rules.items()}


def _add_calibration_rule(line: str, rules: dict[str, list[str]]) -> str:
    """Add the rule that this line begins; returns its name."""
    name, equals, words = line.partition(" = ")
    if equals:
        rules[name] = words.split(" | ")
    elif line.endswith(":"):
        name = line.removesuffix(":")
        rules[name] = []
    return name


def _check_calibration_slots(file: str, rules: Mapping[str, list[str]]) -> None:
    for name, alternatives in rules.items():
        for text in alternatives:
            memory = {slot[3] for slot in _SLOT.finditer(text) if slot[3]}
            unknown = {slot[4] for slot in _SLOT.finditer(text) if slot[4]} - memory - rules.keys()
            if unknown or not alternatives:
                raise BadCalibrationGrammar(f"{file}: {name} uses {', '.join(sorted(unknown))}, which has no rule")


class GrammarWriter:
    """Writes documents of one grammar.

    Alternatives are dealt like cards: none is used twice before all were used once, so texts vary as much as the
    grammar allows. Only `random()` of Python's generator is used: Python guarantees its sequence across releases, but
    not that of `choice` or `shuffle`.
    """

    def __init__(self, rules: Rules, seed: str) -> None:
        self._rules = rules
        self._random = random.Random(seed)  # noqa: S311  (repeatable is the point)
        self._decks: dict[str, list[str]] = {}

    def document(self) -> str:
        """The next document."""
        return self._expand("⟨document⟩", {}).replace("¶", "\n")

    def _expand(self, text: str, memory: dict[str, str]) -> str:
        return _SLOT.sub(lambda slot: self._fill(slot, memory), text)

    def _fill(self, slot: re.Match[str], memory: dict[str, str]) -> str:
        low, high, remember, name = slot.groups()
        if low is not None:
            return str(int(low) + int(self._random.random() * (int(high) - int(low) + 1)))
        if name in memory and not remember:
            return memory[name]
        filled = self._expand(self._deal(name), memory)
        if remember:
            memory[remember] = filled
        return filled

    def _deal(self, name: str) -> str:
        deck = self._decks.setdefault(name, [])
        if not deck:
            deck += sorted(self._rules[name], key=lambda _: self._random.random())
        return deck.pop()
