"""The queries and documents of ours on which embeddings and rankings are compared: `eval/retrieval/pairs.jsonl`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PAIRS: Final = Path(__file__).parents[1] / "retrieval" / "pairs.jsonl"
_CANDIDATES: Final = 10  # documents that a reranker scores for one query
_STEP: Final = 7  # places from one of the others to the next


@dataclass(frozen=True)
class Query:
    """A query, and the numbers of the documents that answer it."""

    language: str
    text: str
    relevant: tuple[int, ...]


def read_retrieval_pairs(path: Path = PAIRS) -> tuple[list[Query], list[str]]:
    """The queries, and the documents of all of them."""
    queries, documents = [], list[str]()
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        own = range(len(documents), len(documents) + len(record["documents"]))
        queries.append(Query(record["language"], record["query"], tuple(own)))
        documents += record["documents"]
    return queries, documents


def reranked_documents(query: Query, n_documents: int) -> list[int]:
    """The documents that a reranker scores for a query: those that answer it come first."""
    others = ((query.relevant[-1] + 1 + _STEP * i) % n_documents for i in range(n_documents))
    chosen = [at for at in dict.fromkeys(others) if at not in query.relevant]
    return [*query.relevant, *chosen[: _CANDIDATES - len(query.relevant)]]
