"""The size of a GGUF, predicted before a byte is downloaded.

The size of a quant is computed tensor by tensor from the shapes in the safetensors headers: the Hugging Face name gives
llama.cpp's category, and `tensor_types.quant_tensor_type` the type in that category. Which tensors stay unquantized
follows `tensor_allows_quantization` of llama.cpp's `src/llama-quant.cpp` and its converter.

Weights that are quantized at the source come here unpacked (sources/quantized_source.py). Not predicted: tensors that a
converter merges, drops or pads for one architecture only.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from quantyard.formats.gguf import TensorInfo
from quantyard.formats.tensor_patterns import PatternProblem, resolve_tensor_patterns, tensor_type_for_row
from quantyard.quants.catalog import Quant, find_quant
from quantyard.quants.model_config import (
    VOCAB,
    Config,
    model_config_number,
    model_text_config,
    n_heads,
    n_kv_heads,
    n_layers,
)
from quantyard.quants.tensor_types import BLOCKS, TensorPlace, quant_tensor_type
from quantyard.records import dataclass

if TYPE_CHECKING:
    from quantyard.protocol.builder import OutType

# To support another architecture's names: extend the pattern of their category; the first match wins.
# "skip" is not in the file, "keep" stays in f32, "v" is everything that llama.cpp treats like attn_v (fused qkv too).
_NAMES = {
    r"(^|\.)(vision\w*|visual|audio\w*|image_newline|multi_modal_projector|mm_projector)\.": "skip",
    r"(_scale|_scale_inv|_scales|\.scales|zeros|g_idx|inv_freq|masked_bias|(attn|attention)\.bias|qweight)$": "skip",
    r"bias$|norm[^.]*(\.weight)?$|(^|\.)ln_|wpe|position": "keep",
    r"router|\.gate\.weight$|shared_expert_gate|conv1d|A_log|altup|laurel": "keep",
    r"(^|\.)(lm_head|embed_out)\.weight$|^output\.weight$": "output",
    r"(embed_tokens(_per_layer)?|wte|word_embeddings|tok_embeddings|embed_in|embeddings)\.weight$": "embed",
    r"(qkv_proj|query_key_value|\.c_attn|[wW]qkv|W_pack|in_proj_qkv|\.v_proj|attention\.wv)\b": "v",
    r"(\.k_proj|attention\.wk)\b": "k",
    r"(\.q_proj|attention\.wq)\b": "q",
    r"(\.o_proj|attention\.wo|(attention|self_attn)\.dense|attn\.(out|c)_proj)\b": "attn_out",
    r"(down_proj(_blocks)?|\.w2|mlp\.c_proj|\.fc2|fc_out|dense_4h_to_h)\b": "down",
    r"(\.gate_proj|\.w1)\b": "gate",
    r"(up_proj(_blocks)?|\.w3|\.c_fc|\.fc1|fc_in|dense_h_to_4h)\b": "up",
    r"": "other",
}
_NAME_PATTERNS = tuple((re.compile(pattern), category) for pattern, category in _NAMES.items())

# GPT-2 stores these as (in, out); all others store (out, in).
_TRANSPOSED = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")

_NUMBER = re.compile(r"\.\d+(?=\.)")
_LAYER = re.compile(r"\.(\d+)\.")

# Types that sources hold and the conversion keeps, and what does not quantize them again.
_KEPT_TYPES = ("MXFP4", "NVFP4")
_KEEPING = ("F32", "F16", "BF16", "COPY", "MXFP4_MOE")

# Bytes besides the tensors' data: per token its text, type and share of the merges; per tensor its header entry.
_BYTES_PER_TOKEN, _BYTES_PER_TENSOR, _BYTES_FIXED = 37, 60, 8_000

# A checkpoint's dtype counts if it holds more than this share of the weights. Below it are norms, rotary buffers and
# routers, which the converter keeps in f32 with every outtype.
_NEGLIGIBLE_SHARE = 0.01


@dataclass(frozen=True)
class TensorShape:
    """One tensor in a safetensors header: shape (rows, columns), dtype such as "BF16"."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class _Weight:
    """The properties of a tensor that decide its size; thousands of experts share a few of these."""

    category: str
    layer: int
    is_expert: bool
    count: int
    row_length: int
    fixed_type: str | None  # the same type with every quant
    stored_type: str | None = None  # quantized at the source in a type that the conversion keeps


