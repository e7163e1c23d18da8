"""Which questions of a task a LIMIT takes: a seeded draw over the whole task, in proportion to its categories.

The first questions of a data set are no sample of it: the first 200 of HellaSwag hold none from WikiHow, which are 68 %
of the task. The draw depends on the seed and on each question's text alone, and a larger limit contains a smaller one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

_CATEGORY: Final = re.compile(
    r"(^|_)(category|subject|subset|domain|topic|type|genre|language|level|difficulty)$", re.IGNORECASE
)
_MOST_CATEGORIES: Final = 100  # a field with more values is not a category, but a title or a source


def drawn_questions(documents: Sequence[Mapping[str, Any]], limit: int | None, seed: int) -> tuple[int, ...]:
    """The positions of the questions that are asked, ascending; all of them without a limit.

    `documents` are lm-eval's `eval_docs`. Each category contributes its share of any limit, to within a question.
    """
    if limit is None or limit >= len(documents):
        return tuple(range(len(documents)))
    drawn = [_draw(document, seed) for document in documents]
    by_category: dict[str, list[int]] = {}
    for position in sorted(range(len(documents)), key=drawn.__getitem__):
        by_category.setdefault(_category(documents[position]), []).append(position)
    if len(by_category) > _MOST_CATEGORIES:
        by_category = {"": sorted(range(len(documents)), key=drawn.__getitem__)}
    places = [((i + 0.5) / len(of), drawn[at], at) for of in by_category.values() for i, at in enumerate(of)]
    return tuple(sorted(at for _, _, at in sorted(places)[:limit]))


def ask_drawn_questions(task: Any, limit: int | None, seed: int) -> None:
    """Let lm-eval's task ask these questions alone, under their own numbers.

    Few-shot examples are drawn one question after the other from one generator. So with examples the requests of the
    whole task are built first, and a question has the same examples whatever else is asked.
    """
    documents = list(task.eval_docs)
    chosen = frozenset(drawn_questions(documents, limit, seed))
    if len(chosen) == len(documents):
        return
    all_documents, build = task.doc_iterator, task.build_all_requests

    def drawn_documents(**options: Any) -> Iterator[tuple[int, Any]]:
        return ((number, document) for number, document in all_documents(**options) if number in chosen)

    def build_requests(**options: Any) -> None:
        task.doc_iterator = all_documents if task.config.num_fewshot else drawn_documents
        build(**options)
        task._instances = [instance for instance in task.instances if instance.doc_id in chosen]  # noqa: SLF001
        task.doc_iterator = drawn_documents

    task.build_all_requests = build_requests


def _draw(document: Mapping[str, Any], seed: int) -> bytes:
    """A number drawn for this question, from the seed and all that it says."""
    said = json.dumps(document, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(f"{seed}\n{said}".encode(errors="surrogatepass")).digest()


def _category(document: Mapping[str, Any]) -> str:
    """The values of the fields that are named like a category."""
    return "\n".join(str(document[name]) for name in sorted(document) if _CATEGORY.search(name))
