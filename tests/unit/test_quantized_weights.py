"""Weights that are quantized at the source are recognised by their headers, in every form that people publish, and have
their true shapes where llama.cpp's converter can unpack them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from quantyard.errors import NeedsPermission, UnreadableWeights
from quantyard.formats.quantized_weights import (
    PlainTensor,
    config_for_converter,
    find_quantization,
    half_dtype,
    plain_tensors,
)
from quantyard.quants.catalog import find_quant
from quantyard.quants.file_size import TensorShape
from quantyard.quants.selection import parse_quants
from quantyard.sources.quantized_source import read_source_weights, refuse_unreadable_weights, source_dtypes
from quantyard.sources.resolve import refuse_quantized_source
from quantyard.sources.source import Source
from quantyard.store.artifact import ModelId

H, F, V = 256, 512, 1000
LINEAR = {
    "self_attn.q_proj": (H, H), "self_attn.k_proj": (H // 2, H), "self_attn.v_proj": (H // 2, H),
    "self_attn.o_proj": (H, H), "mlp.gate_proj": (F, H), "mlp.up_proj": (F, H), "mlp.down_proj": (H, F),
}  # fmt: skip
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": H, "intermediate_size": F,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": V,
    "tie_word_embeddings": True,
}  # fmt: skip
Layer = Callable[[str, int, int], dict[str, tuple[str, tuple[int, ...]]]]


def stored(layer: Layer | None, half: str = "BF16") -> dict[str, PlainTensor]:
    """A llama of one layer: its projections in this form, the rest in 16 bits."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {
        "model.embed_tokens.weight": (half, (V, H)), "model.norm.weight": (half, (H,)),
        "model.layers.0.input_layernorm.weight": (half, (H,)),
        "model.layers.0.post_attention_layernorm.weight": (half, (H,)),
    }  # fmt: skip
    for name, (rows, row) in LINEAR.items():
        module = f"model.layers.0.{name}"
        found |= layer(module, rows, row) if layer else {f"{module}.weight": (half, (rows, row))}
    return {name: PlainTensor(dtype, shape) for name, (dtype, shape) in found.items()}


