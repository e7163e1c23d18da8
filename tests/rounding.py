"""A model whose rounding errors are known by another road than ggml: the package `gguf`, which quantizes with numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import gguf as gguf_py
import numpy as np
import pytest

from builder.llama.ggml_rows import Floats
from quantyard.tune.type_errors import LADDER
from tests.gguf_files import SMALL_METADATA, TensorSpec, gguf

SEED: Final = 23
NONE: Final = 1e-8  # an error below it is that of 32 bits
KNOWN: Final = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")  # what the package can quantize to
NORMAL: Final = "blk.0.ffn_up.weight"
NARROW: Final = "blk.0.attn_q.weight"
ON_GRID: Final = "blk.0.ffn_down.weight"
NOTHING: Final = "blk.0.attn_v.weight"


def _drawn(rows: int, length: int) -> Floats:
    return np.random.default_rng([SEED, rows, length]).standard_normal((rows, length)).astype(np.float32)


def _on_grid() -> Floats:
    """Weights that Q4_1 keeps: sixteen levels a block, their distance a power of two, both ends in use."""
    rng = np.random.default_rng(SEED)
    levels = rng.integers(0, 16, (64, 8, 32))
    levels[..., 0], levels[..., 1] = 0, 15
    step = np.exp2(rng.integers(-8, -4, (64, 8, 1)))
    return ((levels - 8) * step).astype(np.float32).reshape(64, 256)


def weights() -> dict[str, Floats]:
    """The model's tensors as they are once read."""
    half = _drawn(40, 96).astype(np.float16).astype(np.float32)
    brain = (_drawn(64, 512).view(np.uint32) & 0xFFFF0000).view(np.float32)
    return {NORMAL: brain, NARROW: half, ON_GRID: _on_grid(), NOTHING: np.zeros((8, 256), np.float32)}


def write_model(path: Path) -> None:
    """The model: a tensor in each unquantized type, one of them all zeros, and a norm that no search touches."""
    found = weights()
    brain = (found[NORMAL].view(np.uint32) >> 16).astype(np.uint16)
    stored = {
        NORMAL: ("BF16", brain.tobytes()), NARROW: ("F16", found[NARROW].astype(np.float16).tobytes()),
        ON_GRID: ("F32", found[ON_GRID].tobytes()), NOTHING: ("F32", found[NOTHING].tobytes()),
    }  # fmt: skip
    tensors = [TensorSpec(name, found[name].shape[::-1], kind, data) for name, (kind, data) in stored.items()]
    path.write_bytes(gguf(SMALL_METADATA, [*tensors, TensorSpec("blk.0.attn_norm.weight", (256,))]))


def reference_error(name: str, kind: str) -> float:
    """The squared error of a tensor at a type, as a share of its squares, by the package."""
    type_ = gguf_py.GGMLQuantizationType[kind]
    original = weights()[name].astype(np.float64)
    read = gguf_py.dequantize(gguf_py.quantize(original.astype(np.float32), type_), type_)
    return float(np.square(read - original).sum() / np.square(original).sum())


def check_errors(found: dict[str, dict[str, float]]) -> None:
    """Hold what the stage wrote against what is known of this model."""
    assert found.keys() == weights().keys()
    assert set(found[NORMAL]) == set(found[ON_GRID]) == set(LADDER)
    assert set(found[NARROW]) == {"Q4_0", "Q4_1", "IQ4_NL", "Q5_0", "Q5_1", "Q8_0"}  # what its rows can have
    for name in (NORMAL, NARROW):
        for kind in KNOWN:
            assert found[name][kind] == pytest.approx(reference_error(name, kind), rel=1e-3), (name, kind)
    more_bits = [found[NORMAL][kind] for kind in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")]
    assert more_bits == sorted(more_bits, reverse=True) and more_bits[0] < 0.2
    assert found[ON_GRID]["Q4_1"] < NONE < found[ON_GRID]["Q5_K"]  # fewer bits, and next to no error
    assert 0 < max(found[NOTHING].values()) < NONE
