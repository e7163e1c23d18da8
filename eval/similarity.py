"""The stage `similarity`: how close the embeddings of a file, or a reranker's scores, are to the baseline's.

An embedding model has no perplexity. What counts is whether a text has the vector that it has without quantization
(cosine), and whether a search finds the same documents (ranking). Queries and documents are our own, in several
languages: `eval/retrieval/pairs.jsonl`, two documents that answer each query. A file is ranked by cosines of a query
with all documents; a reranker scores each query with its own two documents and some others, since every pair is a run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import llama_cpp
import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from eval.analysis.rankings import Scores, document_ranking, kendall_tau, mean_of_queries, ndcg, ranking_overlap
from eval.analysis.retrieval import Query, read_retrieval_pairs, reranked_documents
from eval.llama.model import LOG, GgufModel
from quantyard.formats.purpose import POOLINGS, gguf_pooling, gguf_purpose
from quantyard.llama.pooled import PooledError, PooledTexts
from quantyard.protocol.base import ExitCode
from quantyard.protocol.estimates import Estimate
from quantyard.protocol.evaluation import SimilarityRequest
from quantyard.protocol.runner import Stage, StageFailure, StageOutcome, run_stage
from quantyard.protocol.similarity_results import Similarity
from quantyard.protocol.task_results import FileFacts

_MAX_TOKENS: Final = 512  # of a text; ours have some 20
Vectors = npt.NDArray[np.float64]
OnDone = Callable[[], None]


@dataclass(frozen=True)
class Answers:
    """What one file answers: a row of scores for each query, and of an embedding model the vectors of all texts."""

    scores: list[Scores]
    vectors: Vectors | None
    file: FileFacts
    purpose: Literal["embed", "rerank"]


def similarity(stage: Stage, request: SimilarityRequest) -> StageOutcome:
    """Compare `/in/model` with `/in/baseline`, if there is one.

    Raises:
        StageFailure: 2 or 3 if a file cannot be measured.
    """
    started = time.monotonic()
    queries, documents = read_retrieval_pairs()
    paths = [stage.in_dir / "model" / request.model_file]
    paths += [stage.in_dir / "baseline" / request.baseline_file] if request.baseline_file else []
    n_done, total = 0, len(paths) * (len(queries) + len(documents))

    def done() -> None:
        nonlocal n_done
        n_done += 1
        stage.progress(min(n_done, total), total, "texts")

    sha256 = next((f.sha256 for f in stage.input_files("model") if f.path == request.model_file), None)
    answers = [_similarity_answers(path, request, queries, documents, sha256, done) for path in paths]
    found = compare_answers(answers[0], answers[1] if len(answers) > 1 else None, queries, documents, request)
    versions = {"llama-cpp-python": llama_cpp.__version__, "numpy": np.__version__}
    timed = found.model_copy(update={"duration_s": time.monotonic() - started, "versions": versions})
    (stage.files_dir / "similarity.json").write_text(timed.model_dump_json(indent=2) + "\n")
    tools = {"llama.cpp": f"llama-cpp-python {llama_cpp.__version__}"}
    return StageOutcome(facts=_similarity_facts(found), tools=tools)


# ---- what a file answers -----------------------------------------------------------------------------


def _similarity_answers(
    path: Path, request: SimilarityRequest, queries: Sequence[Query], documents: Sequence[str], sha256: str | None,
    done: OnDone,
) -> Answers:  # fmt: skip
    with _opened_similarity_model(path, request) as (model, pooled):
        file, purpose = model.facts(request.label, sha256), gguf_purpose(model.header)
        if purpose == "rerank":
            return Answers([*_reranked_scores(pooled, queries, documents, done)], None, file, "rerank")
        vectors = np.array(
            [_unit_vector(pooled.embedding(text), done) for text in (*(q.text for q in queries), *documents)]
        )
        scores = [*(vectors[: len(queries)] @ vectors[len(queries) :].T)]
        return Answers(scores, vectors, file, "embed")


@contextmanager
def _opened_similarity_model(path: Path, request: SimilarityRequest) -> Iterator[tuple[GgufModel, PooledTexts]]:
    with GgufModel.load(path, request.runtime.n_gpu_layers, generates=False) as model:
        if gguf_purpose(model.header) == "generate":
            message = f"{path.name} generates text: it has neither embeddings nor scores to compare."
            raise StageFailure(ExitCode.BAD_REQUEST, "not-an-embedding-model", message, "Build the model again.")
        pooling, n_tokens = POOLINGS.index(gguf_pooling(model.header)), min(_MAX_TOKENS, model.n_ctx_train)
        try:
            texts = PooledTexts(llama_cpp, model.handle, pooling, n_tokens, request.runtime.threads)
            with closing(texts):
                yield model, texts
        except PooledError as error:
            raise LOG.failure(f"llama.cpp {error}.", "similarity", "Its last output says why.") from error


def _unit_vector(values: Sequence[float], done: OnDone) -> Vectors:
    done()
    vector = np.asarray(values, np.float64)
    length = float(np.linalg.norm(vector))
    if not (np.isfinite(length) and length):
        raise PooledError("gives an embedding that is not finite, or zero")
    return np.asarray(vector / length)


def _reranked_scores(
    pooled: PooledTexts, queries: Sequence[Query], documents: Sequence[str], done: OnDone
) -> Iterator[Scores]:
    for query in queries:
        candidates = reranked_documents(query, len(documents))
        yield np.array([pooled.score(query.text, documents[at]) for at in candidates])
        done()


# ---- the comparison ----------------------------------------------------------------------------------


def compare_answers(
    own: Answers, baseline: Answers | None, queries: Sequence[Query], documents: Sequence[str],
    request: SimilarityRequest,
) -> Similarity:  # fmt: skip
    """The record of one file."""
    best = request.settings.best
    compared = _rankings_compared(own, baseline, best) | _vectors_compared(own, baseline, queries) if baseline else {}
    return Similarity(
        file=own.file, purpose=own.purpose, n_queries=len(queries), n_documents=len(documents), best=best,
        ndcg=_reranked_ndcg(own, queries, best),
        baseline_ndcg=_reranked_ndcg(baseline, queries, best) if baseline else None, **compared,
    )  # fmt: skip


def _reranked_ndcg(answers: Answers, queries: Sequence[Query], best: int) -> Estimate:
    """A reranker's rows have the relevant documents first."""
    gains = []
    for query, scores in zip(queries, answers.scores, strict=True):
        relevant = query.relevant if answers.purpose == "embed" else range(len(query.relevant))
        gains.append(ndcg(scores, [*relevant], best))
    return mean_of_queries(gains)


