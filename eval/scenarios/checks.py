"""The kinds of checks, and whether an answer passes all checks of its scenario."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from eval.scenarios.scenario import Scenario
from eval.scenarios.text_checks import has_facts, keeps_text_rule
from eval.scenarios.tool_checks import makes_expected_calls
from eval.scenarios.value_checks import is_right_choice, is_right_json, is_right_number


@dataclass(frozen=True)
class CheckedAnswer:
    """An answer without its thoughts. `marked` holds the names of special tokens, `text` does not."""

    text: str
    marked: str
    prompt_end: str = ""

    @classmethod
    def of(cls, text: str) -> CheckedAnswer:
        """An answer without special tokens."""
        return cls(text, text)


Check = Callable[[CheckedAnswer, Mapping[str, Any]], bool]

# To add a kind of check: add a row.
CHECKS: Final[Mapping[str, Check]] = {
    "tool_calls": lambda answer, check: makes_expected_calls(answer.marked, check, answer.prompt_end),
    "text": lambda answer, check: keeps_text_rule(answer.text, check),
    "facts": lambda answer, check: has_facts(answer.text, check),
    "json": lambda answer, check: is_right_json(answer.text, check),
    "number": lambda answer, check: is_right_number(answer.text, check),
    "choice": lambda answer, check: is_right_choice(answer.text, check),
}


def is_right_answer(scenario: Scenario, answer: CheckedAnswer) -> bool:
    """Whether the answer passes every check of the scenario."""
    return all(CHECKS[str(check["kind"])](answer, check) for check in scenario.checks)


def scenario_chance(scenario: Scenario) -> float:
    """The chance of being right without understanding: 1 where no tool is to be called, 1 / choices, else 0."""
    check = scenario.checks[0]
    if check["kind"] == "tool_calls":
        return 0.0 if check["calls"] else 1.0
    choices = check.get("choices")
    return 1 / len(choices) if isinstance(choices, list) else 0.0
