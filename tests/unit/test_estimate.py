"""Sizes and memory foretold from shapes, against figures observed with llama-quantize and llama-server."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantyard.errors import BadRequest
from quantyard.formatting.numbers import format_bytes
from quantyard.memory.from_config import kv_cache_bytes, serve_memory_bytes
from quantyard.quants.catalog import QUANTS, Quant, find_quant
from quantyard.quants.file_size import TensorShape, quant_gguf_bytes, quant_outtype_for, quant_rough_bytes, sized_model

GIB, MIB = 2**30, 2**20

Config = dict[str, object]


SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "vocab_size")


def file_bytes(tensors: Sequence[TensorShape], like: Config, quant: Quant, *, imatrix: bool | None = None) -> int:
    """The expected size of a file of this quant."""
    return quant_gguf_bytes(sized_model(tensors, like), quant, imatrix=imatrix)


def config(model_type: str, *sizes: int, **more: object) -> Config:
    """A config.json; `sizes` in the order of SIZES."""
    return {"model_type": model_type} | dict(zip(SIZES, sizes, strict=True)) | more


def llama(like: Config, ffn: int, experts: int = 0) -> list[TensorShape]:
    """The tensors of a model with Llama's names and the shapes that its config implies."""
    layers, hidden, heads, kv_heads, vocab = (int(str(like[key])) for key in SIZES)
    head_dim = int(str(like.get("head_dim", hidden // heads)))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not like.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (vocab, hidden)
    for layer in (f"model.layers.{i}." for i in range(layers)):
        shapes[layer + "input_layernorm.weight"] = shapes[layer + "post_attention_layernorm.weight"] = (hidden,)
        shapes[layer + "self_attn.q_proj.weight"] = (heads * head_dim, hidden)
        shapes[layer + "self_attn.k_proj.weight"] = (kv_heads * head_dim, hidden)
        shapes[layer + "self_attn.v_proj.weight"] = (kv_heads * head_dim, hidden)
        shapes[layer + "self_attn.o_proj.weight"] = (hidden, heads * head_dim)
        if experts:
            shapes[layer + "mlp.gate.weight"] = (experts, hidden)
        for ffn_name in [f"mlp.experts.{e}." for e in range(experts)] or ["mlp."]:
            shapes[layer + ffn_name + "gate_proj.weight"] = (ffn, hidden)
            shapes[layer + ffn_name + "up_proj.weight"] = (ffn, hidden)
            shapes[layer + ffn_name + "down_proj.weight"] = (hidden, ffn)
    return [TensorShape(name, shape, "BF16") for name, shape in shapes.items()]


DEMO = config("llama", 30, 576, 9, 3, 49152, tie_word_embeddings=True)  # SmolLM2-135M-Instruct
DEMO_TENSORS = llama(DEMO, 1536)
LLAMA_8B = config("llama", 32, 4096, 32, 8, 128256, tie_word_embeddings=False)
LLAMA_8B_TENSORS = llama(LLAMA_8B, 14336)

# Bytes of the file that llama-quantize wrote from the bf16 GGUF of the demo model, with no imatrix.
DEMO_BYTES = {
    "F32": 539845472, "COPY": 270885728, "BF16": 270885728, "F16": 270885728, "Q8_0": 144810848, "Q6_K": 138382688,
    "Q5_K_M": 112103264, "Q5_K_S": 109974368, "Q5_1": 111633248, "Q5_0": 104997728, "Q4_K_M": 105453920,
    "Q4_K_S": 102039392, "Q4_1": 98362208, "Q4_0": 91726688, "Q3_K_L": 97532768, "Q3_K_M": 93509984,
    "Q3_K_S": 88201568, "Q2_K": 88201568, "Q2_0": 61866848, "TQ1_0": 82395488, "TQ2_0": 83639648,
    "MXFP4_MOE": 144810848, "IQ4_NL": 92058464, "IQ4_XS": 91311968, "IQ3_M": 90212960, "IQ3_S": 88201568,
}  # fmt: skip

# GiB of Llama-3.1-8B as llama.cpp's tools/quantize/README.md lists them (imatrix types with an imatrix).
LLAMA_8B_GIB = {
    "IQ1_S": 1.87, "IQ1_M": 2.01, "IQ2_XXS": 2.23, "IQ2_XS": 2.42, "IQ2_S": 2.56, "IQ2_M": 2.74, "IQ3_XXS": 3.04,
    "IQ3_XS": 3.27, "IQ3_S": 3.42, "IQ3_M": 3.52, "IQ4_XS": 4.17, "IQ4_NL": 4.38, "Q2_K_S": 2.78, "Q2_K": 2.95,
    "Q3_K_S": 3.41, "Q3_K_M": 3.74, "Q3_K_L": 4.02, "Q4_K_S": 4.36, "Q4_K_M": 4.58, "Q5_K_S": 5.21, "Q5_K_M": 5.33,
    "Q6_K": 6.14, "Q8_0": 7.95, "F16": 14.96,
}  # fmt: skip

# MiB of tensors that `llama-quantize --dry-run` gave for these shapes: eight experts, many experts, the 70B rule.
MIXTRAL = config("mixtral", 32, 4096, 32, 8, 32000, num_local_experts=8)
QWEN3_MOE = config("qwen3_moe", 48, 2048, 32, 4, 151936, num_experts=128, head_dim=128)
LLAMA_70B = config("llama", 80, 8192, 64, 8, 128256)
DRY_RUN_MIB = [
    (MIXTRAL, 14336, 8, {"Q4_K_M": 27129.87, "Q3_K_L": 23049.27, "IQ3_M": 20437.27, "MXFP4_MOE": 24478.64}),
    (QWEN3_MOE, 768, 128, {"Q4_K_M": 17691.29, "MXFP4_MOE": 16285.35}),
    (LLAMA_70B, 28672, 0, {"Q4_K_M": 40543.11, "Q3_K_S": 29472.53, "Q2_K": 25145.77, "IQ1_S": 14625.19}),
]


@pytest.mark.parametrize(("quant", "observed"), DEMO_BYTES.items())
def test_the_demo_models_sizes_come_out_within_a_fifth_of_a_percent(quant: str, observed: int) -> None:
    assert file_bytes(DEMO_TENSORS, DEMO, find_quant(quant)) == pytest.approx(observed, rel=0.002)


@pytest.mark.parametrize(("quant", "observed"), LLAMA_8B_GIB.items())
def test_llama_8b_comes_out_within_half_a_percent_of_the_published_sizes(quant: str, observed: float) -> None:
    assert file_bytes(LLAMA_8B_TENSORS, LLAMA_8B, find_quant(quant)) / GIB == pytest.approx(observed, rel=0.005)


@pytest.mark.parametrize(("like", "ffn", "experts", "observed"), DRY_RUN_MIB)
def test_experts_and_70b_get_the_bits_that_a_dry_run_gives_them(
    like: Config, ffn: int, experts: int, observed: dict[str, float]
) -> None:
    tensors = llama(like, ffn, experts)
    for quant, mib in observed.items():
        assert file_bytes(tensors, like, find_quant(quant)) / MIB == pytest.approx(mib, rel=0.002), quant


@pytest.mark.parametrize("quant", [q for q in QUANTS if q.name not in ("COPY", "MXFP4_MOE")], ids=lambda q: q.name)
def test_the_tables_bits_per_weight_are_those_of_llama_8b(quant: Quant) -> None:
    row = find_quant(quant.name)
    weights = sum(t.shape[0] * (t.shape[1] if len(t.shape) > 1 else 1) for t in LLAMA_8B_TENSORS)
    bits = 8 * file_bytes(LLAMA_8B_TENSORS, LLAMA_8B, row) / weights
    assert row.bits_per_weight == pytest.approx(bits, rel=0.005)
    assert quant_rough_bytes(weights, row) == pytest.approx(row.bits_per_weight * weights / 8)


def test_experts_fused_into_one_tensor_are_as_large_as_separate_ones() -> None:
    separate = llama(MIXTRAL, 14336, 8)
    fused = [t for t in separate if ".experts." not in t.name]
    for i in range(32):
        experts = f"model.layers.{i}.mlp.experts."
        fused += [
            TensorShape(experts + "gate_up_proj", (8, 2 * 14336, 4096), "BF16"),
            TensorShape(experts + "down_proj", (8, 4096, 14336), "BF16"),
        ]
    for name in ("Q4_K_M", "Q2_K", "MXFP4_MOE", "BF16"):
        size = file_bytes(separate, MIXTRAL, find_quant(name))
        assert file_bytes(fused, MIXTRAL, find_quant(name)) == pytest.approx(size, rel=1e-4)


def test_a_tied_output_that_is_stored_all_the_same_is_not_counted() -> None:
    twice = [*DEMO_TENSORS, TensorShape("lm_head.weight", (49152, 576), "BF16")]
    size = file_bytes(DEMO_TENSORS, DEMO, find_quant("Q8_0"))
    assert file_bytes(twice, DEMO, find_quant("Q8_0")) == pytest.approx(size, rel=1e-5)


def test_the_vision_tower_of_a_multimodal_model_is_not_counted() -> None:
    wrapped: Config = {"model_type": "some_vl", "text_config": DEMO}
    tensors = [*DEMO_TENSORS, TensorShape("vision_tower.blocks.0.attn.q_proj.weight", (4096, 4096), "BF16")]
    size = file_bytes(DEMO_TENSORS, DEMO, find_quant("Q4_K_M"))
    assert file_bytes(tensors, wrapped, find_quant("Q4_K_M")) == pytest.approx(size, rel=1e-5)


def test_an_imatrix_changes_the_size_only_where_llama_cpp_spends_differently_with_one() -> None:
    def grows(name: str) -> int:
        without, given_one = (
            file_bytes(LLAMA_8B_TENSORS, LLAMA_8B, find_quant(name), imatrix=i) for i in (False, True)
        )
        return given_one - without

    assert grows("Q4_K_M") == 0
    assert grows("Q4_0") > 0
    assert grows("IQ4_XS") < 0


def test_a_quant_that_llama_quantize_would_refuse_is_refused_before_the_download() -> None:
    with pytest.raises(BadRequest, match="Q1_0 needs rows"):
        file_bytes(DEMO_TENSORS, DEMO, find_quant("Q1_0"))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.text(max_size=40), st.lists(st.integers(0, 9000), max_size=3)), max_size=20))
