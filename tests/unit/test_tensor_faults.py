"""What the headers of a checkpoint tell against its config.json, and what only looks like a fault."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from quantyard.errors import BadSource
from quantyard.quants.file_size import TensorShape
from quantyard.sources.tensor_faults import LIKE_LLAMA, embedding_rows, refuse_faulty_tensors, unwrapped_tensors

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 24,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 32,
    "tie_word_embeddings": False,
}  # fmt: skip


def llama(layers: int = 3, before: str = "model.", head: str = "lm_head.weight") -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        f"{before}embed_tokens.weight": (32, 8), f"{before}norm.weight": (8,), head: (32, 8),
    }  # fmt: skip
    for i in range(layers):
        layer = f"{before}layers.{i}."
        shapes |= {
            layer + "input_layernorm.weight": (8,), layer + "post_attention_layernorm.weight": (8,),
            layer + "self_attn.q_proj.weight": (8, 8), layer + "self_attn.k_proj.weight": (4, 8),
            layer + "self_attn.v_proj.weight": (4, 8), layer + "self_attn.o_proj.weight": (8, 8),
            layer + "mlp.gate_proj.weight": (24, 8), layer + "mlp.up_proj.weight": (24, 8),
            layer + "mlp.down_proj.weight": (8, 24), layer + "self_attn.rotary_emb.inv_freq": (1,),
        }
    return shapes


def check(shapes: dict[str, tuple[int, ...]], **config: Any) -> None:
    tensors = [TensorShape(name, shape, "BF16") for name, shape in shapes.items()]
    refuse_faulty_tensors("/models/x", CONFIG | config, tensors)


def refused(shapes: dict[str, tuple[int, ...]], **config: Any) -> str:
    with pytest.raises(BadSource) as caught:
        check(shapes, **config)
    return f"{caught.value.message} | {caught.value.hint}"


def without(*parts: str) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in llama().items() if not any(part in name for part in parts)}


@pytest.mark.parametrize("model_type", sorted(LIKE_LLAMA))
def test_a_whole_model_passes(model_type: str) -> None:
    check(llama(), model_type=model_type)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (["layers.1.mlp.up_proj"], "lacks a tensor of its model: model.layers.1.mlp.up_proj.weight"),
        (["layers.2.input_layernorm"], "model.layers.2.input_layernorm.weight"),
        (["embed_tokens"], "embed_tokens.weight"), (["model.norm"], "norm.weight"),
        (["lm_head"], "set tie_word_embeddings to true"), (["layers.2."], "lacks 1 of 3 layers"),
        (["layers.0.", "layers.1."], "lacks 2 of 3 layers of its config.json: model.layers.N, N = 0, 1"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(parts: list[str], says: str) -> None:
    assert says in refused(without(*parts))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"vocab_size": 33}, "embed_tokens.weight is [32, 8], and config.json says vocab_size = 33"),
        ({"hidden_size": 16, "num_attention_heads": 8}, "config.json says hidden_size = 16"),
        ({"intermediate_size": 32}, "mlp.gate_proj.weight is [24, 8], and by config.json it is [32, 8]"),
        ({"num_key_value_heads": 4}, "self_attn.k_proj.weight is [4, 8]"), ({"head_dim": 4}, "self_attn.q_proj.weight"),
        ({"num_hidden_layers": 2}, "holds 3 layers, and its config.json names 2"),
    ],
)  # fmt: skip
def test_shapes_that_config_json_does_not_describe_are_refused(config: dict[str, Any], says: str) -> None:
    assert says in refused(llama(), **config)


@pytest.mark.parametrize("name", [
    "base_model.model.layers.0.self_attn.q_proj.lora_A.weight", "model.layers.0.self_attn.q_proj.base_layer.weight",
])  # fmt: skip
def test_an_adapter_that_was_never_merged_is_refused(name: str) -> None:
    assert "merge_and_unload" in refused({**llama(), name: (8, 8)})


GOOD: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, Any]]] = {
    "tied": (without("lm_head"), {"tie_word_embeddings": True}),
    "tied-by-default": (without("lm_head"), {"tie_word_embeddings": None}),
    "an-embedding-model": (without("lm_head"), {"architectures": ["LlamaModel"]}),
    "at-the-top": (llama(before=""), {}),
    "of-a-picture-model": (
        llama(before="model.language_model.") | {
            f"model.vision_tower.encoder.layers.{i}.self_attn.q_proj.weight": (99, 99) for i in range(40)
        } | {"model.vision_tower.embeddings.patch_embedding.weight": (9, 3, 2, 2)}, {},
    ),
    "old-picture-model": (llama(before="language_model.model.", head="language_model.lm_head.weight"), {}),
    "quantized": (without("layers.1.mlp.up_proj", "layers.2."), {"quantization_config": {"quant_method": "gptq"}}),
    "layers-that-differ": (without("layers.1.mlp.up_proj"), {"model_type": "lfm2"}),
    "shared-layers": ({"model.layers.0.w": (8, 8)}, {"model_type": "albert"}),
    "a-draft-behind": (llama(layers=4), {"model_type": "deepseek_v3"}),
    "encoder-decoder": (without("layers.1."), {"is_encoder_decoder": True}),
    "other-embedding-width": (llama(), {"model_type": "opt", "hidden_size": 8, "word_embed_proj_dim": 4}),
    "unknown-shapes": ({}, {}), "no-numbers": (llama(), {"model_type": "x", "vocab_size": None, "hidden_size": None}),
}  # fmt: skip


@pytest.mark.parametrize("kind", GOOD)
def test_what_only_looks_like_a_fault_is_none(kind: str) -> None:
    shapes, config = GOOD[kind]
    check(shapes, **config)


@pytest.mark.parametrize("config", [{"num_attention_heads": 0}, {"num_hidden_layers": -1}, {"text_config": 7},
                                    {"architectures": 7}, {"model_type": ["x"]}])  # fmt: skip
def test_odd_configurations_do_not_break_the_check(config: dict[str, Any]) -> None:
    with suppress(BadSource):
        check(llama(), **config)


def test_names_of_a_wrapper_are_stripped_before_the_check() -> None:
    wrapped = tuple(TensorShape(f"_orig_mod.{name}", shape, "BF16") for name, shape in llama().items())
    bare, note = unwrapped_tensors(wrapped)
    refuse_faulty_tensors("/models/x", CONFIG, bare or ())
    assert "'_orig_mod.'" in note and "all tensors" in note


def test_the_rows_of_the_embeddings_are_known_by_their_name() -> None:
    assert embedding_rows([TensorShape(n, s, "BF16") for n, s in llama().items()]) == 32
    two = [TensorShape(f"{name}.wte.weight", (rows, 2), "F16") for name, rows in (("x", 7), ("y", 8))]
    assert embedding_rows(two) is None
