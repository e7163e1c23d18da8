"""The type of the KV cache on its way to llama.cpp's server without containers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quantyard.serve.context import decide_served_context
from server.local.llama_server import llama_server_params
from server.local.model_process import ModelSettings
from tests.gguf_files import SMALL_TENSORS, gguf

HEADER: dict[str, Any] = {
    "general.architecture": "llama", "llama.context_length": 32768, "llama.block_count": 30,
    "llama.embedding_length": 576, "llama.attention.head_count": 9, "llama.attention.head_count_kv": 3,
}  # 23,040 bytes of cache a token in f16, 12,240 in q8_0


class _Params(SimpleNamespace):
    """Takes every attribute, and gives one for every part."""

    def __getattr__(self, name: str) -> Any:
        part = _Params()
        setattr(self, name, part)
        return part


@pytest.mark.parametrize(("cache_type", "ids"), [("f16", (1, 1)), ("q8_0", (8, 8)), ("q8_0/q4_0", (8, 2))])
def test_keys_and_values_get_the_numbers_that_ggml_gives_their_types(
    tmp_path: Path, cache_type: str, ids: tuple[int, int]
) -> None:
    library = SimpleNamespace(CommonParams=_Params, ggml_type=int)
    settings = ModelSettings(path=tmp_path / "no.gguf", name="m", context_size=512, parallel=1, threads=1,
                             n_gpu_layers=0, cache_type=cache_type)  # fmt: skip
    params = llama_server_params(library, settings)
    assert (params.cache_type_k, params.cache_type_v) == ids


def test_a_smaller_cache_leaves_room_for_more_context(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf(HEADER, SMALL_TENSORS))
    memory = 2 * 23_040 * 10_240 + 2**16
    f16, q8 = (decide_served_context([path], memory_bytes=memory, cache_type=name).context_size
               for name in ("f16", "q8_0"))  # fmt: skip
    assert f16 == pytest.approx(10_240, abs=1024) and q8 == pytest.approx(10_240 * 32 * 2 / 34, abs=2048)
