"""Checks of a served model that embeds texts or ranks documents, the counterpart of those of chats in `checks.py`.

Each returns its finding, or raises `BrokenPromise`. Two computations of one text may be in batches of other sizes, with
sums in another order, so vectors are compared by their cosine and scores by a small share of their spread.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from quantyard.formatting.numbers import format_digits
from server.api_checks.launch import Answer
from server.api_checks.session import (
    EMBEDDINGS,
    RERANK,
    ApiSession,
    api_error_text,
    need_promise,
    shown_api_answer,
)

_TEXTS: Final = (
    "The ferry to the island leaves at nine.", "Bread rises because yeast makes gas.",
    "A violin has four strings.", "Der Zug nach Bremen hat Verspätung.", "El mercado abre los sábados.",
)  # fmt: skip
_QUERY: Final = "When does the boat leave?"
_UNIT: Final = 1e-3  # how far a length may be from 1
_SAME_COSINE: Final = 0.9999
_SAME_SCORE: Final = 0.02  # of the spread of the scores
CLIENTS: Final = 32
Vector = Sequence[float]


def check_vectors(session: ApiSession) -> str:
    """Of several texts: one vector each, of one length, of length 1."""
    answer = session.embed([*_TEXTS])
    vectors = _served_vectors(answer, len(_TEXTS))
    sizes, lengths = {len(vector) for vector in vectors}, [math.hypot(*vector) for vector in vectors]
    need_promise(len(sizes) == 1, f"vectors of {sorted(sizes)} numbers")
    need_promise(all(abs(length - 1) <= _UNIT for length in lengths), f"lengths {[round(x, 4) for x in lengths]}")
    model, usage = answer.body.get("model"), answer.body.get("usage") or {}
    need_promise(model == session.model, f"asked for {session.model!r}, answered as {model!r}")
    need_promise(isinstance(n := usage.get("prompt_tokens"), int) and n > 0, f"usage is {usage}")
    return f"{len(vectors)} vectors of {sizes.pop()} numbers and length 1, {n} tokens"


def check_vector_order(session: ApiSession) -> str:
    """A text's vector is the same alone, in a batch, and at another place of it."""
    alone = [_served_vectors(session.embed(text), 1)[0] for text in _TEXTS]
    for order in (range(len(_TEXTS)), range(len(_TEXTS) - 1, -1, -1)):
        together = _served_vectors(session.embed([_TEXTS[at] for at in order]), len(_TEXTS))
        for at, vector in zip(order, together, strict=True):
            cosine = _cosine_of_served_vectors(vector, alone[at])
            _need_same_vector(cosine, f"{_TEXTS[at]!r} has another vector in a batch than alone")
    others = max(_cosine_of_served_vectors(alone[0], other) for other in alone[1:])
    need_promise(others < _SAME_COSINE, f"different texts have one vector: cosine {format_digits(others, 6)}")
    return f"{len(_TEXTS)} texts in two orders, each with the vector that it has alone"


def check_base64(session: ApiSession) -> str:
    """`encoding_format: base64`, which the openai client asks for, holds the same 32-bit numbers."""
    text = _TEXTS[0]
    plain = _served_vectors(session.embed(text), 1)[0]
    answer = session.embed(text, encoding_format="base64")
    coded = _served_embedding_rows(answer, 1)[0].get("embedding")
    need_promise(isinstance(coded, str), f"no text in base64: {shown_api_answer(answer)}")
    raw = base64.b64decode(str(coded), validate=True)
    vector = struct.unpack(f"<{len(raw) // 4}f", raw)
    need_promise(len(vector) == len(plain), f"{len(vector)} numbers in base64, {len(plain)} without")
    cosine = _cosine_of_served_vectors(vector, plain)
    _need_same_vector(cosine, "the numbers in base64 are others")
    return f"the same {len(vector)} numbers"