def test_names_and_shapes_never_seen_before_still_give_a_size(raw: list[tuple[str, list[int]]]) -> None:
    tensors = [TensorShape(name, tuple(shape), "BF16") for name, shape in raw]
    assert file_bytes(tensors, {}, find_quant("Q4_K_M")) >= 0


@pytest.mark.parametrize(
    ("dtypes", "outtype"),
    [
        ({"BF16": 100}, "bf16"),
        ({"F16": 100}, "f16"),
        ({"F32": 100}, "f32"),
        ({"BF16": 10000, "F32": 50}, "bf16"),  # norms and buffers
        ({"BF16": 900, "F32": 100}, "f32"),
        ({"BF16": 500, "F16": 500}, "f32"),
        ({"F8_E4M3": 9000, "BF16": 500, "F32": 50}, "bf16"),
        ({"F8_E4M3": 9000}, "bf16"),
        ({"F16": 100, "I64": 9000}, "f16"),
        ({"U8": 9000, "BF16": 100}, "bf16"),
        ({}, "bf16"),
    ],
)
def test_the_default_outtype_is_the_smallest_that_loses_nothing(dtypes: dict[str, int], outtype: str) -> None:
    chosen, reason = quant_outtype_for(dtypes)
    assert chosen == outtype
    assert reason.startswith("the source")


