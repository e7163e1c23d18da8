"""Embeddings and scores beside the original's: what refuses a build, what warns, and what is only said."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builder.checks.embedding_parity import compare_embeddings
from eval.analysis.rankings import document_ranking, kendall_tau, ndcg, ranking_overlap
from eval.analysis.retrieval import Query, read_retrieval_pairs, reranked_documents
from quantyard.formats.gguf import GgufHeader, read_gguf_header
from quantyard.protocol.base import ExitCode
from quantyard.protocol.embeddings import EmbeddedText, EmbeddingReference, ScoredPair
from quantyard.protocol.facts import VerifyFacts
from quantyard.protocol.runner import StageFailure
from tests.gguf_files import TensorSpec, Value, gguf

_EMBEDS: Mapping[str, Value] = {"general.architecture": "bert", "bert.attention.causal": False}
_SCRIPTS = ("english", "latin", "hangul")


class FakeRuntime:
    """Answers with what is given."""

    def __init__(self, answers: Sequence[Any]) -> None:
        self._answers = answers

    def embeddings(self, texts: Sequence[str]) -> list[list[float]]:
        return [*self._answers[: len(texts)]]

    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        return [*self._answers[: len(pairs)]]


Header = Callable[..., GgufHeader]


@pytest.fixture
def header(tmp_path: Path) -> Header:
    def make(kind: str = "F16", head: str = "") -> GgufHeader:
        tensors = [TensorSpec("token_embd.weight", (32, 4), kind), *([TensorSpec(head, (32, 1))] if head else [])]
        (tmp_path / "m.gguf").write_bytes(gguf(_EMBEDS, tensors))
        return read_gguf_header(tmp_path / "m.gguf")

    return make


def _turned(by: float) -> list[float]:
    """The vector (1, 0) turned so that its cosine to it is `by`, and made longer."""
    return [3 * by, 3 * math.sqrt(1 - by * by)]


def _reference(**more: Any) -> EmbeddingReference:
    texts = [EmbeddedText(name="n", script=script, text="t", values=[1.0, 0.0]) for script in _SCRIPTS]
    return EmbeddingReference(purpose="embed", pooling="mean", witness="BertModel", texts=texts, **more)


def _facts(header: GgufHeader, cosines: Sequence[float], reference: EmbeddingReference | None = None) -> VerifyFacts:
    runtime: Any = FakeRuntime([_turned(cosine) for cosine in cosines])
    found = compare_embeddings(runtime, header, reference or _reference())
    return VerifyFacts.read({"bits_per_weight": 16.0, **found})


def test_embeddings_that_are_the_originals_are_recorded_whatever_their_length(header: Header) -> None:
    facts = _facts(header(), (0.9997, 0.9996, 0.9995))
    assert (facts.purpose, facts.pooling, facts.scripts_below) == ("embed", "mean", [])
    assert [*facts.embeddings_sentences] == [("On English mean cosine to the original's 0.9997", False)]


def test_english_that_differs_refuses_the_build(header: Header) -> None:
    with pytest.raises(StageFailure) as failure:
        _facts(header(), (0.97, 1.0, 1.0))
    assert failure.value.exit_code == ExitCode.UNSUPPORTED_MODEL
    assert "0.9700" in failure.value.error.message


def test_another_script_that_differs_is_a_warning_with_its_cosine(header: Header) -> None:
    facts = _facts(header(), (0.9997, 0.9997, 0.72))
    assert facts.scripts_below == ["hangul"]
    assert ("script:hangul: mean cosine to the original's 0.7200", True) in [*facts.embeddings_sentences]


def test_a_quantized_file_may_lose_what_the_evaluation_measures(header: Header) -> None:
    assert _facts(header("Q4_0"), (0.93, 0.93, 0.92)).scripts_below == []
    with pytest.raises(StageFailure):
        _facts(header("Q4_0"), (0.3, 0.3, 0.3))


@pytest.mark.parametrize("answer", [[math.nan, 1.0], [0.0, 0.0], [1.0, 0.0, 0.0]])
def test_what_is_no_vector_of_the_model_is_refused(header: Header, answer: list[float]) -> None:
    runtime: Any = FakeRuntime([answer] * 3)
    with pytest.raises(StageFailure):
        compare_embeddings(runtime, header(), _reference())


def test_what_was_not_compared_is_said_with_the_reason(header: Header) -> None:
    facts = _facts(header(), (), _reference(why_not="Transformers has no class for it"))
    assert [*facts.embeddings_sentences] == [
        ("Not compared with the original: Transformers has no class for it", True)
    ]


@pytest.mark.parametrize(("scores", "is_right"), [((1.0, 3.0, 5.0), True), ((5.0, 3.0, 1.0), False)])
def test_scores_may_be_shifted_and_scaled_but_not_turned(
    header: Header, scores: tuple[float, ...], is_right: bool
) -> None:
    pairs = [
        ScoredPair(name="n", script="english", query="q", document="d", score=float(number)) for number in range(3)
    ]
    reference = EmbeddingReference(purpose="rerank", pooling="rank", witness="w", pairs=pairs)
    runtime: Any = FakeRuntime(scores)
    if is_right:
        found = compare_embeddings(runtime, header(head="cls.output.weight"), reference)
        assert VerifyFacts.read({"bits_per_weight": 16.0, **found}).scripts[0].agreement == pytest.approx(1.0)
        return
    with pytest.raises(StageFailure):
        compare_embeddings(runtime, header(head="cls.output.weight"), reference)


# ---- rankings ----------------------------------------------------------------------------------------


def test_rankings_are_compared_as_their_authors_define_it() -> None:
    one, other = np.array([3.0, 2.0, 1.0, 0.0]), np.array([3.0, 1.0, 2.0, 0.0])
    assert kendall_tau(one, one) == 1.0
    assert kendall_tau(one, -one) == -1.0
    assert kendall_tau(one, other) == pytest.approx(2 / 3)  # one pair of six is turned
    assert kendall_tau(one, np.zeros(4)) == 0.0
    assert document_ranking(other) == [0, 2, 1, 3]
    assert ranking_overlap(one, other, 2) == 0.5
    assert ndcg(one, [0, 1], 10) == 1.0
    assert ndcg(one, [3], 10) == pytest.approx(1 / math.log2(5))


def test_our_queries_have_two_documents_each_in_several_languages() -> None:
    queries, documents = read_retrieval_pairs()
    assert len({query.language for query in queries}) >= 8
    assert len(documents) == 2 * len(queries) == len({*documents})
    candidates = reranked_documents(Query("en", "q", (4, 5)), len(documents))
    assert candidates[:2] == [4, 5] and len({*candidates}) == 10
