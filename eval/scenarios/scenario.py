"""Reads the scenarios of a kind, and draws those that a limit takes.

A scenario is a line of `eval/suites/behaviour/<kind>.jsonl`: a question, the checks that a right answer passes, a right
answer, and wrong ones, which a unit test holds against the checks. `tools.json` describes the functions that scenarios
offer, by name.

Questions are computed in blocks of the draw's order, each on its own, as in `eval/tasks/drawn_questions.py`: an
answer's bits do not depend on what else is asked. A limit within a block computes the whole block.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field

from eval.tasks.drawn_questions import draw_questions
from quantyard.protocol.base import Frozen, JsonObject
from quantyard.protocol.behaviour import BehaviourEntry, BehaviourName

SCENARIOS: Final = Path(__file__).parents[1] / "suites" / "behaviour"
# The longest answer of each kind, in tokens; a right one is several times shorter.
ANSWER_TOKENS: Final[Mapping[BehaviourName, int]] = {
    "tool_calls": 128, "instructions": 128, "structured_output": 160, "grounded_answers": 96, "reasoning": 192,
}  # fmt: skip
# Where blocks end; `smoke` asks the first alone. Large ones share more of what their questions have in common.
_BLOCK_ENDS: Final = (6, 32, 96, 160, 224)


class Scenario(Frozen):
    """One question. `checks` are those of `checks.py`; an answer is right if it passes all."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    category: str
    language: str = "en"
    system: str = ""
    history: tuple[tuple[str, str], ...] = ()  # (user, assistant) turns before the question
    user: str
    tools: tuple[str, ...] = ()  # names in tools.json
    checks: Annotated[tuple[JsonObject, ...], Field(min_length=1)]
    reference: str = ""  # a right answer; of tool calls it follows from the check
    wrong: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """The SHA-256 of all that it says, its tools included."""
        said = [self.model_dump(mode="json"), [scenario_tools()[name] for name in self.tools]]
        return hashlib.sha256(json.dumps(said, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@cache
def scenario_tools() -> dict[str, dict[str, Any]]:
    """Every function that scenarios offer, as OpenAI's API describes functions."""
    found: dict[str, dict[str, Any]] = json.loads((SCENARIOS / "tools.json").read_text(encoding="utf-8"))
    return {name: {"type": "function", "function": {"name": name, **tool}} for name, tool in found.items()}


@cache
def load_scenarios(name: BehaviourName) -> tuple[Scenario, ...]:
    """Every scenario of a kind, in the order of its file."""
    lines = (SCENARIOS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(Scenario.model_validate_json(line) for line in lines if line)


def drawn_scenario_blocks(entry: BehaviourEntry, seed: int) -> list[list[Scenario]]:
    """The blocks that are computed, in the order of the draw; each category has its share of any limit."""
    scenarios = load_scenarios(entry.suite)
    order = [scenarios[at] for at in draw_questions([each.model_dump() for each in scenarios], seed).order]
    starts = [0, *(end for end in _BLOCK_ENDS if end < len(order))]
    limit, ends = entry.limit or len(order), [*starts[1:], len(order)]
    return [order[start:end] for start, end in zip(starts, ends, strict=True) if start < limit]