@dataclass(frozen=True)
class SizedModel:
    """The properties of a model that decide the types and so the sizes of its tensors; see `sized_model`."""

    config: Config
    weights: Counter[_Weight]
    tied: bool
    v_layers: tuple[int, ...]  # layers with an attn_v-like tensor, in order
    copy_of: str  # tensor type that COPY leaves in place
    layers: int
    gqa: float  # query heads for each head of keys and values
    experts: int  # of a layer; 0: it is not a mixture
    falcon: bool
    seventy_b: bool  # a llama or qwen2 of 70B


def quant_gguf_bytes(model: SizedModel, quant: Quant, *, imatrix: bool | None = None) -> int:
    """Expected size of the GGUF in bytes.

    Args:
        quant: the type; BF16, F16 and F32 give the size of the converted file.
        imatrix: whether an importance matrix is used, which changes some mixtures; default: if the quant needs one.

    Raises:
        BadRequest: llama-quantize would refuse the quant for these row lengths.
    """
    given = quant.needs_imatrix if imatrix is None else imatrix
    named, stock = _told_by_recipe(model, quant), find_quant(quant.base)
    data = sum(n * _weight_bytes(weight, model, stock, named, imatrix=given) for weight, n in model.weights.items())
    vocab = model_config_number(model.config, *VOCAB) or 0
    headers = sum(1 if weight.is_expert else n for weight, n in model.weights.items())  # experts are merged
    return data + _BYTES_FIXED + _BYTES_PER_TOKEN * vocab + _BYTES_PER_TENSOR * headers


def quant_main_type(model: SizedModel, quant: Quant, *, imatrix: bool = False) -> str:
    """The tensor type that most weights of a GGUF of this quant have. It may differ from the quant's name: rows that
    are not a multiple of its block get another type.

    Raises:
        BadRequest: llama-quantize would refuse the quant for these row lengths.
    """
    return quant_type_counts(model, quant, imatrix=imatrix).most_common(1)[0][0]


def quant_type_counts(model: SizedModel, quant: Quant, *, imatrix: bool = False) -> Counter[str]:
    """Tensor type → how many weights of a GGUF of this quant have it. Raises as `quant_main_type`."""
    stock, counts = find_quant(quant.base), Counter[str]()
    named = _told_by_recipe(model, quant)
    for weight, n in model.weights.items():
        if not _is_weight_left_out(weight, model):
            counts[_weight_type_of_quant(weight, model, stock, named, imatrix=imatrix)] += n * weight.count
    return counts


def quant_rough_bytes(n_params: int, quant: Quant) -> int:
    """Rough size in bytes of a GGUF whose tensor shapes are unknown; 10 % off and more for small models."""
    return math.ceil(quant.bits_per_weight * n_params / 8)


def sized_model(tensors: Sequence[TensorShape], config: Config) -> SizedModel:
    """What decides the sizes of a model's files.

    Args:
        tensors: all tensors of the checkpoint, over all its shards.
        config: config.json; a multimodal model's `text_config` is found by itself.
    """
    text = model_text_config(config)
    weights = Counter(_sized_weight(tensor, text) for tensor in tensors)
    dtypes: Counter[str] = Counter()
    for tensor in tensors:
        dtypes[tensor.dtype] += math.prod(tensor.shape)
    heads, kv_heads, layers, model_type = n_heads(text), n_kv_heads(text), n_layers(text), text.get("model_type")
    experts = model_config_number(text, "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    return SizedModel(
        config=text,
        weights=weights,
        tied=text.get("tie_word_embeddings") is True or all(weight.category != "output" for weight in weights),
        v_layers=tuple(sorted({weight.layer for weight in weights if weight.category == "v"})),
        copy_of=quant_outtype_for(dtypes)[0].upper(),
        layers=layers,
        gqa=heads / kv_heads,
        experts=experts or 0,
        falcon=model_type in ("falcon", "RefinedWeb", "RefinedWebModel"),
        seventy_b=layers == 80 and model_type in ("llama", "qwen2") and heads != kv_heads,
    )


def _sized_weight(tensor: TensorShape, text: Config) -> _Weight:
    category, shape = _weight_category(tensor.name), tensor.shape
    count, layer = math.prod(shape), _LAYER.search(tensor.name)
    transposed = text.get("model_type") == "gpt2" and _TRANSPOSED.search(tensor.name)
    fixed_type = "F32" if category == "keep" or count == max(shape, default=1) else None
    return _Weight(
        category=category,
        layer=int(layer[1]) if layer else 0,
        is_expert=".experts." in tensor.name,
        count=count,
        row_length=shape[0 if transposed else -1] if shape else 1,
        fixed_type=fixed_type,
        stored_type=tensor.dtype if tensor.dtype in _KEPT_TYPES else None,
    )


