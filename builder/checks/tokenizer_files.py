"""Whether a folder holds the tokenizer files that llama.cpp's converter reads."""

from __future__ import annotations

import json
from pathlib import Path

from quantyard.formats.sentencepiece import (
    TOKENIZER,
    missing_sentencepiece_file,
    missing_sentencepiece_words,
    needs_sentencepiece_check,
)
from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import StageFailure


def refuse_unconvertible_tokenizer(source: Path, architecture: str) -> None:
    """Refuse a SentencePiece tokenizer whose tokenizer.model is missing.

    Raises:
        StageFailure: 2, names the file to copy.
    """
    names = {path.name for path in source.iterdir() if path.is_file()}
    if not needs_sentencepiece_check(names, architecture):
        return
    try:
        tokenizer = json.loads((source / TOKENIZER).read_bytes())
    except (OSError, ValueError, RecursionError):
        return
    if name := missing_sentencepiece_file(names, architecture, tokenizer):
        message, hint = missing_sentencepiece_words("the folder", name)
        raise StageFailure(ExitCode.BAD_REQUEST, "no-tokenizer-model", message, hint)
