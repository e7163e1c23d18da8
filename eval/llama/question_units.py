"""Units of questions: what the model `llama-cpp` answers together, apart from everything else.

A unit is a block of one task's questions (eval/tasks/drawn_questions.py), or a part of a very large block. Its answers
depend on nothing but itself, so units can be answered in any order, in any number of processes, and kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from lm_eval.api.instance import Instance
from pydantic import JsonValue

from quantyard.protocol.base import Frozen

PART: Final = 8192  # requests scored together; neighbours share prefixes, distant ones rarely do
_TEXT_PER_TOKEN: Final = 16  # characters of a prompt that are read in the time of one generated token


class UnitAnswers(Frozen):
    """The answers to a unit's requests, in their order, and what they took."""

    name: str  # see `question_units`
    answers: tuple[JsonValue, ...]
    # Requests, tokens decoded and requested, truncated and unanswered requests; see `LlamaLM.counts`.
    counts: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)
    duration_s: float = 0.0

    def values(self) -> list[Any]:
        """The answers as lm-eval wants them: a loglikelihood is a pair."""
        return [tuple(answer) if isinstance(answer, list) else answer for answer in self.answers]


def question_units(
    kind: str, requests: Sequence[Instance], blocks: Mapping[str, Mapping[int, int]]
) -> Iterator[tuple[str, list[int]]]:
    """The name of each unit of these requests of one kind, and their numbers.

    Args:
        blocks: task → number of a question → its block.
    """
    found: dict[tuple[str, int], list[int]] = {}
    for number, request in enumerate(requests):
        task = request.task_name or ""
        found.setdefault((task, blocks.get(task, {}).get(request.doc_id, 0)), []).append(number)
    for (task, block), of in found.items():
        for part, start in enumerate(range(0, len(of), PART)):
            yield f"{kind} {task} {block}.{part}", of[start : start + PART]


def unit_cost(requests: Sequence[tuple[Any, ...]]) -> float:
    """About how long a unit takes, in characters of text to read: contexts that are alike are read once.

    Args:
        requests: the arguments of each: (context, continuation), (text,), or (context, options) of an answer to write.
    """
    contexts, cost = set[str](), 0.0
    for first, *rest in requests:
        contexts.add(first)
        if rest:
            written = rest[0]
            cost += len(written) if isinstance(written, str) else _TEXT_PER_TOKEN * _answer_tokens(written)
    return cost + sum(map(len, contexts))


def _answer_tokens(options: Mapping[str, Any]) -> int:
    asked = options.get("max_gen_toks", options.get("max_new_tokens", 256))
    return asked if isinstance(asked, int) else 256
