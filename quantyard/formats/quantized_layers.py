"""The forms in which checkpoints store quantized layers, told by the names, types and shapes of a layer's tensors.

To recognise one more: add its words to `_PARTS` and a row to `_BY_PART`, or a rule to `quantized_layer_form`. A form
that the converter can undo also needs its bits and its shape.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final, Protocol

# The last word of a tensor's name → its part in a layer. Other words are whole tensors.
_PARTS: Final = frozenset({
    "weight", "qweight", "qzeros", "scales", "g_idx", "W_q", "zero", "scale", "SCB", "weight_format", "biases", "codes",
    "codebooks", "Qidxs", "trellis", "q_weight", "q_scale", "qscale_weight", "qscale_act", "input_scale",
    "input_global_scale", "k_scale", "v_scale", "activation_scale", "weight_packed", "weight_shape",
    "weight_zero_point", "weight_g_idx", "weight_global_scale", "weight_scale", "weight_scale_2", "weight_scale_inv",
    "weight_scales",
})  # fmt: skip
_OF_FUSED: Final = re.compile(r"^(?P<module>.+)_(?P<part>scale_inv|scale|blocks|scales)$")
_OF_BITSANDBYTES: Final = re.compile(
    r"^(?P<module>.+)\.weight\.(?P<part>absmax|quant_map|nested_absmax|nested_quant_map|quant_state)(?:\..+)?$"
)
_OF_TORCHAO: Final = re.compile(r"^(?P<module>.+)\._weight_(?P<part>qdata|scale|zero_point)$")
_INTEGERS: Final = frozenset({"I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64"})


class StoredTensor(Protocol):
    """A tensor as a safetensors header describes it."""

    @property
    def dtype(self) -> str:
        """Such as "BF16"."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Outermost dimension first."""


Parts = Mapping[str, StoredTensor]


