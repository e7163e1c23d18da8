"""The tokens of a document or a conversation, and which of them are scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from eval.analysis.domain_chat_spans import ShownChat
from eval.analysis.domain_texts import LEAST_PIECE

if TYPE_CHECKING:  # it loads llama.cpp
    from eval.llama.model import GgufModel

Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]
_NO_KIND: Final = ""


@dataclass(frozen=True)
class Passage:
    """What a model reads at once. `kinds` says of each token what it is if it is scored, "" if not.

    Of an encoder-decoder the encoder reads `encoded`, and the decoder `tokens` after its start token; else `encoded` is
    empty.
    """

    tokens: Ints
    kinds: tuple[str, ...]
    n_bytes: int
    encoded: tuple[int, ...] = ()

    @property
    def targets(self) -> Ints:
        """The positions of the scored tokens, ascending."""
        return np.array([at for at, kind in enumerate(self.kinds) if kind], np.int32)

    @property
    def n_read(self) -> int:
        """Tokens to decode: all before the last scored one, and the encoder's."""
        targets = self.targets
        return len(self.encoded) + (int(targets[-1]) if len(targets) else 0)


def document_passage(model: GgufModel, text: Sequence[int], kind: str) -> Passage:
    """The tokens of a document after BOS, if the model begins texts so; all are scored but the first of the passage.

    An encoder-decoder's encoder reads the first half, and its decoder scores the second.
    """
    n_bytes = sum(len(model.piece(token, special=True)) for token in text)
    if model.has_encoder:
        half = len(text) // 2
        return _answer_passage(model, text[:half], text[half:], [kind] * (len(text) - half), n_bytes)
    tokens = [*_beginning(model, text), *text]
    return Passage(np.array(tokens, np.int32), (_NO_KIND, *([kind] * (len(tokens) - 1))), n_bytes)


def chat_passage(
    model: GgufModel, chat: ShownChat, wanted: int, longest: int, *, parse_special: bool
) -> Passage:
    """The first `wanted` tokens of a conversation, or as many as show the beginning of an answer, `longest` at most;
    those that the assistant writes are scored.

    Tokens are counted up to where a span begins and ends, as lm-eval's `_encode_pair` separates a continuation. An
    encoder-decoder's encoder reads what stands before the first answer, and its decoder scores that answer.
    """

    def tokens_of(text: str) -> list[int]:
        return model.tokenize(text, add_special=False, parse_special=parse_special)

    text = tokens_of(chat.text)
    spans = [(len(tokens_of(chat.text[: s.start])), len(tokens_of(chat.text[: s.end])), s.kind) for s in chat.spans]
    if model.has_encoder:
        start, end, kind = spans[0]
        answer = text[start:end][: max(0, longest - start)]
        return _answer_passage(model, text[:start][:longest], answer, [kind] * len(answer), len(chat.text.encode()))
    first = _beginning(model, text)
    tokens, kinds = [*first, *text], [_NO_KIND] * (len(first) + len(text))
    for start, end, kind in spans:
        kinds[len(first) + start : len(first) + end] = [kind] * (end - start)
    kinds[0] = _NO_KIND
    begins = next((at for at, kind in enumerate(kinds) if kind), 0)
    longest = min(longest, max(wanted, begins + LEAST_PIECE))
    read = tokens[:longest]
    n_bytes = sum(len(model.piece(token, special=True)) for token in read[len(first) :])
    return Passage(np.array(read, np.int32), tuple(kinds[:longest]), n_bytes)


def _beginning(model: GgufModel, tokens: Sequence[int]) -> list[int]:
    """BOS, if the model begins texts with it and this one does not."""
    has_bos = model.adds_bos and bool(model.special_text(model.bos))
    return [model.bos] if has_bos and list(tokens[:1]) != [model.bos] else []


def _answer_passage(
    model: GgufModel, question: Sequence[int], answer: Sequence[int], kinds: Sequence[str], n_bytes: int
) -> Passage:
    encoded = (*question, *([model.eos] if model.adds_eos else []))
    tokens = np.array([model.decoder_start, *answer], np.int32)
    return Passage(tokens, (_NO_KIND, *kinds), n_bytes, encoded)


@dataclass(frozen=True)
class PassageBatch:
    """Positions `start` to `end` (exclusive) of a passage, decoded together; `wanted` are those that are scored."""

    start: int
    end: int
    wanted: Bools


def passage_batches(passage: Passage, max_tokens: int, max_rows: int) -> Iterator[PassageBatch]:
    """Cut a passage into batches of at most `max_tokens` tokens, of which at most `max_rows` predict a scored token.

    The token after each position is what it predicts, so what follows the last scored token is not decoded.
    """
    targets = passage.targets
    n = int(targets[-1]) if len(targets) else 0
    predicts = np.zeros(n, np.bool_)
    predicts[targets - 1] = True
    start = 0
    while start < n:
        end = min(start + max_tokens, n)
        rows = np.flatnonzero(predicts[start:end])
        if len(rows) > max_rows:
            end = start + int(rows[max_rows])
        yield PassageBatch(start, end, predicts[start:end])
        start = end