def check_ranking(session: ApiSession) -> str:
    """One score for each document, whatever else is ranked with it, and `top_n` of them if so asked."""
    scores = _rerank_scores_served(session.rank(_QUERY, [*_TEXTS]), len(_TEXTS))
    spread = max(scores) - min(scores)
    need_promise(spread > 0, f"every document has the score {scores[0]}")
    backwards = _rerank_scores_served(session.rank(_QUERY, [*reversed(_TEXTS)]), len(_TEXTS))
    alone = [_rerank_scores_served(session.rank(_QUERY, [text]), 1)[0] for text in _TEXTS]
    for text, *three in zip(_TEXTS, scores, reversed(backwards), alone, strict=True):
        apart = max(three) - min(three)
        need_promise(apart <= _SAME_SCORE * spread, f"{text!r} has the scores {three} among others and alone")
    answer = session.rank(_QUERY, [*_TEXTS], top_n=2)
    best = {int(row["index"]) for row in _rerank_results_served(answer)}
    wanted = set(sorted(range(len(scores)), key=lambda at: -scores[at])[:2])
    need_promise(best == wanted, f"top_n 2 gives the documents {sorted(best)}, the best are {sorted(wanted)}")
    least, most = (format_digits(score) for score in (min(scores), max(scores)))
    return f"{len(scores)} scores from {least} to {most}, in any order the same"


def check_vector_clients(session: ApiSession) -> str:
    """Many clients at once get what each gets alone."""
    texts = [f"{_TEXTS[number % len(_TEXTS)]} {'word ' * number}" for number in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as clients:
        together = list(clients.map(lambda text: _served_vector(session, text), texts))
    for number in (0, 7, CLIENTS - 1):
        cosine = _cosine_of_served_vectors(together[number], _served_vector(session, texts[number]))
        _need_same_vector(cosine, f"client {number} gets another answer than alone")
    return f"{CLIENTS} clients, each with its own answer"


def check_wrong_input(session: ApiSession) -> str:
    """What is no text is refused with the reason."""
    path, wrong = (EMBEDDINGS, "input") if session.purpose == "embed" else (RERANK, "documents")
    wrongs: list[dict[str, object]] = [{}, {wrong: {"a": 1}}, {wrong: []}, {wrong: None}]
    for body in wrongs:
        answer = session.wire.post(path, {"model": session.model, **body})
        is_clear = 400 <= answer.status < 500 and bool(api_error_text(answer))
        need_promise(is_clear, f"the body {body}: wanted 4xx with a reason, got {shown_api_answer(answer)}")
    return f"4xx with the reason, the last {shown_api_answer(answer)}"


def _need_same_vector(cosine: float, otherwise: str) -> None:
    need_promise(cosine >= _SAME_COSINE, f"{otherwise}: cosine {format_digits(cosine, 6)}")


def _served_vector(session: ApiSession, text: str) -> Vector:
    if session.purpose == "embed":
        return _served_vectors(session.embed(text), 1)[0]
    return [*_rerank_scores_served(session.rank(text, [*_TEXTS]), len(_TEXTS)), 1.0]


def _served_embedding_rows(answer: Answer, n: int) -> list[dict[str, Any]]:
    data = answer.body.get("data")
    is_list = answer.status == 200 and isinstance(data, list) and len(data) == n
    need_promise(is_list, f"wanted 200 and {n} embeddings, got {shown_api_answer(answer)}")
    rows: list[dict[str, Any]] = list(data or ())
    need_promise([row.get("index") for row in rows] == [*range(n)], "the embeddings are not in the order of the texts")
    return rows


def _served_vectors(answer: Answer, n: int) -> list[Vector]:
    vectors = [row.get("embedding") for row in _served_embedding_rows(answer, n)]
    for vector in vectors:
        is_finite = isinstance(vector, list) and vector and all(isinstance(x, (int, float)) for x in vector)
        need_promise(bool(is_finite), f"an embedding is not a list of numbers: {shown_api_answer(answer)}")
    return vectors  # type: ignore[return-value]


def _rerank_results_served(answer: Answer) -> list[dict[str, Any]]:
    results = answer.body.get("results")
    is_list = answer.status == 200 and isinstance(results, list)
    need_promise(is_list, f"wanted 200 and results, got {shown_api_answer(answer)}")
    return list(results or ())


def _rerank_scores_served(answer: Answer, n: int) -> list[float]:
    """In the order of the documents."""
    found = {int(row["index"]): float(row["relevance_score"]) for row in _rerank_results_served(answer)}
    need_promise(sorted(found) == [*range(n)], f"scores of the documents {sorted(found)}, asked for {n}")
    return [found[at] for at in range(n)]


def _cosine_of_served_vectors(one: Vector, other: Vector) -> float:
    if len(one) != len(other):
        return 0.0
    return sum(a * b for a, b in zip(one, other, strict=True)) / ((math.hypot(*one) * math.hypot(*other)) or 1.0)
