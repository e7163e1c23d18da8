"""The tensor types in each quant: llama.cpp's mixtures, as one table of rules.

From `src/llama-quant.cpp`: llama_ftype_get_default_type, llama_tensor_get_type_impl, tensor_type_fallback. The
predicted file sizes depend on it; `tests/unit/test_estimate.py` compares them with files made by llama-quantize.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from quantyard.errors import BadRequest
from quantyard.formats.ggml_types import FALLBACKS, TENSOR_TYPES
from quantyard.quants.catalog import LIST_THEM, QUANTS, UNQUANTIZED, Quant
from quantyard.records import dataclass

# Type → (weights per block, bytes per block).
BLOCKS: dict[str, tuple[int, int]] = {kind.name: (kind.block_size, kind.type_size_bytes) for kind in TENSOR_TYPES}

# To add a quant whose name is not its base tensor type: add it here.
BASE_TYPES = {
    "IQ3_XS": "IQ3_S", "IQ3_M": "IQ3_S", "IQ2_S": "IQ2_XS", "IQ2_M": "IQ2_S", "MXFP4_MOE": "MXFP4",
    "Q2_K_S": "Q2_K", "Q3_K_S": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_L": "Q3_K",
    "Q4_K_S": "Q4_K", "Q4_K_M": "Q4_K", "Q5_K_S": "Q5_K", "Q5_K_M": "Q5_K",
}  # fmt: skip


@dataclass(frozen=True)
class TensorPlace:
    """The position of a tensor, the `i`-th of `n` of its kind, and the properties of its model."""

    i: int
    n: int
    gqa: float = 1.0  # query heads per key/value head
    experts: int = 0  # in the model
    is_expert: bool = False  # this tensor
    falcon: bool = False
    seventy_b: bool = False  # llama.cpp's LLM_TYPE_70B
    imatrix: bool = False  # whether an importance matrix is used


Holds = Callable[[TensorPlace], bool]


def _in_first_tensors(part: int) -> Holds:
    return lambda p: p.i < p.n // part


def _uses_more_bits(p: TensorPlace) -> bool:
    """llama.cpp's use_more_bits: the first and last eighth of the layers, and every third between."""
    return p.i < p.n // 8 or p.i >= 7 * p.n // 8 or (p.i - p.n // 8) % 3 == 2


def _at_every_tensor(_: TensorPlace) -> bool:
    return True


def _has_gqa_of_4(p: TensorPlace) -> bool:
    return p.gqa >= 4


def _has_eight_experts(p: TensorPlace) -> bool:
    return p.experts == 8


def _is_plain_architecture(p: TensorPlace) -> bool:
    return not p.falcon and p.experts != 8


def _is_in_middle_layers(p: TensorPlace) -> bool:
    return p.n // 8 <= p.i < 7 * p.n // 8


LOW = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ1_S", "IQ1_M")  # these have rules of their own
NOT_LOW = tuple(quant.name for quant in QUANTS if quant.name not in LOW)