def layers_of_tensors(tensors: Mapping[str, StoredTensor]) -> dict[str, dict[str, StoredTensor]]:
    """Layer → its parts."""
    found: dict[str, dict[str, StoredTensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        module, part = _split_layer_name(name)
        found[module][part] = tensor
    return found


def _split_layer_name(name: str) -> tuple[str, str]:
    module, dot, last = name.rpartition(".")
    if dot and last in _PARTS:
        return module, last
    for pattern in (_OF_BITSANDBYTES, _OF_TORCHAO):
        if match := pattern.match(name):
            return match["module"], match["part"] if pattern is _OF_BITSANDBYTES else f"torchao_{match['part']}"
    if match := _OF_FUSED.match(name):
        part = match["part"]
        return match["module"], f"weight_{part}" if part in ("scale_inv", "scale") else part
    return name, "whole"


# ---- kinds of quantized layers -----------------------------------------------------------------------


@dataclass(frozen=True)
class LayerFormat:
    """A form in which layers are stored."""

    scheme: str
    bits: Callable[[Parts], float]
    shape: Callable[[Parts], tuple[int, ...]]
    kept: str = ""


def gptq_bits(parts: Parts) -> float:
    zeros, scales = parts.get("qzeros"), parts["scales"]
    return 32 * zeros.shape[-1] / scales.shape[-1] if zeros and scales.shape[-1] else 4


def _gptq_shape(parts: Parts) -> tuple[int, ...]:
    packed = parts["qweight"].shape
    return (packed[-1], round(packed[0] * 32 / (gptq_bits(parts) or 4)))


@cache
def _packed_layer_form(bits: int) -> LayerFormat:
    """compressed-tensors of 32-bit words. How many bits a weight has, config.json says; the length of a row that does
    not fill its words is data, not a header.
    """
    return LayerFormat(
        "compressed-tensors", _layer_bits(bits), lambda parts: _unpacked_shape(parts["weight_packed"].shape, 32 // bits)
    )


def _unpacked_shape(shape: tuple[int, ...], per_word: int) -> tuple[int, ...]:
    return (*shape[:-1], shape[-1] * per_word)


def _two_per_byte(part: str) -> Callable[[Parts], tuple[int, ...]]:
    """Two weights to a byte."""
    return lambda parts: (*parts[part].shape[:-1], 2 * parts[part].shape[-1])


def _block_shape(parts: Parts) -> tuple[int, ...]:
    *outer, blocks, half = parts["blocks"].shape
    return (*outer, blocks * 2 * half)


def _bitnet_shape(parts: Parts) -> tuple[int, ...]:
    rows, *inner = parts["weight"].shape
    return (4 * rows, *inner)


def _layer_bits(bits: float) -> Callable[[Parts], float]:
    return lambda _: bits


def _shape_as_stored(parts: Parts) -> tuple[int, ...]:
    return max((tensor.shape for tensor in parts.values()), key=math.prod)


_GPTQ: Final = LayerFormat("GPTQ", gptq_bits, _gptq_shape)
_AWQ: Final = LayerFormat("AWQ", _layer_bits(4), _shape_as_stored)
_INT8: Final = LayerFormat("compressed-tensors INT8", _layer_bits(8), _shape_as_stored)
_FP8: Final = LayerFormat("FP8", _layer_bits(8), _shape_as_stored)
_MXFP4: Final = LayerFormat("MXFP4", _layer_bits(4), _block_shape, "MXFP4")
_MXFP4_PACKED: Final = LayerFormat("compressed-tensors MXFP4", _layer_bits(4), _two_per_byte("weight_packed"), "MXFP4")
_NVFP4_PACKED: Final = LayerFormat("compressed-tensors NVFP4", _layer_bits(4), _two_per_byte("weight_packed"), "NVFP4")
_NVFP4: Final = LayerFormat("NVFP4", _layer_bits(4), _two_per_byte("weight"), "NVFP4")
_BITNET: Final = LayerFormat("BitNet", _layer_bits(2), _bitnet_shape)
_BNB4: Final = LayerFormat("bitsandbytes", _layer_bits(4), _shape_as_stored)
_BNB8: Final = LayerFormat("bitsandbytes", _layer_bits(8), _shape_as_stored)
_MLX: Final = LayerFormat("MLX", _layer_bits(0), _shape_as_stored)
UNKNOWN: Final = LayerFormat("packed integers", _layer_bits(0), _shape_as_stored)
# Parts that only one form has. To recognise one more: add a row, and to `_PARTS` its words.
_BY_PART: Final[Mapping[str, LayerFormat]] = {
    "W_q": LayerFormat("HQQ", _layer_bits(0), _shape_as_stored), "SCB": _BNB8, "absmax": _BNB4, "quant_state": _BNB4,
    "torchao_qdata": LayerFormat("torchao", _layer_bits(0), _shape_as_stored),
    "codebooks": LayerFormat("AQLM", _layer_bits(2), _shape_as_stored),
    "Qidxs": LayerFormat("QuIP#", _layer_bits(2), _shape_as_stored),
    "trellis": LayerFormat("EXL3", _layer_bits(0), _shape_as_stored),
    "q_weight": LayerFormat("EXL2", _layer_bits(0), _shape_as_stored),
}  # fmt: skip


def quantized_layer_form(parts: Parts, said_bits: int) -> LayerFormat | None:
    """The form of one layer; None for plain weights."""
    if by_part := next((kind for part, kind in _BY_PART.items() if part in parts), None):
        return by_part
    if "qweight" in parts and "scales" in parts:
        return _GPTQ if parts["qweight"].shape[-1:] == parts["scales"].shape[-1:] else _AWQ
    if "weight_packed" in parts and "weight_scale" in parts:
        return _packed_kind(parts, said_bits)
    if "blocks" in parts and "scales" in parts and len(parts["blocks"].shape) > 2:
        return _MXFP4
    weight = parts.get("weight") or parts.get("whole")
    return _layer_form_of_weight(weight, parts) if weight is not None and len(weight.shape) > 1 else None


def _packed_kind(parts: Parts, said_bits: int) -> LayerFormat:
    if "weight_global_scale" in parts:
        return _NVFP4_PACKED
    return _MXFP4_PACKED if parts["weight_scale"].dtype in ("U8", "F8_E8M0") else _packed_layer_form(said_bits)


def _layer_form_of_weight(weight: StoredTensor, parts: Parts) -> LayerFormat | None:
    if weight.dtype.startswith("F8_"):
        return _FP8
    if weight.dtype not in _INTEGERS or "weight" not in parts:
        return None  # buffers, such as masks and positions, are integers too
    if weight.dtype == "U32" and "scales" in parts:
        return _MLX
    if weight.dtype == "U8" and "weight_scale" in parts:
        return _NVFP4 if "weight_scale_2" in parts else _BITNET
    if weight.dtype == "I8" and "weight_scale" in parts:
        return _INT8
    return UNKNOWN
