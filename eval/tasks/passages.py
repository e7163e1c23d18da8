"""Which questions are about one passage: they are right or wrong together, so they count as one cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

_PASSAGE_LENGTH: Final = 60  # characters on average: shorter fields are names, labels, and goals asked in one way
_LARGEST_SHARE: Final = 0.5  # a text that most questions hold is an instruction


def question_groups(documents: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """The group of each question, numbered from 0 in order of appearance; () if no passage is asked about twice.

    `documents` are lm-eval's of one task. A passage is a text field of them with values of some length that return: the
    article of RACE, the context of SQuAD and DROP, the beginning that HellaSwag's questions from one video share.
    Of several such fields the one with the fewest values counts.
    """
    found = [texts for name in (documents[0] if documents else ()) if (texts := _passage_field_texts(documents, name))]
    if not found:
        return ()
    texts = min(found, key=lambda values: len(set(values)))
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    return tuple(numbers[text] for text in texts)


def _passage_field_texts(documents: Sequence[Mapping[str, Any]], name: str) -> list[str] | None:
    """The field's value of each document; None if it is not a passage that returns."""
    values = [document.get(name) for document in documents]
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) < len(documents) or sum(map(len, texts)) < _PASSAGE_LENGTH * len(texts):
        return None
    ((_, most),) = Counter(texts).most_common(1)
    return texts if 1 < most <= _LARGEST_SHARE * len(texts) else None
