"""A model whose embeddings are its output by config.json, and whose weights hold another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from builder.checks.tied_output import differs_from_tied_output, tied_output_note
from quantyard.formats.gguf import read_gguf_model
from quantyard.formats.safetensors import read_safetensors_folder
from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import StageFailure
from tests.gguf_files import SMALL_METADATA, TensorSpec, gguf
from tests.tiny_model import write_safetensors

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TIED = {"tie_word_embeddings": True}


def _differs(folder: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]], alike: float | None) -> bool:
    constant = dict.fromkeys(shapes, alike) if alike is not None else None
    write_safetensors(folder / "model.safetensors", shapes, constant)
    return differs_from_tied_output(config, read_safetensors_folder(folder))


BOTH = {EMBEDDINGS: (40, 8), HEAD: (40, 8)}


@pytest.mark.parametrize(
    ("config", "shapes", "alike", "differs"),
    [
        (TIED, BOTH, None, True), (TIED, BOTH, 0.5, False), (TIED, {EMBEDDINGS: (40, 8)}, None, False),
        ({"tie_word_embeddings": False}, BOTH, None, False), ({}, BOTH, None, False),
        ({"text_config": TIED}, {f"model.language_model.{EMBEDDINGS[6:]}": (40, 8), HEAD: (40, 8)}, None, True),
        (TIED, {"transformer.wte.weight": (40, 8), HEAD: (40, 8)}, None, True),
        (TIED, {EMBEDDINGS: (40, 8), HEAD: (32, 8)}, None, False),
    ],
    ids=["differs", "same", "no head", "untied", "unsaid", "nested", "gpt-2", "of another shape"],
)  # fmt: skip
def test_an_output_that_is_not_the_embeddings_is_found(
    config: dict[str, Any], shapes: dict[str, tuple[int, ...]], alike: float | None, *, differs: bool, tmp_path: Path
) -> None:
    assert _differs(tmp_path, config, shapes, alike) == differs


def test_the_one_that_llama_cpp_takes_is_named_or_refused_where_transformers_takes_the_other(tmp_path: Path) -> None:
    def model(*names: str) -> Any:
        path = tmp_path / f"{len(names)}.gguf"
        path.write_bytes(gguf(SMALL_METADATA, [TensorSpec(name, (8, 4)) for name in names]))
        return read_gguf_model(path)

    assert "llama.cpp takes lm_head.weight, as Transformers 5 does" in tied_output_note(
        model("token_embd.weight", "output.weight")
    )
    with pytest.raises(StageFailure) as refused:
        tied_output_note(model("token_embd.weight"))
    assert refused.value.exit_code is ExitCode.BAD_REQUEST and "remove lm_head.weight" in refused.value.error.hint