# To follow a change of llama.cpp's mixtures: change the rows. (quants, category, condition, type): the first row for a
# quant and category whose condition holds decides; without one, the tensor gets the quant's base type.
RULES: tuple[tuple[tuple[str, ...], str, Holds, str], ...] = (
    (("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"), "embed", _at_every_tensor, "Q2_K"),
    (("IQ2_S", "IQ2_M", "IQ3_XXS"), "embed", _at_every_tensor, "IQ3_S"),
    (("TQ1_0", "TQ2_0", "Q2_0"), "embed", _at_every_tensor, "Q4_K"),
    (LOW, "v", lambda p: p.gqa >= 4 or p.experts >= 4, "Q4_K"),
    (("IQ2_S", "IQ2_M"), "v", _at_every_tensor, "IQ3_S"),
    (LOW, "v", _at_every_tensor, "Q2_K"),
    (LOW, "k", _has_eight_experts, "Q4_K"),
    (("IQ2_S", "IQ2_M"), "down", _in_first_tensors(8), "IQ3_S"),
    (LOW, "down", _in_first_tensors(8), "Q2_K"),
    (LOW, "attn_out", _has_eight_experts, "Q5_K"),
    (("IQ1_S", "IQ1_M"), "attn_out", _at_every_tensor, "IQ2_XXS"),
    (("IQ2_S", "IQ2_M"), "attn_out", _at_every_tensor, "IQ3_S"),
    (NOT_LOW, "v", _has_eight_experts, "Q8_0"),
    (("Q2_K", "Q2_K_S", "IQ3_XXS", "IQ3_XS", "IQ3_S"), "v", _has_gqa_of_4, "Q4_K"),
    (("Q2_K",), "v", _at_every_tensor, "Q3_K"),
    (("IQ3_XXS",), "v", lambda p: not p.imatrix, "IQ3_S"),
    (("Q3_K_M",), "v", lambda p: p.i < 2, "Q5_K"),
    (("Q3_K_M", "IQ3_M"), "v", _at_every_tensor, "Q4_K"),
    (("Q3_K_L",), "v", _at_every_tensor, "Q5_K"),
    (("IQ4_NL", "IQ4_XS"), "v", _has_gqa_of_4, "Q5_K"),
    (("Q4_K_M", "Q5_K_M"), "v", _uses_more_bits, "Q6_K"),
    (("Q4_K_S",), "v", lambda p: p.i < 4, "Q5_K"),
    (NOT_LOW, "k", _has_eight_experts, "Q8_0"),
    (("IQ3_XS",), "k", _at_every_tensor, "IQ3_XXS"),
    (("IQ3_XXS",), "k", _at_every_tensor, "IQ2_S"),
    (("IQ3_XS",), "q", _at_every_tensor, "IQ3_XXS"),
    (("IQ3_XXS",), "q", _at_every_tensor, "IQ2_S"),
    (("Q2_K",), "down", _at_every_tensor, "Q3_K"),
    (("Q2_K_S",), "down", _in_first_tensors(8), "Q4_K"),
    (("IQ3_XXS",), "down", lambda p: not p.imatrix and _in_first_tensors(8)(p), "Q4_K"),
    (("IQ3_XXS",), "down", lambda p: not p.imatrix, "Q3_K"),
    (("Q3_K_M",), "down", _in_first_tensors(16), "Q5_K"),
    (("Q3_K_M",), "down", lambda p: not p.falcon or _uses_more_bits(p), "Q4_K"),
    (("IQ3_M",), "down", lambda p: _in_first_tensors(8)(p) or (_has_eight_experts(p) and _uses_more_bits(p)), "Q4_K"),
    (("Q3_K_L",), "down", lambda p: p.falcon, "Q4_K"),
    (("Q3_K_L",), "down", _at_every_tensor, "Q5_K"),
    (("Q4_K_M",), "down", lambda p: _in_first_tensors(16)(p) if p.falcon else _uses_more_bits(p), "Q6_K"),
    (("Q4_K_M",), "down", lambda p: p.falcon and _uses_more_bits(p), "Q5_K"),
    (("IQ4_NL", "IQ4_XS"), "down", lambda p: not p.imatrix and _in_first_tensors(8)(p), "Q5_K"),
    (("Q5_K_M",), "down", _uses_more_bits, "Q6_K"),
    (("Q4_K_S",), "down", lambda p: not p.falcon and _in_first_tensors(8)(p), "Q5_K"),
    (("Q4_0",), "down", lambda p: p.imatrix and _in_first_tensors(8)(p), "Q4_1"),
    (("Q5_0",), "down", lambda p: p.imatrix and _in_first_tensors(8)(p), "Q5_1"),
    (("Q3_K_L",), "attn_out", lambda p: p.falcon, "Q4_K"),
    (("Q2_K", "IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M", "Q3_K_S", "Q3_K_M"), "attn_out", _has_eight_experts, "Q5_K"),
    (("IQ4_NL", "IQ4_XS", "Q4_K_S", "Q4_K_M"), "attn_out", _has_eight_experts, "Q5_K"),
    (("Q2_K",), "attn_out", _is_plain_architecture, "Q3_K"),
    (("IQ3_XXS",), "attn_out", _is_plain_architecture, "IQ3_S"),
    (("Q3_K_M", "IQ3_M"), "attn_out", _is_plain_architecture, "Q4_K"),
    (("Q3_K_L",), "attn_out", _is_plain_architecture, "Q5_K"),
    (("IQ3_XS",), "gate", _is_in_middle_layers, "IQ3_XXS"),
    (("IQ3_XS",), "up", _is_in_middle_layers, "IQ3_XXS"),
)


def quant_tensor_type(quant: Quant, category: str, row_length: int, place: TensorPlace) -> str:
    """The ggml type (a key of BLOCKS) that llama-quantize gives a weight with two or more dimensions.

    `category` is one of embed, output, v, k, q, attn_out, gate, up, down, other; fused qkv counts as v, and
    tied embeddings as output. COPY has no type of its own: the caller decides.

    Raises:
        BadRequest: llama-quantize would refuse this row length (Q1_0 has no fallback type).
    """
    base = BASE_TYPES.get(quant.name, quant.name)
    if base in UNQUANTIZED:
        return base
    if category == "output":
        wanted = _output_type(quant.name, base, row_length, place)
    elif base == "MXFP4":
        wanted = "MXFP4" if place.is_expert else "Q8_0"
    else:
        wanted = _mixed_type(quant.name, base, category, place)
    return _type_fitting_row(wanted, row_length)


@cache
def _rules_of(name: str, category: str) -> tuple[tuple[Holds, str], ...]:
    return tuple((holds, kind) for names, where, holds, kind in RULES if where == category and name in names)


def _mixed_type(name: str, base: str, category: str, place: TensorPlace) -> str:
    kind = next((kind for holds, kind in _rules_of(name, category) if holds(place)), base)
    if category == "v" and place.seventy_b and name in NOT_LOW and kind in ("Q3_K", "Q4_K"):
        return "Q5_K"
    return kind


def _output_type(name: str, base: str, row_length: int, place: TensorPlace) -> str:
    if name in ("MXFP4_MOE", "Q8_0") or place.falcon or row_length % BLOCKS[base][0]:
        return "Q8_0"
    return "Q5_K" if name in LOW or name == "IQ3_XXS" else "Q6_K"


def _type_fitting_row(kind: str, row_length: int) -> str:
    if row_length % BLOCKS[kind][0] == 0:
        return kind
    if kind not in FALLBACKS and BLOCKS[kind][0] > 32:
        fact = f"{kind} needs rows of a multiple of {BLOCKS[kind][0]} weights; this model has rows of {row_length}."
        raise BadRequest(fact, hint=f"Choose another quant. {LIST_THEM}")
    fallback = FALLBACKS.get(kind, kind)
    return fallback if row_length % BLOCKS[fallback][0] == 0 else "F16"