def test_the_kv_cache_of_standard_and_grouped_attention_is_exact() -> None:
    assert kv_cache_bytes(DEMO, 4096) == 30 * 2 * 3 * 64 * 4096 * 2  # 90 MiB, as llama-server reports it
    assert kv_cache_bytes(LLAMA_8B, 8192) == 1 * GIB
    assert kv_cache_bytes(LLAMA_8B, 8192, "q8_0") == GIB * 34 // 64
    assert kv_cache_bytes(LLAMA_8B, 8100) == kv_cache_bytes(LLAMA_8B, 8192)  # rounded up to 256 tokens


def test_the_kv_cache_of_falcons_multi_query_attention_has_one_head() -> None:
    falcon = {"model_type": "falcon", "n_layer": 32, "hidden_size": 4544, "n_head": 71, "multi_query": True}
    assert kv_cache_bytes(falcon, 2048) == 32 * 2 * 64 * 2048 * 2


def test_latent_attention_caches_only_the_latent_and_the_rotary_part() -> None:
    deepseek = config("deepseek_v3", 61, 7168, 128, 128, 129280, kv_lora_rank=512, qk_rope_head_dim=64)
    assert kv_cache_bytes(deepseek, 4096) == 61 * (512 + 64) * 4096 * 2


def test_layers_with_a_sliding_window_hold_the_window_and_one_batch() -> None:
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    gemma = config("gemma3_text", 6, 1024, 4, 1, 262144, head_dim=256, sliding_window=512)
    cells = 5 * (512 + 512) + 8192
    assert kv_cache_bytes(gemma | {"layer_types": kinds}, 8192) == cells * 2 * 256 * 2
    assert kv_cache_bytes(gemma, 8192) == cells * 2 * 256 * 2  # the older config says it by its model_type only


