"""Whether a tokenizer.json is that of a SentencePiece model whose own file llama.cpp's converter needs.

Without that file the converter writes a vocabulary without scores, and llama.cpp then merges tokens in another order.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, Final

TOKENIZER: Final = "tokenizer.json"
BEGINNING_BYTES: Final = 256 * 1024  # of tokenizer.json, with all that comes before the vocabulary
_SPACE: Final = "▁"
_MODELS: Final = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_VOCABULARY: Final = '"vocab"'
# Converters that read tokenizer.json of a SentencePiece model themselves. To add one: how its classes' names begin.
_READ_JSON: Final = ("Gemma4",)
_READ_UNIGRAM: Final = ("T5", "MT5", "UMT5")  # need spiece.model; the other unigram models are read from tokenizer.json


def needs_sentencepiece_check(names: Collection[str], architecture: str) -> bool:
    """Whether tokenizer.json has to be read to know that no file is missing."""
    return TOKENIZER in names and not any(name in names for name in _MODELS) and not architecture.startswith(_READ_JSON)


def missing_sentencepiece_file(names: Collection[str], architecture: str, tokenizer: Any) -> str:
    """The name of the file that the converter needs and that is not among `names`; "": none.

    Args:
        tokenizer: the value of tokenizer.json, or of its beginning.
    """
    if not needs_sentencepiece_check(names, architecture):
        return ""
    kind = _sentencepiece_kind(tokenizer)
    if kind == "Unigram":
        return "spiece.model" if architecture.startswith(_READ_UNIGRAM) else ""
    return "tokenizer.model" if kind == "BPE" else ""


def missing_sentencepiece_words(where: str, name: str) -> tuple[str, str]:
    """Message and hint for a missing file."""
    message = f"The tokenizer is a SentencePiece one, and {where} has its tokenizer.json but no {name}."
    hint = (
        f"Copy {name} from the original model's repo into the folder: llama.cpp's converter needs the scores in it, "
        "and would build a tokenizer that splits plain English otherwise."
    )
    return message, hint


def parse_tokenizer_beginning(head: bytes) -> Any:
    """What the beginning of a tokenizer.json says before its vocabulary; None where it cannot be told."""
    text = head.decode("utf-8", errors="ignore")
    before, vocabulary, _ = text.partition(_VOCABULARY)
    if not vocabulary:
        return None
    try:
        found = json.loads(before.rstrip().rstrip(",") + "}}")
    except (ValueError, RecursionError):
        return None
    model = found.get("model") if isinstance(found, dict) else None
    return found if isinstance(model, dict) and "type" in model else None  # without it, what follows would tell


def _sentencepiece_kind(tokenizer: Any) -> str | None:
    """BPE or Unigram; None where it is not a SentencePiece tokenizer."""
    model = tokenizer.get("model") if isinstance(tokenizer, dict) else None
    if not isinstance(model, dict) or not _tokenizer_marks_spaces(tokenizer):
        return None
    kind = model.get("type") or ("BPE" if "merges" in model else "Unigram")
    return kind if kind == "Unigram" or (kind == "BPE" and model.get("byte_fallback") is True) else None


def _tokenizer_marks_spaces(tokenizer: dict[str, Any]) -> bool:
    """Whether spaces become "▁", in the normalizer or before the text is split."""
    parts = json.dumps([tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")], ensure_ascii=False)
    return _SPACE in parts or '"Metaspace"' in parts