def _rankings_compared(own: Answers, baseline: Answers, best: int) -> dict[str, Any]:
    both = [*zip(own.scores, baseline.scores, strict=True)]
    same_first = [document_ranking(one)[0] == document_ranking(other)[0] for one, other in both]
    overlaps = [ranking_overlap(one, other, best) for one, other in both] if own.vectors is not None else []
    return {
        "kendall_tau": mean_of_queries([kendall_tau(one, other) for one, other in both]),
        "top1_agreement": mean_of_queries(same_first),
        "overlap": mean_of_queries(overlaps) if overlaps else None,
    }


def _vectors_compared(own: Answers, baseline: Answers, queries: Sequence[Query]) -> dict[str, Any]:
    """Of each text's two vectors."""
    if own.vectors is None or baseline.vectors is None:
        return {}
    if own.vectors.shape != baseline.vectors.shape:
        message = f"Its embeddings have {own.vectors.shape[1]} numbers, the baseline's {baseline.vectors.shape[1]}."
        raise StageFailure(ExitCode.BAD_REQUEST, "similarity", message, "Choose a baseline of the same model.")
    cosines = np.clip((own.vectors * baseline.vectors).sum(axis=1), -1.0, 1.0)
    of_text = [query.language for query in queries] + [q.language for q in queries for _ in q.relevant]
    languages = np.array(of_text)
    return {
        "mean_cosine": mean_of_queries(cosines.tolist()), "p1_cosine": float(np.percentile(cosines, 1)),
        "least_cosine": float(cosines.min()),
        "cosine_by_language": {str(name): float(cosines[languages == name].mean()) for name in dict.fromkeys(of_text)},
    }  # fmt: skip


def _similarity_facts(found: Similarity) -> dict[str, JsonValue]:
    names = ("mean_cosine", "kendall_tau", "top1_agreement", "ndcg")
    return {name: value.value if (value := getattr(found, name)) else None for name in names}


def main() -> None:
    """Entry point of the stage."""
    run_stage(SimilarityRequest, similarity)


if __name__ == "__main__":
    main()
