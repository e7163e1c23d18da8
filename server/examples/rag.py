"""Answers questions from documents (RAG): index → search → prompt → answer, with its sources.

The passages come from a BM25 search (the library bm25s) in `documents/`, the handbook of a fictional tool library. The
sources given are the passages that were found, whatever the model says.

Run it: python -m server.examples.rag "When is the tool library open?"
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import bm25s
import Stemmer

from quantyard.formatting.printable import printable
from server.client.client import DEFAULT_KEY_FILE, DEFAULT_URL, GREEDY, Client, ClientError, Message

DOCUMENTS: Final = Path(__file__).parent / "documents"
_MOST_PASSAGES: Final = 2
_WEAK: Final = 0.6  # share of the best passage's score; passages below it are left out
_INSTRUCTIONS: Final = (
    "You answer questions about a tool library from the passages you are given, in one or two sentences. "
    "Say so if they do not hold the answer."
)


@dataclass(frozen=True)
class Passage:
    """A section of a document; `source` is its name in an answer."""

    source: str
    text: str


@dataclass(frozen=True)
class Found:
    """An answer and its sources; without sources nothing was found, and the model was not asked."""

    text: str
    sources: tuple[str, ...]


def read_rag_passages(folder: Path = DOCUMENTS) -> list[Passage]:
    """Every section of every Markdown file in a folder, in the order of file names."""
    return [passage for path in sorted(folder.glob("*.md")) for passage in _rag_sections(path)]


def _rag_sections(path: Path) -> Iterator[Passage]:
    title, *sections = path.read_text(encoding="utf-8").split("\n## ")
    topic = title.strip().removeprefix("# ")
    for section in sections:
        heading, _, body = section.partition("\n")
        yield Passage(f"{path.name}, {heading.strip()}", f"{topic}: {heading.strip()}. {' '.join(body.split())}")


class Index:
    """A BM25 index of passages.

    Raises:
        ValueError: there are no passages.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        if not passages:
            raise ValueError("There are no passages to search.")
        self._passages = list(passages)
        self._stemmer = Stemmer.Stemmer("english")
        self._bm25 = bm25s.BM25()
        self._bm25.index(self._words([passage.text for passage in passages]), show_progress=False)

    def search(self, question: str) -> list[Passage]:
        """The best matching passages, best first; none if no passage has a word of the question."""
        most = min(_MOST_PASSAGES, len(self._passages))
        places, scores = self._bm25.retrieve(self._words([question]), k=most, show_progress=False)
        pairs = list(zip(places[0], scores[0], strict=True))
        return [self._passages[place] for place, score in pairs if score > 0 and score >= _WEAK * pairs[0][1]]

    def _words(self, texts: list[str]) -> Any:
        return bm25s.tokenize(
            texts, stopwords="en_plus", stemmer=self._stemmer, return_ids=False, show_progress=False, allow_empty=True
        )


def build_rag_prompt(question: str, passages: Sequence[Passage]) -> list[Message]:
    """The messages for the model."""
    known = "\n\n".join(f"[{number}] {passage.text}" for number, passage in enumerate(passages, 1))
    return [
        {"role": "system", "content": _INSTRUCTIONS},
        {"role": "user", "content": f"Passages:\n\n{known}\n\nQuestion: {question}"},
    ]


def rag_answer(client: Client, index: Index, question: str) -> Found:
    """Answer a question from the passages in the index.

    Raises:
        ClientError: the request to the server failed.
    """
    passages = index.search(question)
    if not passages:
        return Found("Nothing in the documents fits the question.", ())
    said = client.chat(build_rag_prompt(question, passages), GREEDY)
    return Found(said.text.strip(), tuple(passage.source for passage in passages))


def main() -> None:
    """Entry point: the answer and its sources on stdout."""
    parser = argparse.ArgumentParser(description="Answer a question from documents, with its sources.")
    parser.add_argument("question")
    parser.add_argument("--documents", type=Path, default=DOCUMENTS, help="folder of Markdown files")
    parser.add_argument("--base-url", default=DEFAULT_URL)
    parser.add_argument("--key-file", type=Path, default=DEFAULT_KEY_FILE)
    args = parser.parse_args()
    try:
        index = Index(read_rag_passages(args.documents))
        found = rag_answer(Client(args.base_url, args.key_file), index, args.question)
    except (ClientError, ValueError) as error:
        sys.exit(printable(str(error)))
    sources = "".join(f"  {source}\n" for source in found.sources)
    said = found.text + "\n" + (f"\nSources:\n{sources}" if sources else "")
    sys.stdout.write(printable(said))


if __name__ == "__main__":
    main()