def _gptq(bits: int, order: bool = True) -> Layer:
    def layer(m: str, o: int, i: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        groups = -(-i // 128)
        parts: dict[str, tuple[str, tuple[int, ...]]] = {
            f"{m}.qweight": ("I32", (i * bits // 32, o)), f"{m}.qzeros": ("I32", (groups, o * bits // 32)),
            f"{m}.scales": ("F16", (groups, o)),
        }  # fmt: skip
        return parts | ({f"{m}.g_idx": ("I32", (i,))} if order else {})

    return layer


def _plain(dtype: str, **parts: Callable[[int, int], tuple[str, tuple[int, ...]]]) -> Layer:
    """The weight in this type, and companions."""
    return lambda m, o, i: {f"{m}.weight": (dtype, (o, i)), **{f"{m}.{p}": make(o, i) for p, make in parts.items()}}


def _awq(m: str, o: int, i: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {
        f"{m}.qweight": ("I32", (i, o // 8)), f"{m}.qzeros": ("I32", (i // 128, o // 8)),
        f"{m}.scales": ("F16", (i // 128, o)),
    }  # fmt: skip


def _bnb4(m: str, o: int, i: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {
        f"{m}.weight": ("U8", (o * i // 2, 1)), f"{m}.weight.absmax": ("U8", (o * i // 64,)),
        f"{m}.weight.quant_map": ("F32", (16,)), f"{m}.weight.quant_state.bitsandbytes__nf4": ("U8", (200,)),
    }  # fmt: skip


def _packed(bits: int) -> Layer:
    return lambda m, o, i: {
        f"{m}.weight_packed": ("I32", (o, i * bits // 32)), f"{m}.weight_scale": ("BF16", (o, i // 128)),
        f"{m}.weight_shape": ("I64", (2,)),
    }  # fmt: skip


def _hqq(m: str, o: int, i: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {f"{m}.W_q": ("U8", (o // 2, i)), f"{m}.scale": ("F16", (o * i // 64, 1)), f"{m}.zero": ("F16", (1, 1))}


def _torchao(m: str, o: int, i: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {f"{m}._weight_qdata": ("I8", (o, i)), f"{m}._weight_scale": ("F32", (o, 1))}


def _of(dtype: str, *shape: int) -> Callable[[int, int], tuple[str, tuple[int, ...]]]:
    return lambda _o, _i: (dtype, shape)


BLOCKS = lambda o, i: ("F32", (-(-o // 128), -(-i // 128)))  # noqa: E731
ROWS = lambda o, _i: ("BF16", (o, 1))  # noqa: E731


def compressed(form: str, strategy: str, bits: int, kind: str = "int", **more: Any) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": kind, "strategy": strategy, **more}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": {"weights": weights}}}


# What the converter unpacks: how it is stored, what config.json says, what it is called.
CONVERTED: dict[str, tuple[Layer, dict[str, Any], str]] = {
    "gptq 2": (_gptq(2), {"quant_method": "gptq", "bits": 2}, "GPTQ, 2 bit"),
    "gptq 4": (_gptq(4), {"quant_method": "gptq", "bits": 4}, "GPTQ, 4 bit"),
    "gptq 8": (_gptq(8), {"quant_method": "gptq", "bits": 8}, "GPTQ, 8 bit"),
    "fp8 blocks": (
        _plain("F8_E4M3", weight_scale_inv=BLOCKS), {"quant_method": "fp8", "weight_block_size": [128, 128]}, "FP8",
    ),
    "fp8 static": (
        _plain("F8_E4M3", weight_scale_inv=_of("BF16"), activation_scale=_of("BF16")), {"quant_method": "fp8"}, "FP8",
    ),
    "fp8 without scales": (_plain("F8_E5M2"), {}, "FP8"),
    "modelopt fp8": (
        _plain("F8_E4M3", weight_scale=_of("F32"), input_scale=_of("F32")),
        {"quant_method": "modelopt", "quant_algo": "FP8"}, "FP8 (ModelOpt)",
    ),
    "compressed fp8": (
        _plain("F8_E4M3", weight_scale=ROWS), compressed("float-quantized", "channel", 8, "float"),
        "FP8 (compressed-tensors)",
    ),
    "compressed int8": (
        _plain("I8", weight_scale=ROWS), compressed("int-quantized", "channel", 8), "compressed-tensors INT8",
    ),
    "compressed w4a16": (
        _packed(4), compressed("pack-quantized", "group", 4, group_size=128), "compressed-tensors, 4 bit",
    ),
    "compressed w8a16": (
        _packed(8), compressed("pack-quantized", "group", 8, group_size=128), "compressed-tensors, 8 bit",
    ),
    "bitnet": (
        lambda m, o, i: {f"{m}.weight": ("U8", (o // 4, i)), f"{m}.weight_scale": ("BF16", (1,))},
        {"quant_method": "bitnet"}, "BitNet, 2 bit",
    ),
}  # fmt: skip
# What it cannot: the same, and a word of the reason.
REFUSED: dict[str, tuple[Layer, dict[str, Any], str, str]] = {
    "awq": (_awq, {"quant_method": "awq", "bits": 4}, "AWQ, 4 bit", "AWQ"),
    "bitsandbytes 4": (_bnb4, {"quant_method": "bitsandbytes"}, "bitsandbytes, 4 bit", "bitsandbytes"),
    "bitsandbytes 8": (
        _plain("I8", SCB=_of("F32", 1), weight_format=_of("U8")), {"quant_method": "bitsandbytes"},
        "bitsandbytes, 8 bit", "bitsandbytes",
    ),
    "hqq": (_hqq, {"quant_method": "hqq"}, "HQQ", "HQQ"),
    "torchao": (_torchao, {"quant_method": "torchao"}, "torchao", "torchao"),
    "mlx": (
        lambda m, o, i: {f"{m}.weight": ("U32", (o, i // 8)), f"{m}.scales": ("F16", (o, i // 64)),
                         f"{m}.biases": ("F16", (o, i // 64))},
        {}, "MLX", "MLX",
    ),
    "aqlm": (
        lambda m, o, i: {f"{m}.codes": ("I16", (o, i // 8, 1)), f"{m}.codebooks": ("F16", (1, 65536, 1, 8))},
        {"quant_method": "aqlm"}, "AQLM, 2 bit", "AQLM",
    ),
    "gptq 3": (_gptq(3), {"quant_method": "gptq", "bits": 3}, "GPTQ, 3 bit", "not of 3"),
    "gptq without order": (_gptq(4, order=False), {"quant_method": "gptq", "bits": 4}, "GPTQ, 4 bit", "g_idx"),
    "auto-round": (_gptq(4), {"quant_method": "auto-round"}, "GPTQ (AutoRound), 4 bit", "AutoRound"),
    "fbgemm": (_plain("F8_E4M3", weight_scale=ROWS), {"quant_method": "fbgemm_fp8"}, "FP8 (FBGEMM)", "FBGEMM"),
    "autofp8": (
        _plain("F8_E4M3", weight_scale=_of("F32"), input_scale=_of("F32")), {"quant_method": "fp8"}, "FP8", "_scale",
    ),
    "compressed fp8 per tensor": (
        _plain("F8_E4M3", weight_scale=_of("F32", 1)), compressed("float-quantized", "tensor", 8, "float"),
        "FP8 (compressed-tensors)", "tensor",
    ),
    "fp8, unsaid": (_plain("F8_E4M3", weight_scale_inv=BLOCKS), {}, "FP8", "does not say"),
    "integers": (_plain("I8"), {"quant_method": "eetq"}, "EETQ", "EETQ"),
}  # fmt: skip


def config(said: dict[str, Any], key: str = "quantization_config") -> dict[str, Any]:
    return LLAMA | ({key: said} if said else {})


@pytest.mark.parametrize("kind", CONVERTED)
def test_a_form_that_the_converter_unpacks_has_the_shapes_of_the_model(kind: str) -> None:
    layer, said, title = CONVERTED[kind]
    tensors = stored(layer)
    found = find_quantization(config(said), tensors)
    assert found is not None and (found.title, found.problem, found.kept) == (title, "", "")
    assert plain_tensors(config(said), tensors) == stored(None)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_form_that_the_converter_cannot_unpack_is_refused_by_its_name(kind: str) -> None:
    layer, said, title, why = REFUSED[kind]
    found = find_quantization(config(said), stored(layer))
    assert found is not None and found.title == title and why in found.problem
    with pytest.raises(UnreadableWeights, match=r"is quantized already") as refused:
        refuse_unreadable_weights("org/model", found, "org/original")
    assert "MODEL=org/original" in refused.value.hint


@pytest.mark.parametrize(("method", "is_read"), [("gptq", True), ("fp8", True), ("awq", False), ("hqq", False)])
def test_without_headers_config_json_is_believed(method: str, is_read: bool) -> None:
    found = find_quantization(config({"quant_method": method}), None)
    assert found is not None and (found.problem == "") == is_read
    assert find_quantization(LLAMA, None) is None


STALE = [
    config({"quant_method": "bitsandbytes", "load_in_4bit": True}), config({"quant_method": "gptq", "bits": 4}),
    config({"quant_method": "fp8"}), config({"quant_algo": "FP8"}), config({"format": "x"}, "compression_config"),
    LLAMA | {"text_config": {"model_type": "llama", "quantization_config": {"quant_method": "mxfp4"}}},
]  # fmt: skip


@pytest.mark.parametrize("said", STALE)
def test_a_config_that_speaks_of_quantized_weights_beside_plain_ones_is_ignored_with_a_note(
    said: dict[str, Any],
) -> None:
    shapes = shapes_of(stored(None))
    held = read_source_weights(said, shapes)
    assert held.quantization is None and held.tensors == shapes
    (note,) = held.notes
    assert "is ignored" in note
    seen = config_for_converter(said, stored(None))
    assert seen == held.config and "quanti" not in str(seen) and "compression" not in str(seen)


def test_integer_buffers_and_scales_of_the_model_itself_are_no_quantization() -> None:
    plain = stored(None) | {
        "model.embeddings.position_ids": PlainTensor("I64", (1, 512)), "h.0.attn.bias": PlainTensor("U8", (1, 1, 8, 8)),
        "model.logit_scale": PlainTensor("F32", ()), "vision.layer_scale": PlainTensor("BF16", (H,)),
        "h.0.attn.masked_bias": PlainTensor("F32", ()), "encoder.layers.0.scale": PlainTensor("F32", (1,)),
    }  # fmt: skip
    assert find_quantization(LLAMA, plain) is None
    assert config_for_converter(LLAMA, plain) is None


@pytest.mark.parametrize("place", ["compression_config", "text_config"])
def test_the_converter_is_told_where_it_looks(place: str) -> None:
    layer, said, _ = CONVERTED["compressed w4a16"]
    given = LLAMA | {place: said if place == "compression_config" else {"quantization_config": said}}
    seen = config_for_converter(given, stored(layer))
    assert seen is not None and seen["quantization_config"] == said and "compression_config" not in seen
    assert seen.get("text_config") in (None, {})
    assert config_for_converter(config(said), stored(layer)) is None


@pytest.mark.parametrize("half", ["BF16", "F16"])
def test_unpacked_weights_have_the_type_of_those_beside_them(half: str) -> None:
    layer, said, _ = CONVERTED["gptq 4"]
    tensors = stored(layer, half)
    assert half_dtype(config(said), plain_tensors(config(said), tensors)) == half
    assert half_dtype({"torch_dtype": "float16"}, {}) == "F16"


def shapes_of(tensors: dict[str, PlainTensor]) -> tuple[TensorShape, ...]:
    return tuple(TensorShape(name, tensor.shape, tensor.dtype) for name, tensor in tensors.items())


def source(said: dict[str, Any], tensors: Iterable[TensorShape]) -> Source:
    held = read_source_weights(said, tuple(tensors))
    return Source(
        model=ModelId("local", "m", "0" * 40), kind="huggingface", title="m", files=(), config=held.config,
        tensors=held.tensors, dtypes=source_dtypes(held.tensors or ()), quantization=held.quantization,
        notes=held.notes,
    )


@pytest.mark.parametrize("kind", CONVERTED)
def test_the_plan_has_the_sizes_of_the_unpacked_model_and_asks_as_for_a_quantized_gguf(kind: str) -> None:
    layer, said, title = CONVERTED[kind]
    held, plain = source(config(said), shapes_of(stored(layer))), source(LLAMA, shapes_of(stored(None)))
    for name in ("BF16", "Q8_0", "Q4_K_M"):
        assert held.quant_size_bytes(find_quant(name)) == plain.quant_size_bytes(find_quant(name))
    assert held.n_params == plain.n_params and held.outtype("auto")[0] == "bf16"
    assert "unpacked" in held.outtype("auto")[1] and "no file can be better" in held.notes[0]
    with pytest.raises(NeedsPermission, match="Q4_K_M") as asked:
        refuse_quantized_source(held, parse_quants("BF16,F16,Q4_K_M"), "auto", allowed=False)
    assert title in asked.value.message and "BF16" not in asked.value.message
    refuse_quantized_source(held, parse_quants("Q4_K_M"), "bf16", allowed=True)


def gpt_oss(experts: int = 4, row: int = 2880) -> tuple[dict[str, Any], dict[str, PlainTensor]]:
    mlp = "model.layers.0.mlp.experts."
    tensors = stored(None) | {
        f"{mlp}gate_up_proj_blocks": PlainTensor("U8", (experts, 2 * row, row // 32, 16)),
        f"{mlp}gate_up_proj_scales": PlainTensor("U8", (experts, 2 * row, row // 32)),
        f"{mlp}gate_up_proj_bias": PlainTensor("BF16", (experts, 2 * row)),
        f"{mlp}down_proj_blocks": PlainTensor("U8", (experts, row, row // 32, 16)),
        f"{mlp}down_proj_scales": PlainTensor("U8", (experts, row, row // 32)),
    }  # fmt: skip
    said = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    return LLAMA | {"architectures": ["GptOssForCausalLM"], "quantization_config": said}, tensors


def test_mxfp4_experts_stay_as_they_are_in_the_conversion_and_in_mxfp4_moe_and_are_asked_for_in_others() -> None:
    told, tensors = gpt_oss()
    held = source(told, shapes_of(tensors))
    assert held.quantization is not None and (held.quantization.title, held.quantization.kept) == ("MXFP4", "MXFP4")
    n_experts = 4 * 2880 * 2880 * 3
    assert held.n_params == n_experts + 4 * 2 * 2880 + source(LLAMA, shapes_of(stored(None))).n_params
    for quant, least in (("BF16", 17 / 32), ("MXFP4_MOE", 17 / 32), ("Q8_0", 34 / 32)):
        rest = held.quant_size_bytes(find_quant(quant)) - n_experts * least
        assert 0 < rest < 3_000_000, quant
    assert "keep them as they are" in held.notes[0] and "are kept" in held.outtype("auto")[1]
    refuse_quantized_source(held, parse_quants("MXFP4_MOE,BF16"), "auto", allowed=False)
    with pytest.raises(NeedsPermission, match="Q4_K_M"):
        refuse_quantized_source(held, parse_quants("MXFP4_MOE,Q4_K_M"), "bf16", allowed=False)


def test_a_gpt_oss_that_was_dequantized_is_plain() -> None:
    told, _ = gpt_oss()
    held = source(told, shapes_of(stored(None)))
    assert held.quantization is None and "is ignored" in held.notes[0]


@pytest.mark.parametrize("kept", ["MXFP4", "NVFP4"])
def test_four_bit_floats_that_have_a_ggml_type_count_their_weights(kept: str) -> None:
    packed = kept == "MXFP4"
    scale = "U8" if packed else "F8_E4M3"
    layer: Layer = lambda m, o, i: {  # noqa: E731
        f"{m}.weight_packed": ("U8", (o, i // 2)), f"{m}.weight_scale": (scale, (o, i // (32 if packed else 16))),
        **({} if packed else {f"{m}.weight_global_scale": ("F32", (1,))}),
    }
    said = compressed("mxfp4-pack-quantized" if packed else "nvfp4-pack-quantized", "group", 4, "float")
    told = config(said) | {"architectures": ["KimiK3ForConditionalGeneration"]}
    found = find_quantization(told, stored(layer))
    assert found is not None and (found.kept, found.problem) == (kept, "")
    total = sum(math.prod(tensor.shape) for tensor in plain_tensors(told, stored(layer)).values())
    assert total == sum(math.prod(tensor.shape) for tensor in stored(None).values())