def test_recurrent_layers_need_no_kv_cache() -> None:
    assert kv_cache_bytes({"model_type": "mamba", "num_hidden_layers": 24, "hidden_size": 768}, 4096) == 0
    hybrid = config("qwen3_next", 2, 2048, 16, 2, 151936, layer_types=["linear_attention", "full_attention"])
    assert kv_cache_bytes(hybrid, 4096) == 2 * 2 * 128 * 4096 * 2


@pytest.mark.parametrize("unknown", [{}, {"model_type": "x"}, LLAMA_8B | {"num_key_value_heads": [8, 4]}])
def test_a_config_that_does_not_tell_gives_no_kv_cache_rather_than_a_wrong_one(unknown: Config) -> None:
    assert kv_cache_bytes(unknown, 4096) is None


# Peak resident bytes of llama-server, weights read and not mapped, no prompt cache: 4096 tokens, 3001 of them filled.
@pytest.mark.parametrize(("quant", "observed"), [("Q4_K_M", 295747584), ("Q8_0", 348131328), ("BF16", 426729472)])
def test_the_memory_to_serve_the_demo_model_comes_out_within_an_eighth(quant: str, observed: int) -> None:
    estimate = serve_memory_bytes(DEMO_BYTES[quant], kv_cache_bytes(DEMO, 4096), DEMO)
    assert estimate == pytest.approx(observed, rel=0.125)


def test_an_unknown_kv_cache_leaves_the_rest_of_the_memory_estimate() -> None:
    whole = serve_memory_bytes(10**9, 10**8, DEMO)
    assert whole - serve_memory_bytes(10**9, None, DEMO) == 10**8


@pytest.mark.parametrize(
    ("n", "decimal", "binary"),
    [
        (0, "0 B", "0 B"),
        (999, "999 B", "999 B"),
        (1024, "1.02 kB", "1.00 KiB"),
        (105453920, "105 MB", "101 MiB"),
        (999_950_000, "1.00 GB", "954 MiB"),
        (4_920_734_000, "4.92 GB", "4.58 GiB"),
        (16_061_072_864, "16.1 GB", "15.0 GiB"),
        (2 * 10**15, "2000 TB", "1819 TiB"),
    ],
)
def test_sizes_read_with_three_digits_in_decimal_and_in_binary_units(n: int, decimal: str, binary: str) -> None:
    assert format_bytes(n) == decimal
    assert format_bytes(n, binary=True) == binary
