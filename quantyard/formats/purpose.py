"""What a model is for: it generates text, embeds texts as vectors, or ranks documents by a query.

Of a GGUF its metadata says so: llama.cpp pools the hidden states of a text into one vector (`pooling_type`), and a head
(`cls.output`) makes one score of it. Of a model in Hugging Face format, see `sources/purpose.py`.
"""

from __future__ import annotations

from typing import Final, Literal

from quantyard.formats.gguf import GgufArray, GgufHeader

Purpose = Literal["generate", "embed", "rerank"]
Pooling = Literal["none", "mean", "cls", "last", "rank"]
# By `llama_pooling_type`, and as llama-server's --pooling takes them.
POOLINGS: Final[tuple[Pooling, ...]] = ("none", "mean", "cls", "last", "rank")
DEFAULT_POOLING: Final[Pooling] = "mean"  # what sentence-transformers takes where a model says nothing
_RANK: Final = POOLINGS.index("rank")
_HEADS: Final = ("cls.output.weight", "cls.weight")
_PURE_ENCODERS: Final = ("t5encoder",)


def gguf_purpose(header: GgufHeader) -> Purpose:
    """What this model is for."""
    if _pooling_number(header) == _RANK or _has_gguf_one_score(header):
        return "rerank"
    is_causal = header.metadata.get(f"{header.architecture}.attention.causal") is not False
    if header.architecture in _PURE_ENCODERS or not is_causal or _pooling_number(header) > 0:
        return "embed"
    return "generate"


def gguf_pooling(header: GgufHeader) -> Pooling:
    """How the hidden states of a text become one vector; the default where the file does not say."""
    if gguf_purpose(header) == "rerank":
        return "rank"
    number = _pooling_number(header)
    return POOLINGS[number] if 0 < number < len(POOLINGS) else DEFAULT_POOLING


def gguf_dimension(header: GgufHeader) -> int | None:
    """How many numbers an embedding has."""
    found = header.metadata.get(f"{header.architecture}.embedding_length")
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def _pooling_number(header: GgufHeader) -> int:
    found = header.metadata.get(f"{header.architecture}.pooling_type", 0)
    return found if isinstance(found, int) and not isinstance(found, bool) else 0


def _has_gguf_one_score(header: GgufHeader) -> bool:
    """Whether a head makes one score of a text; a classifier of several labels makes more."""
    heads = [tensor for tensor in header.tensors if tensor.name in _HEADS]
    if not heads:
        return False
    labels = header.metadata.get(f"{header.architecture}.classifier.output_labels")
    return not isinstance(labels, GgufArray) or labels.length == 1
