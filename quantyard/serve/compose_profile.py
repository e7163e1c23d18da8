"""The profile of compose.yaml that serves a file: an encoder-decoder has a service of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from quantyard.formats.gguf import GgufError, read_gguf_header

ENCODER_DECODER: Final = "encoder-decoder"
_OF_LLAMA_SERVER: Final = ("cpu", "cuda")


def is_encoder_decoder(files: Sequence[Path]) -> bool:
    """Whether these are files of an encoder-decoder."""
    with suppress(GgufError, OSError):
        return any(read_gguf_header(path).is_encoder_decoder for path in files[:1])
    return False


def compose_environment(environment: Mapping[str, str], files: Sequence[Path]) -> Mapping[str, str]:
    """The environment in which compose serves these files, if they need another profile than it would start."""
    told = environment.get("COMPOSE_PROFILES", "")
    if not is_encoder_decoder(files):
        return environment
    return {**environment, "COMPOSE_PROFILES": compose_profiles(told)}


def compose_profiles(profiles: str) -> str:
    """These profiles, with that of encoder-decoders in place of llama-server's."""
    names = [name for name in profiles.split(",") if name and name not in _OF_LLAMA_SERVER]
    return ",".join([ENCODER_DECODER, *(name for name in names if name != ENCODER_DECODER)])
