"""Which questions of a task a LIMIT takes, and in which blocks they are computed.

A limit takes a seeded draw over the whole task, in proportion to its categories. The first questions of a data set are
no sample of it: the first 200 of HellaSwag hold none from WikiHow, which are 68 % of the task. The draw depends on the
seed and on each question's text alone, and a larger limit contains a smaller one.

The last bits of a score depend on what is decoded in the same batch, and where two answers almost tie they decide. So
questions are computed in blocks, which follow each other in the order of the draw, each on its own: a question's score
is the same bits whatever else is asked. A limit within a block computes the whole block and counts its own questions.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, Final

_CATEGORY: Final = re.compile(
    r"(^|_)(category|subject|subset|domain|topic|type|genre|language|level|difficulty)$", re.IGNORECASE
)
_BLOCK_ENDS: Final = (20, 50, 100, 200, 500, 1000)  # then every 1,000; people set limits that end here
_MOST_CATEGORIES: Final = 100  # a field with more values is not a category, but a title or a source


@dataclass(frozen=True)
class QuestionDraw:
    """The questions of a task in the order in which a limit takes them; `order` holds their positions in the data."""

    order: tuple[int, ...]

    def chosen(self, limit: int | None) -> frozenset[int]:
        """The questions whose answers count."""
        return frozenset(self.order[:limit])

    def computed(self, limit: int | None) -> frozenset[int]:
        """The questions that are computed: whole blocks."""
        return frozenset(self.order[: limit and next(end for end in _drawn_block_ends() if end >= limit)])

    def blocks(self) -> dict[int, int]:
        """Position of each question → the number of its block."""
        ends, found, block = _drawn_block_ends(), dict[int, int](), 0
        end = next(ends)
        for place, position in enumerate(self.order):
            if place == end:
                block, end = block + 1, next(ends)
            found[position] = block
        return found


def draw_questions(documents: Sequence[Mapping[str, Any]], seed: int) -> QuestionDraw:
    """Draw all questions; each category contributes its share of any limit, to within a question.

    `documents` are lm-eval's `eval_docs`.
    """
    drawn = [_drawn_question_rank(document, seed) for document in documents]
    in_order = sorted(range(len(documents)), key=drawn.__getitem__)
    by_category: dict[str, list[int]] = {}
    for position in in_order:
        by_category.setdefault(_question_category(documents[position]), []).append(position)
    if len(by_category) > _MOST_CATEGORIES:
        by_category = {"": in_order}
    places = [((i + 0.5) / len(of), drawn[at], at) for of in by_category.values() for i, at in enumerate(of)]
    return QuestionDraw(tuple(at for _, _, at in sorted(places)))


def ask_drawn_questions(task: Any, limit: int | None, seed: int) -> Mapping[int, int]:
    """Let lm-eval's task ask the questions that the limit takes, under their own numbers.

    Few-shot examples are drawn one question after the other from one generator. So with examples the requests of the
    whole task are built first, and a question has the same examples whatever else is asked.

    Returns:
        Number of each question → its block.
    """
    draw = draw_questions(list(task.eval_docs), seed)
    chosen, computed = draw.chosen(limit), draw.computed(limit)
    all_documents, build = task.doc_iterator, task.build_all_requests

    def only(numbers: frozenset[int], **options: Any) -> Iterator[tuple[int, Any]]:
        return ((number, document) for number, document in all_documents(**options) if number in numbers)

    def build_requests(**options: Any) -> None:
        task.doc_iterator = all_documents if task.config.num_fewshot else partial(only, computed)
        build(**options)
        task._instances = [instance for instance in task.instances if instance.doc_id in computed]  # noqa: SLF001
        task.doc_iterator = partial(only, chosen)

    if limit:
        task.build_all_requests = build_requests
    return draw.blocks()


def _drawn_block_ends() -> Iterator[int]:
    """Where blocks end, in the order of the draw."""
    yield from _BLOCK_ENDS
    yield from count(2 * _BLOCK_ENDS[-1], _BLOCK_ENDS[-1])


def _drawn_question_rank(document: Mapping[str, Any], seed: int) -> bytes:
    """A number drawn for this question, from the seed and all that it says."""
    said = json.dumps(document, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(f"{seed}\n{said}".encode(errors="surrogatepass")).digest()


def _question_category(document: Mapping[str, Any]) -> str:
    """The values of the fields that are named like a category."""
    return "\n".join(str(document[name]) for name in sorted(document) if _CATEGORY.search(name))