def _weight_bytes(
    weight: _Weight, model: SizedModel, quant: Quant, named: Mapping[tuple[str, int], str], *, imatrix: bool
) -> int:
    if _is_weight_left_out(weight, model):
        return 0
    per_block, block_bytes = BLOCKS[_weight_type_of_quant(weight, model, quant, named, imatrix=imatrix)]
    return weight.count * block_bytes // per_block


def _is_weight_left_out(weight: _Weight, model: SizedModel) -> bool:
    return weight.category == "skip" or (weight.category == "output" and model.tied)


def _weight_type_of_quant(
    weight: _Weight, model: SizedModel, quant: Quant, named: Mapping[tuple[str, int], str], *, imatrix: bool
) -> str:
    kept = weight.stored_type if quant.name in _KEEPING else None
    kind = kept or weight.fixed_type or (model.copy_of if quant.name == "COPY" else None)
    if kind is not None:
        return kind
    where = "output" if weight.category == "embed" and model.tied else weight.category
    told = named.get((_weight_kind(weight), weight.layer))
    place = _weight_place(weight, model, imatrix=imatrix)
    return (told and tensor_type_for_row(told, weight.row_length)) or quant_tensor_type(
        quant, where, weight.row_length, place
    )


# Category → the GGUF's name for its tensors, as recipes know them.
_KINDS = {
    "q": "attn_q", "k": "attn_k", "v": "attn_v", "attn_out": "attn_output", "gate": "ffn_gate", "up": "ffn_up",
    "down": "ffn_down", "embed": "token_embd", "output": "output",
}  # fmt: skip


def _weight_kind(weight: _Weight) -> str:
    return _KINDS.get(weight.category, weight.category) + ("_exps" if weight.is_expert else "")


def _told_by_recipe(model: SizedModel, quant: Quant) -> dict[tuple[str, int], str]:
    """The types that a recipe sets, by kind and layer; empty without a recipe, or if its patterns cannot be resolved
    before the conversion has named the tensors.
    """
    if quant.recipe is None:
        return {}
    recipe, kinds = quant.recipe, {(_weight_kind(w), w.layer) for w in model.weights if w.fixed_type is None}
    names = {f"{k}.weight" if k in ("token_embd", "output") else f"blk.{i}.{k}.weight": (k, i) for k, i in kinds}
    if model.tied:
        names = {name: at for name, at in names.items() if name != "output.weight"}
    tensors = [TensorInfo(name, (256, 2), 0, 0, 0, Path()) for name in names]
    try:
        types = resolve_tensor_patterns(tensors, recipe.tensors, recipe.output, recipe.token_embedding)
    except PatternProblem:
        return {}
    return {names[name]: kind for name, kind in types.items()}


def _weight_place(weight: _Weight, model: SizedModel, *, imatrix: bool) -> TensorPlace:
    is_v = weight.category == "v"
    return TensorPlace(
        i=model.v_layers.index(weight.layer) if is_v else weight.layer,
        n=len(model.v_layers) if is_v else model.layers,
        gqa=model.gqa,
        experts=model.experts,
        is_expert=weight.is_expert,
        falcon=model.falcon,
        seventy_b=model.seventy_b,
        imatrix=imatrix,
    )


def _weight_category(name: str) -> str:
    return _category_of(_NUMBER.sub(".0", name))  # layers and experts share an answer


@lru_cache(maxsize=4096)
def _category_of(name: str) -> str:
    return next(category for pattern, category in _NAME_PATTERNS if pattern.search(name))


def quant_outtype_for(dtypes: Mapping[str, int]) -> tuple[OutType, str]:
    """The smallest lossless converter outtype, and the reason.

    Args:
        dtypes: safetensors dtype → number of weights. Integers and dtypes with at most 1 % of the weights are ignored.
            8-bit floats fit into bf16; only their scales are rounded.
    """
    floats = {dtype: n for dtype, n in dtypes.items() if dtype.startswith(("F", "BF"))}
    total = sum(floats.values())
    weighty = {dtype for dtype, n in floats.items() if n > _NEGLIGIBLE_SHARE * total}
    if weighty & {"F32", "F64"}:
        return "f32", "the source holds float32 weights; 16 bits would round them"
    if {"F16", "BF16"} <= weighty:
        return "f32", "the source mixes float16 and bfloat16; only f32 holds both exactly"
    if "F16" in weighty:
        return "f16", "the source is float16; bf16 would drop 3 bits of mantissa"
    if "BF16" in weighty:
        return "bf16", "the source is bfloat16"
    if weighty:
        return "bf16", "the source is 8-bit float; bf16 holds every such value, its scales are rounded"
    return "bf16", "the source does not say its float type"
