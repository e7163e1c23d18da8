"""Finds words that a calibration text shares with an evaluation: a model must not be calibrated on its questions.

Two texts overlap if they share eight words in a row, regardless of case and punctuation. In scripts without spaces,
every character counts as a word.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final, TextIO

from pydantic import JsonValue

from quantyard.paths import REPO_DIR

WORDS: Final = 8
_WORD: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")
_BLOCK_CHARACTERS: Final = 4 * 1024 * 1024
_OVERLAP_CHARACTERS: Final = 1024  # more than eight words
_PLAIN: Final = (".txt", ".md", ".csv", ".tsv", ".yaml", ".yml", ".xml", ".html", ".arrow")
_JSON: Final = (".json", ".jsonl")
_SUITES: Final = REPO_DIR / "eval" / "suites"


@dataclass(frozen=True)
class TextOverlap:
    """The first words in common, and the file of the evaluation that has them."""

    words: str
    file: Path


def plan_contamination(texts: Iterable[str], evaluation: Iterable[Path]) -> TextOverlap | None:
    """The first eight words in a row that a text shares with a file of the evaluation; None: they share none."""
    known = {hash(gram) for text in texts for gram in _contamination_grams([text])}
    for path in evaluation:
        for gram in _contamination_grams(_texts_of_data_file(path)):
            if hash(gram) in known:
                return TextOverlap(" ".join(gram), path)
    return None


def plan_contaminating_files(artifacts: Path, *places: Path) -> list[Path]:
    """The files on this machine that an evaluation reads: the questions and prose of our suites, the data sets in the
    store, and `places` (a user's suite, data sets given by DATASETS).

    Parquet files are left out: they are compressed, and the orchestrator does not have a reader for them.
    """
    fetched = artifacts.glob("*/*/*/stages/datasets-*/files")
    found = (
        path for place in (_SUITES, *sorted(fetched), *places)
        for path in ([place] if place.is_file() else sorted(place.rglob("*")))
    )
    return [path for path in found if path.suffix in (*_PLAIN, *_JSON) and path.is_file()]


def _contamination_grams(texts: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Every eight words in a row within one text."""
    for text in texts:
        last: deque[str] = deque(maxlen=WORDS)
        for match in _WORD.finditer(text):
            last.append(match[0].lower())
            if len(last) == WORDS:
                yield tuple(last)


def plan_contaminating_texts(lines: Iterable[str]) -> Iterator[str]:
    """Every string value of the JSON on these lines; a line that is not JSON counts as text."""
    for line in lines:
        try:
            yield from _strings_of_json(json.loads(line))
        except ValueError:
            yield line


def _strings_of_json(value: JsonValue) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        yield from chain.from_iterable(map(_strings_of_json, value))
    elif isinstance(value, dict):
        yield from chain.from_iterable(map(_strings_of_json, value.values()))


def _texts_of_data_file(path: Path) -> Iterator[str]:
    """The file's texts. Arrow stores strings uncompressed, one after the other, so they can be read as text."""
    with path.open(encoding="utf-8", errors="replace") as stream:
        if path.suffix == ".jsonl":
            yield from plan_contaminating_texts(stream)
        elif path.suffix == ".json":
            yield from plan_contaminating_texts([stream.read()])
        else:
            yield from _overlapping_text_blocks(stream)


def _overlapping_text_blocks(stream: TextIO) -> Iterator[str]:
    """The text in overlapping blocks, so that every eight words in a row are in one block."""
    kept = ""
    while block := stream.read(_BLOCK_CHARACTERS):
        yield kept + block
        kept = block[-_OVERLAP_CHARACTERS:]
