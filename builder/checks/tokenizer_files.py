"""Whether a folder holds the tokenizer files that llama.cpp's converter reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import StageFailure

_SPACE: Final = "▁"
_MODELS: Final = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
# Converters that read tokenizer.json of a SentencePiece model themselves. To add one: how its classes' names begin.
_READ_JSON: Final = ("Gemma4",)
_READ_UNIGRAM: Final = ("T5", "MT5", "UMT5")  # need spiece.model; the other unigram models are read from tokenizer.json


def refuse_missing_sentencepiece(source: Path, architecture: str) -> None:
    """Refuse a SentencePiece tokenizer whose tokenizer.model is missing.

    Without it the converter writes a vocabulary without scores, and llama.cpp then merges tokens in another order.

    Raises:
        StageFailure: 2, names the file to copy.
    """
    if any((source / name).is_file() for name in _MODELS) or architecture.startswith(_READ_JSON):
        return
    kind = _sentencepiece_kind(source / "tokenizer.json")
    if kind == "BPE" or (kind == "Unigram" and architecture.startswith(_READ_UNIGRAM)):
        name = "tokenizer.model" if kind == "BPE" else "spiece.model"
        message = f"The tokenizer is a SentencePiece one, and the folder has its tokenizer.json but no {name}."
        hint = (
            f"Copy {name} from the original model's repo into the folder: llama.cpp's converter needs the scores in "
            "it, and would build a tokenizer that splits plain English otherwise."
        )
        raise StageFailure(ExitCode.BAD_REQUEST, "no-tokenizer-model", message, hint)


def _sentencepiece_kind(path: Path) -> str | None:
    """BPE or Unigram; None where it is no SentencePiece tokenizer, or cannot be read."""
    try:
        tokenizer = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    model = tokenizer.get("model") if isinstance(tokenizer, dict) else None
    if not isinstance(model, dict) or not _marks_spaces(tokenizer):
        return None
    kind = model.get("type") or ("BPE" if "merges" in model else "Unigram")
    return kind if kind == "Unigram" or (kind == "BPE" and model.get("byte_fallback") is True) else None


def _marks_spaces(tokenizer: dict[str, Any]) -> bool:
    """Whether spaces become "▁", in the normalizer or before the text is split."""
    parts = json.dumps([tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")], ensure_ascii=False)
    return _SPACE in parts or '"Metaspace"' in parts
