"""The bytes of a context, by hand: elements per token x layers x 2 bytes x tokens, for every kind of layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from quantyard.formats.gguf import read_gguf_model
from quantyard.memory.kv_cache import (
    ContextUse,
    attention_mask_bytes,
    can_quantize_kv_cache,
    context_cache_bytes,
    kv_bytes,
    recurrent_state_bytes,
)
from quantyard.memory.layers import Layer, ModelLayers, read_cache_layers
from tests.gguf_files import SMALL_TENSORS, Value, gguf

MIB = 2**20


def _read(path: Path, arch: str, keys: Mapping[str, Value]) -> ModelLayers | None:
    metadata: dict[str, Value] = {"general.architecture": arch, **{f"{arch}.{key}": x for key, x in keys.items()}}
    path.write_bytes(gguf(metadata, SMALL_TENSORS))
    return read_cache_layers(read_gguf_model(path))


def _known(path: Path, arch: str, keys: Mapping[str, Value]) -> ModelLayers:
    layers = _read(path, arch, keys)
    assert layers is not None
    return layers


def _attention(blocks: int, heads: int, kv_heads: int | list[int], width: int, **more: Value) -> dict[str, Value]:
    return {
        "block_count": blocks, "embedding_length": width, "attention.head_count": heads,
        "attention.head_count_kv": kv_heads, **{f"attention.{key}": value for key, value in more.items()},
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


SMOLLM = _attention(30, 9, 3, 576)  # 576 / 9 = 64 wide heads
LLAMA_8B = _attention(32, 32, 8, 4096)
GEMMA3 = _attention(26, 4, 1, 1152, key_length=256, value_length=256, sliding_window=512)  # the 1B
MAMBA = {
    "block_count": 24, "embedding_length": 768, "attention.head_count": 0, "ssm.conv_kernel": 4,
    "ssm.inner_size": 1536, "ssm.state_size": 16, "ssm.time_step_rank": 48,
}  # the 130M


@pytest.mark.parametrize(("tokens", "mib"), [(256, 5.625), (1024, 22.5), (1025, 28.125), (8192, 180)])
def test_the_demo_model_keeps_384_elements_in_each_of_30_layers(path: Path, tokens: int, mib: float) -> None:
    # K and V: 2 x 3 heads x 64 = 384 elements x 2 bytes x 30 layers = 23,040 bytes a token
    assert context_cache_bytes(_known(path, "llama", SMOLLM), ContextUse(tokens)) == mib * MIB


def test_a_gigabyte_holds_8192_tokens_of_an_8b_with_grouped_heads(path: Path) -> None:
    # 2 x 8 heads x 128 x 2 bytes x 32 layers = 128 KiB a token
    layers = _known(path, "llama", LLAMA_8B)
    assert context_cache_bytes(layers, ContextUse(8192)) == 2**30
    assert context_cache_bytes(layers, ContextUse(8192, 4)) == 2**30  # four requests share it


def test_without_a_shared_cache_each_request_has_its_part_rounded_up(path: Path) -> None:
    # 3000 is rounded up to 3072; a quarter is 768 tokens
    layers = _known(path, "llama", LLAMA_8B)
    assert context_cache_bytes(layers, ContextUse(3000, 4, unified=False)) == 4 * 768 * 128 * 1024
    # a third of 3072 is 1024; a fifth, 614, is rounded up to 768
    assert context_cache_bytes(layers, ContextUse(3000, 5, unified=False)) == 5 * 768 * 128 * 1024


@pytest.mark.parametrize(
    ("cache_type", "bytes_per_block"), [("q8_0", 34), ("q4_0", 18), ("q8_0/q4_0", 26), ("f16/q4_0", 41)]
)
def test_a_quantized_cache_holds_32_elements_in_a_block(
    path: Path, cache_type: str, bytes_per_block: int
) -> None:
    layers = _known(path, "llama", SMOLLM)
    assert kv_bytes(layers, ContextUse(1024), cache_type) == 1024 * 30 * 384 // 32 * bytes_per_block
    assert can_quantize_kv_cache(layers)


def test_heads_that_are_no_whole_blocks_take_no_quantized_cache(path: Path) -> None:
    assert not can_quantize_kv_cache(_known(path, "phi2", _attention(32, 32, 32, 2560)))  # 80 wide
    assert not can_quantize_kv_cache(ModelLayers((Layer(0, 0, recurrent=True),), 0, 100, 100))  # there is none


def test_the_heads_of_each_layer_are_read_from_the_file(path: Path) -> None:
    # 12, 3 and no KV heads: 15 x 64 x 2 x 2 bytes a token
    layers = _known(path, "openelm", _attention(3, 12, [12, 3, 0], 768))
    assert [layer.k for layer in layers.layers] == [768, 192, 0]
    assert context_cache_bytes(layers, ContextUse(256)) == 256 * 15 * 64 * 2 * 2


def test_keys_and_values_may_have_lengths_of_their_own(path: Path) -> None:
    layers = _known(path, "deepseek2", _attention(2, 16, 16, 2048, key_length=192, value_length=128))
    assert layers.layers == (Layer(16 * 192, 16 * 128),) * 2


def test_latent_attention_keeps_one_vector_and_no_values(path: Path) -> None:
    keys = _attention(
        27, 16, 1, 2048, key_length=576, value_length=512, key_length_mla=192, value_length_mla=128, kv_lora_rank=512
    )
    # 512 + 64 rotary elements x 2 bytes x 27 layers
    assert context_cache_bytes(_known(path, "deepseek2", keys), ContextUse(4096)) == 4096 * 576 * 2 * 27


# ---- sliding windows ---------------------------------------------------------------------------------


def test_gemmas_windows_hold_the_window_of_each_request_and_one_batch(path: Path) -> None:
    layers = _known(path, "gemma3", GEMMA3)
    assert [il for il, layer in enumerate(layers.layers) if not layer.windowed] == [5, 11, 17, 23]
    per_token = 2 * 256 * 2  # K and V of one layer, bytes
    assert context_cache_bytes(layers, ContextUse(8192)) == per_token * (4 * 8192 + 22 * 1024)  # 512 + 512
    assert context_cache_bytes(layers, ContextUse(8192, 4)) == per_token * (4 * 8192 + 22 * 2560)  # 4 x 512 + 512
    apart = ContextUse(8192, 4, unified=False)  # 2048 each, and 512 + 512 of a window
    assert context_cache_bytes(layers, apart) == per_token * 4 * (4 * 2048 + 22 * 1024)


def test_a_window_is_no_larger_than_the_context(path: Path) -> None:
    layers = _known(path, "gemma3", GEMMA3)
    assert context_cache_bytes(layers, ContextUse(600)) == 2 * 256 * 2 * 26 * 768


def test_measuring_keeps_windows_whole(path: Path) -> None:
    layers = _known(path, "gemma3", GEMMA3)
    assert context_cache_bytes(layers, ContextUse(4096, whole_windows=True)) == 2 * 256 * 2 * 26 * 4096


def test_a_window_of_zero_is_none(path: Path) -> None:
    layers = _known(path, "gemma3", GEMMA3 | {"attention.sliding_window": 0})
    assert context_cache_bytes(layers, ContextUse(4096)) == 2 * 256 * 2 * 26 * 4096


@pytest.mark.parametrize(("arch", "whole"), [
    ("gemma2", [1, 3, 5, 7]), ("gpt-oss", [1, 3, 5, 7]), ("cohere2", [3, 7]), ("laguna", [0, 4]), ("plamo3", [7]),
])  # fmt: skip
def test_every_architecture_has_its_own_layers_with_the_whole_context(path: Path, arch: str, whole: list[int]) -> None:
    layers = _known(path, arch, _attention(8, 4, 2, 256, sliding_window=512))
    assert [il for il, layer in enumerate(layers.layers) if not layer.windowed] == whole


def test_a_pattern_in_the_file_wins_as_a_list_or_a_number(path: Path) -> None:
    keys = _attention(4, 4, 2, 256, sliding_window=512)
    listed = _known(path, "gemma3", keys | {"attention.sliding_window_pattern": [1, 0, 0, 1]})
    assert [layer.windowed for layer in listed.layers] == [True, False, False, True]
    counted = _known(path, "gemma3", keys | {"attention.sliding_window_pattern": 2})
    assert [layer.windowed for layer in counted.layers] == [True, False, True, False]


def test_layers_that_share_an_earlier_cache_have_none_and_windows_their_own_heads(path: Path) -> None:
    keys = _attention(
        5, 8, [1, 1, 2, 1, 1], 512, key_length=512, value_length=512, key_length_swa=256, value_length_swa=256,
        sliding_window=512, sliding_window_pattern=[1, 1, 0, 1, 1], shared_kv_layers=2,
    )
    window, whole = Layer(256, 256, windowed=True), Layer(1024, 1024)
    assert _known(path, "gemma4", keys).layers == (window, window, whole)


@pytest.mark.parametrize(("arch", "keys", "window"), [
    ("gemma2", {}, 4096), ("gemma3", {}, 0), ("llama4", {}, 8192), ("llama4", {"sliding_window": 512}, 8192),
    ("llama4", {"sliding_window": 0}, 0), ("smallthinker", {}, 0), ("smallthinker", {"sliding_window": 64}, 4096),
    ("exaone4", {"sliding_window": 512}, 0),  # only the model of 64 layers has windows
])  # fmt: skip
def test_what_the_file_does_not_say_is_as_llama_cpp_has_it(
    path: Path, arch: str, keys: dict[str, Value], window: int
) -> None:
    layers = _known(path, arch, _attention(8, 4, 2, 256, **keys))
    assert layers.window == window and any(layer.windowed for layer in layers.layers) == (window > 0)


def test_layers_that_only_draft_tokens_have_no_cache(path: Path) -> None:
    layers = _known(path, "glm4moe", _attention(5, 4, 2, 256) | {"nextn_predict_layers": 1})
    assert len(layers.layers) == 4


# ---- recurrent states --------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [256, 8192])
def test_mambas_state_is_the_same_at_every_context(path: Path, tokens: int) -> None:
    layers = _known(path, "mamba", MAMBA)
    # (4 - 1) x 1536 and 16 x 1536 floats in each of 24 layers, for each request
    assert context_cache_bytes(layers, ContextUse(tokens)) == 24 * 4 * (3 * 1536 + 16 * 1536)
    assert context_cache_bytes(layers, ContextUse(tokens, 4)) == 4 * 24 * 4 * (3 * 1536 + 16 * 1536)


def test_a_hybrid_has_states_where_it_has_no_heads(path: Path) -> None:
    keys = _attention(4, 8, [0, 0, 2, 0], 512) | {
        "ssm.conv_kernel": 4, "ssm.inner_size": 1024, "ssm.state_size": 128, "ssm.group_count": 1,
    }  # fmt: skip
    layers = _known(path, "granitehybrid", keys)
    assert kv_bytes(layers, ContextUse(1024)) == 1024 * 2 * 2 * 64 * 2
    assert recurrent_state_bytes(layers, ContextUse(1024)) == 3 * 4 * (3 * (1024 + 2 * 128) + 128 * 1024)


def test_every_fourth_layer_of_qwen3next_attends(path: Path) -> None:
    keys = _attention(8, 16, 2, 2048, key_length=256, value_length=256) | {
        "ssm.conv_kernel": 4, "ssm.inner_size": 4096, "ssm.state_size": 128, "ssm.group_count": 16,
    }  # fmt: skip
    layers = _known(path, "qwen3next", keys)
    assert [il for il, layer in enumerate(layers.layers) if layer.k] == [3, 7]
    assert sum(layer.recurrent for layer in layers.layers) == 6


def test_short_convolutions_and_rwkv_have_states_of_their_own_form(path: Path) -> None:
    lfm = _known(path, "lfm2", _attention(2, 8, [0, 4], 1024) | {"shortconv.l_cache": 3})
    assert recurrent_state_bytes(lfm, ContextUse(256)) == 1024 * 2 * 4
    rwkv = _known(path, "rwkv7", {"block_count": 12, "embedding_length": 768, "wkv.head_size": 64})
    assert recurrent_state_bytes(rwkv, ContextUse(256)) == 12 * 4 * (2 * 768 + 768 * 64)


# ---- the mask ----------------------------------------------------------------------------------------


def test_the_mask_takes_a_kibibyte_for_each_token_of_context(path: Path) -> None:
    assert attention_mask_bytes(_known(path, "llama", SMOLLM), ContextUse(8192)) == 8192 * 1024
    # one mask for the whole context, one for the windows
    assert attention_mask_bytes(_known(path, "gemma3", GEMMA3), ContextUse(8192)) == (8192 + 1024) * 1024
    assert attention_mask_bytes(_known(path, "mamba", MAMBA), ContextUse(8192)) == 0


# ---- what is not known -------------------------------------------------------------------------------


@pytest.mark.parametrize(("arch", "keys"), [
    ("deepseek4", SMOLLM),  # a cache of its own kind
    ("not-yet-invented", SMOLLM),
    ("llama", {key: value for key, value in SMOLLM.items() if key != "block_count"}),
    ("llama", {key: value for key, value in SMOLLM.items() if key != "attention.head_count"}),
    ("llama", SMOLLM | {"block_count": 100_000}),
    ("llama", SMOLLM | {"block_count": 0}),
    ("llama", SMOLLM | {"attention.head_count_kv": [3, 3]}),  # not one for each layer
    ("llama", SMOLLM | {"attention.head_count_kv": [-1] * 30}),
    ("llama", SMOLLM | {"attention.head_count_kv": 3.0}),
    ("llama", SMOLLM | {"attention.head_count_kv": ["3"] * 30}),
    ("gemma4", GEMMA3),  # which layers have windows must be in the file
])  # fmt: skip
def test_what_is_not_known_exactly_is_not_guessed(path: Path, arch: str, keys: dict[str, Value]) -> None:
    assert _read(path, arch, keys) is None
