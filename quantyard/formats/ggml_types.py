"""The tensor types of ggml: block layout, and which bytes of a block must be finite numbers.

A tensor is a run of blocks; a block holds `block_size` weights in `type_size_bytes` bytes. Whatever the bits
of the weights are, they are valid; only the scales of a block can be NaN or infinite, and one such scale
turns the whole block, and then the whole model, into NaN.

Source: ggml/include/ggml.h (`ggml_type`), ggml/src/ggml-common.h (the blocks) and
`ggml_validate_row_data` in ggml/src/ggml-quants.c, all of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

ScaleKind = Literal["f16", "bf16", "f32", "f64", "e8m0", "ue4m3", "iq1_m"]


@dataclass(frozen=True)
class BlockScale:
    """One number of a block that must be finite.

    Kinds beside the IEEE ones: `e8m0` is a power of two in a byte (0xFF is NaN); `ue4m3` an 8-bit float
    (0x7F is NaN to the format's standard and to GPUs; ggml reads it as 0 and never writes it);
    `iq1_m` an f16 spread over the top four bits of four 16-bit words.
    """

    kind: ScaleKind
    offset_bytes: int


@dataclass(frozen=True)
class TensorType:
    """One ggml type. `block_size` is in weights, `type_size_bytes` in bytes per block."""

    id: int
    name: str
    block_size: int
    type_size_bytes: int
    scales: tuple[BlockScale, ...] = ()

    @property
    def is_quantized(self) -> bool:
        """Whether weights share a scale (ggml's own definition: more than one weight a block)."""
        return self.block_size > 1

    @property
    def bits_per_weight(self) -> float:
        """Bits one weight takes, scales included."""
        return 8 * self.type_size_bytes / self.block_size


def _f16_block_scales(*offsets_bytes: int) -> tuple[BlockScale, ...]:
    return tuple(BlockScale("f16", offset) for offset in offsets_bytes)


# To add a type: add a row with its number from `enum ggml_type`, its name without the prefix, the two sizes,
# and the offset of each scale in its block (the struct `block_…` gives the order of the fields).
# tests/unit/test_ggml_types.py compares the rows with the gguf package. Numbers left out were removed from GGUF.
TENSOR_TYPES: Final[tuple[TensorType, ...]] = (
    TensorType(0, "F32", 1, 4, (BlockScale("f32", 0),)),
    TensorType(1, "F16", 1, 2, _f16_block_scales(0)),
    TensorType(2, "Q4_0", 32, 18, _f16_block_scales(0)),
    TensorType(3, "Q4_1", 32, 20, _f16_block_scales(0, 2)),
    TensorType(6, "Q5_0", 32, 22, _f16_block_scales(0)),
    TensorType(7, "Q5_1", 32, 24, _f16_block_scales(0, 2)),
    TensorType(8, "Q8_0", 32, 34, _f16_block_scales(0)),
    TensorType(9, "Q8_1", 32, 36, _f16_block_scales(0, 2)),
    TensorType(10, "Q2_K", 256, 84, _f16_block_scales(80, 82)),
    TensorType(11, "Q3_K", 256, 110, _f16_block_scales(108)),
    TensorType(12, "Q4_K", 256, 144, _f16_block_scales(0, 2)),
    TensorType(13, "Q5_K", 256, 176, _f16_block_scales(0, 2)),
    TensorType(14, "Q6_K", 256, 210, _f16_block_scales(208)),
    TensorType(15, "Q8_K", 256, 292, (BlockScale("f32", 0),)),
    TensorType(16, "IQ2_XXS", 256, 66, _f16_block_scales(0)),
    TensorType(17, "IQ2_XS", 256, 74, _f16_block_scales(0)),
    TensorType(18, "IQ3_XXS", 256, 98, _f16_block_scales(0)),
    TensorType(19, "IQ1_S", 256, 50, _f16_block_scales(0)),
    TensorType(20, "IQ4_NL", 32, 18, _f16_block_scales(0)),
    TensorType(21, "IQ3_S", 256, 110, _f16_block_scales(0)),
    TensorType(22, "IQ2_S", 256, 82, _f16_block_scales(0)),
    TensorType(23, "IQ4_XS", 256, 136, _f16_block_scales(0)),
    TensorType(24, "I8", 1, 1),
    TensorType(25, "I16", 1, 2),
    TensorType(26, "I32", 1, 4),
    TensorType(27, "I64", 1, 8),
    TensorType(28, "F64", 1, 8, (BlockScale("f64", 0),)),
    TensorType(29, "IQ1_M", 256, 56, (BlockScale("iq1_m", 48),)),
    TensorType(30, "BF16", 1, 2, (BlockScale("bf16", 0),)),
    TensorType(34, "TQ1_0", 256, 54, _f16_block_scales(52)),
    TensorType(35, "TQ2_0", 256, 66, _f16_block_scales(64)),
    TensorType(39, "MXFP4", 32, 17, (BlockScale("e8m0", 0),)),
    TensorType(40, "NVFP4", 64, 36, tuple(BlockScale("ue4m3", offset) for offset in range(4))),
    TensorType(41, "Q1_0", 128, 18, _f16_block_scales(0)),
    TensorType(42, "Q2_0", 64, 18, _f16_block_scales(0)),
)

TYPE_BY_ID: Final[dict[int, TensorType]] = {row.id: row for row in TENSOR_TYPES}
TYPE_BY_NAME: Final[dict[str, TensorType]] = {row.name: row for row in TENSOR_TYPES}

# What llama-quantize takes in place of a type whose block does not divide the row (`tensor_type_fallback`,
# src/llama-quant.cpp). Where that does not fit either: F16.
FALLBACKS: Final[dict[str, str]] = {
    "Q6_K": "Q8_0", "Q5_K": "Q5_1", "Q4_K": "Q5_0", "IQ4_XS": "IQ4_NL",
    **dict.fromkeys(("Q3_K", "Q2_K", "Q2_0", "TQ1_0", "TQ2_0"), "Q4_0"),
    **dict.fromkeys(("IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"), "IQ4_NL"),
}  # fmt: skip
