"""Tensor checks: planted NaN is found in every type, and a quantized file is held against its source."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import gguf as gguf_py
import numpy as np
import pytest

from builder.checks.tensors import compare_tensors, count_nonfinite_blocks, count_tensor_types, exceeds_f16
from quantyard.formats.ggml_types import TENSOR_TYPES, TYPE_BY_NAME, BlockScale, TensorType
from quantyard.formats.gguf import GgufHeader, read_gguf_header
from quantyard.formats.tensor_patterns import tensor_type_for_row
from tests.gguf_files import TensorSpec, gguf

_NAN = {
    "f16": b"\x00\x7e", "bf16": b"\xc0\x7f", "f32": struct.pack("<f", float("nan")),
    "f64": struct.pack("<d", float("nan")),
    "e8m0": b"\xff", "ue4m3": b"\x7f", "iq1_m": bytes((0, 0, 0, 0, 0, 0xE0, 0, 0x70)),
}  # fmt: skip
_INFINITY = {
    "f16": b"\x00\xfc", "bf16": b"\x80\xff", "f32": struct.pack("<f", float("-inf")),
    "f64": struct.pack("<d", float("inf")), "iq1_m": bytes((0, 0, 0, 0, 0, 0xC0, 0, 0x70)),
}  # fmt: skip
_LARGEST = {
    "f16": b"\xff\x7b", "bf16": b"\x7f\x7f", "f32": b"\xff\xff\x7f\x7f", "f64": b"\xff" * 6 + b"\xef\x7f",
    "e8m0": b"\xfe", "ue4m3": b"\x7e", "iq1_m": bytes((0, 0xF0, 0, 0xF0, 0, 0xB0, 0, 0x70)),
}  # fmt: skip
_PLANTED = [(row, scale) for row in TENSOR_TYPES for scale in row.scales]


def _tensor_file(folder: Path, row: TensorType, data: bytes) -> GgufHeader:
    n_blocks = len(data) // row.type_size_bytes
    path = folder / "model.gguf"
    path.write_bytes(gguf({}, [TensorSpec("t", (n_blocks * row.block_size,), row.name, data)]))
    return read_gguf_header(path)


def _count(folder: Path, row: TensorType, data: bytes) -> int:
    header = _tensor_file(folder, row, data)
    return count_nonfinite_blocks(header.paths[0], header.tensors[0])


def _plant(row: TensorType, scale: BlockScale, bits: bytes, n_blocks: int, bad: tuple[int, ...]) -> bytes:
    data = bytearray(n_blocks * row.type_size_bytes)
    for block in bad:
        start = block * row.type_size_bytes + scale.offset_bytes
        data[start : start + len(bits)] = bits
    return bytes(data)


@pytest.mark.parametrize(("row", "scale"), _PLANTED, ids=lambda x: getattr(x, "name", None) or str(x.offset_bytes))
def test_a_planted_nan_or_infinity_is_found_in_every_scale_of_every_type(
    tmp_path: Path, row: TensorType, scale: BlockScale
) -> None:
    for bits in filter(None, (_NAN[scale.kind], _INFINITY.get(scale.kind))):
        assert _count(tmp_path, row, _plant(row, scale, bits, 9, (0, 4, 8))) == 3
    assert _count(tmp_path, row, _plant(row, scale, _LARGEST[scale.kind], 9, (0, 4, 8))) == 0


@pytest.mark.parametrize("row", TENSOR_TYPES, ids=lambda row: row.name)
def test_bits_outside_the_scales_are_never_taken_for_nan(tmp_path: Path, row: TensorType) -> None:
    block = bytearray(b"\xff" * row.type_size_bytes)
    for scale in row.scales:
        block[scale.offset_bytes : scale.offset_bytes + len(_LARGEST[scale.kind])] = _LARGEST[scale.kind]
    assert _count(tmp_path, row, bytes(block) * 3) == 0


def test_a_block_with_two_bad_scales_counts_once(tmp_path: Path) -> None:
    row = TYPE_BY_NAME["Q4_K"]
    assert _count(tmp_path, row, b"\x00\x7e\x00\x7e" + bytes(140) + bytes(144)) == 1


def _quantizable() -> list[gguf_py.GGMLQuantizationType]:
    found = []
    for kind in gguf_py.GGMLQuantizationType:
        try:
            gguf_py.quantize(np.zeros((1, 256), np.float32), kind)
        except (NotImplementedError, ValueError):
            continue
        found.append(kind)
    return found


@pytest.mark.parametrize("kind", _quantizable(), ids=lambda kind: kind.name)
def test_what_the_gguf_package_quantizes_is_finite(tmp_path: Path, kind: gguf_py.GGMLQuantizationType) -> None:
    weights = np.random.default_rng(0).normal(size=(8, 512)).astype(np.float32) * 100
    data = gguf_py.quantize(weights, kind)
    assert _count(tmp_path, TYPE_BY_NAME[kind.name], data.tobytes()) == 0


def test_a_tensor_of_many_chunks_is_read_in_little_memory(tmp_path: Path) -> None:
    row = TYPE_BY_NAME["Q6_K"]
    n_blocks = 200_000  # 42 MB
    header = _tensor_file(tmp_path, row, _plant(row, row.scales[0], b"\x00\x7e", n_blocks, (0, 19_972, 199_999)))
    tracemalloc.start()
    assert count_nonfinite_blocks(header.paths[0], header.tensors[0]) == 3
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 16_000_000


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    header = _tensor_file(tmp_path, TYPE_BY_NAME["F32"], bytes(4096))
    with header.paths[0].open("r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(OSError, match="became shorter"):
        count_nonfinite_blocks(header.paths[0], header.tensors[0])


_SOURCE = (
    TensorSpec("token_embd.weight", (512, 4), "BF16"), TensorSpec("blk.0.ffn_up.weight", (512, 2), "BF16"),
    TensorSpec("blk.0.attn_q.weight", (96, 2), "BF16"), TensorSpec("output_norm.weight", (512,), "F32"),
)  # fmt: skip


def _compare(folder: Path, after: Mapping[str, TensorSpec | None], quant: str = "Q4_K_M") -> list[str]:
    """Compare the source with a Q4_K_M of it in which some tensors are replaced, or left out (None)."""
    types = {"token_embd.weight": "Q6_K", "blk.0.ffn_up.weight": "Q4_K", "blk.0.attn_q.weight": "Q5_0"}
    quantized = {s.name: TensorSpec(s.name, s.shape, types.get(s.name, s.type_name)) for s in _SOURCE}
    quantized_or_none: dict[str, TensorSpec | None] = {**quantized, **after}
    headers = []
    for name, tensors in (("source", list(_SOURCE)), ("quantized", [t for t in quantized_or_none.values() if t])):
        path = folder / f"{name}.gguf"
        path.write_bytes(gguf({}, tensors))
        headers.append(read_gguf_header(path))
    return compare_tensors(headers[0], headers[1], quant)


def test_a_proper_quantization_has_no_differences(tmp_path: Path) -> None:
    assert _compare(tmp_path, {}) == []


def test_a_file_compared_with_itself_has_no_differences(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf({}, _SOURCE))
    assert compare_tensors(read_gguf_header(path), read_gguf_header(path), "BF16") == []


def test_trailing_ones_in_a_shape_do_not_matter(tmp_path: Path) -> None:
    assert _compare(tmp_path, {"output_norm.weight": TensorSpec("output_norm.weight", (512, 1, 1))}) == []


@pytest.mark.parametrize(
    ("tensor", "sentence"),
    [
        (TensorSpec("blk.0.ffn_up.weight", (2, 512), "F16"), "Tensor blk.0.ffn_up.weight has the shape (2, 512)"),
        (TensorSpec("output_norm.weight", (512,), "F16"), "Tensor output_norm.weight is F16, its source F32"),
        (TensorSpec("blk.0.attn_q.weight", (96, 2), "F32"), "Tensor blk.0.attn_q.weight is F32, wider"),
        (TensorSpec("new.weight", (4,), "F32"), "not in the source"),
    ],
)
def test_each_difference_is_a_sentence(tmp_path: Path, tensor: TensorSpec, sentence: str) -> None:
    (found,) = _compare(tmp_path, {tensor.name: tensor})
    assert sentence in found


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    assert _compare(tmp_path, {"blk.0.attn_q.weight": None}) == [
        "1 tensors are missing from the quantized file: blk.0.attn_q.weight."
    ]


def test_a_quant_that_does_not_keep_its_promise_is_named(tmp_path: Path) -> None:
    (found,) = _compare(tmp_path, {}, quant="Q3_K_M")
    assert "Q3_K_M promises (Q3_K)" in found
    assert "Q4_K" in found


def test_rows_that_are_not_whole_blocks_may_have_the_fallback_type(tmp_path: Path) -> None:
    small = {"blk.0.ffn_up.weight": TensorSpec("blk.0.ffn_up.weight", (512, 2), "Q6_K")}
    assert _compare(tmp_path, small) == [], "blk.0.attn_q has rows of 96, for which Q4_K falls back to Q5_0"


@pytest.mark.parametrize(
    ("promised", "row_length", "expected"),
    [("Q4_K", 512, "Q4_K"), ("Q4_K", 576, "Q5_0"), ("Q6_K", 96, "Q8_0"), ("IQ2_XS", 96, "IQ4_NL"), ("Q2_K", 33, "F16"),
     ("Q8_0", 33, "F16"), ("F16", 33, "F16")],
)  # fmt: skip
def test_the_fallback_is_llama_cpps(promised: str, row_length: int, expected: str) -> None:
    assert tensor_type_for_row(promised, row_length) == expected


def test_types_are_counted_the_most_frequent_first(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf({}, _SOURCE))
    assert count_tensor_types(read_gguf_header(path).tensors) == {"BF16": 3, "F32": 1}


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("F32", 65504.0, False), ("F32", 65505.0, True), ("F32", -70000.0, True), ("F32", 0.0, False),
        ("BF16", 65280.0, False), ("BF16", 65536.0, True), ("BF16", -1e30, True), ("F16", 65504.0, False),
        ("Q8_0", 0.0, False),
    ],
)  # fmt: skip
def test_values_beyond_half_precision_are_found(tmp_path: Path, kind: str, value: float, expected: bool) -> None:
    layout = {"F32": np.float32, "F16": np.float16}.get(kind)
    data = np.full(64, value, layout or np.float32)
    raw = (data.view(np.uint32) >> 16).astype("<u2").tobytes() if kind == "BF16" else data.tobytes()
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf({}, [TensorSpec("t", (64,), kind, raw if kind != "Q8_0" else None)]))
    assert exceeds_f16(read_gguf_header(path).tensors[0]) == expected
