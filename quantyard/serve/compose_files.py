"""The files of compose that serve a GGUF: an encoder-decoder has a server of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from quantyard.formats.gguf import GgufError, read_gguf_header

_ENCODER_DECODER: Final = "compose.yaml:compose.encoder-decoder.yaml"


def is_encoder_decoder(files: Sequence[Path]) -> bool:
    """Whether these are files of an encoder-decoder."""
    with suppress(GgufError, OSError):
        return any(read_gguf_header(path).is_encoder_decoder for path in files[:1])
    return False


def compose_environment(environment: Mapping[str, str], files: Sequence[Path]) -> Mapping[str, str]:
    """The environment in which compose serves these files: llama-server cannot run an encoder-decoder."""
    return {**environment, "COMPOSE_FILE": _ENCODER_DECODER} if is_encoder_decoder(files) else environment
