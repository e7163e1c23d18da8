"""The record of `similarity`: embeddings, or a reranker's scores, beside the baseline's."""

from typing import Literal

from quantyard.protocol.base import Frozen
from quantyard.protocol.estimates import Estimate
from quantyard.protocol.task_results import FileFacts


class Similarity(Frozen):
    """Embeddings, or a reranker's scores, of one file beside the baseline's, on queries and documents of ours.

    Of each query the documents are ranked; what compares two rankings is a mean over queries. What compares with the
    baseline is None for the baseline itself; cosines are None for a reranker.
    """

    file: FileFacts
    purpose: Literal["embed", "rerank"]
    n_queries: int
    n_documents: int
    best: int  # documents that count as the first ones of a ranking
    ndcg: Estimate  # of these documents, by which of them answer the query; 0 to 1
    baseline_ndcg: Estimate | None = None
    mean_cosine: Estimate | None = None  # of a text's two embeddings
    p1_cosine: float | None = None
    least_cosine: float | None = None
    cosine_by_language: dict[str, float] = {}  # means
    kendall_tau: Estimate | None = None  # of two rankings of all documents; -1 to 1
    top1_agreement: Estimate | None = None  # share of queries with the same first document
    overlap: Estimate | None = None  # share of the first documents that both have; a reranker scores no more of them
    versions: dict[str, str] = {}
    duration_s: float = 0.0
