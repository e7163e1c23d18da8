"""A model whose config.json says that its embeddings are its output, while its weights hold an output that differs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from quantyard.formats.gguf import GgufHeader
from quantyard.formats.safetensors import SafetensorsFile, SafetensorsTensor
from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import StageFailure

_HEAD: Final = re.compile(r"(?:^|\.)lm_head\.weight$")
_EMBEDDINGS: Final = re.compile(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|tok_embeddings)\.weight$")
_OUTPUT: Final = "output.weight"  # in a GGUF; where there is none, llama.cpp takes the embeddings
_BLOCK_BYTES: Final = 4 << 20
_FACT: Final = "config.json says tie_word_embeddings: true, and lm_head.weight differs from the embeddings"


def differs_from_tied_output(config: Mapping[str, Any], weights: Sequence[SafetensorsFile]) -> bool:
    """Whether the embeddings should be the output by config.json, and a tensor of other values is there for it."""
    inner = config.get("text_config")
    if {**config, **(inner if isinstance(inner, dict) else {})}.get("tie_word_embeddings") is not True:
        return False
    head, embeddings = _only_weight_named(weights, _HEAD), _only_weight_named(weights, _EMBEDDINGS)
    if head is None or embeddings is None or head[1].shape != embeddings[1].shape:
        return False
    return head[1].dtype == embeddings[1].dtype and not _is_same_weight(head, embeddings)


def tied_output_note(model: GgufHeader) -> str:
    """Which of both llama.cpp takes, for a model whose output differs.

    Raises:
        StageFailure: 2, the converter left the output out: it takes the one that Transformers does not.
    """
    if any(tensor.name == _OUTPUT for tensor in model.tensors):
        return f"{_FACT}: llama.cpp takes lm_head.weight, as Transformers 5 does; Transformers 4 takes the embeddings."
    message = f"{_FACT}; llama.cpp's converter takes the embeddings, Transformers 5 takes lm_head.weight."
    hint = "If the embeddings are right, remove lm_head.weight from the weights. If not, llama.cpp cannot compute it."
    raise StageFailure(ExitCode.BAD_REQUEST, "tied-output", message, hint)


def _only_weight_named(
    weights: Sequence[SafetensorsFile], name: re.Pattern[str]
) -> tuple[Path, SafetensorsTensor] | None:
    found = [(file.path, tensor) for file in weights for key, tensor in file.tensors.items() if name.search(key)]
    return found[0] if len(found) == 1 else None


def _is_same_weight(first: tuple[Path, SafetensorsTensor], second: tuple[Path, SafetensorsTensor]) -> bool:
    with first[0].open("rb") as one, second[0].open("rb") as other:
        one.seek(first[1].start)
        other.seek(second[1].start)
        left = first[1].end - first[1].start
        while left > 0:
            size = min(left, _BLOCK_BYTES)
            if one.read(size) != other.read(size):
                return False
            left -= size
    return True
