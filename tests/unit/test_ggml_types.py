"""The table of tensor types agrees with llama.cpp's own Python package."""

from __future__ import annotations

import gguf
import pytest

from builder.checks.tensors import PROMISED_TYPES
from quantyard.formats.ggml_types import TENSOR_TYPES, TYPE_BY_ID, TYPE_BY_NAME, TensorType
from quantyard.quants.catalog import QUANTS

# gguf 0.19.0 says 40 bytes; ggml-common.h, and later versions of the package, say 36. It never occurs in files.
_WRONG_THERE = {gguf.GGMLQuantizationType.Q8_1}
_SCALE_BYTES = {"f16": 2, "bf16": 2, "f32": 4, "f64": 8, "e8m0": 1, "ue4m3": 1, "iq1_m": 8}


@pytest.mark.parametrize("theirs", sorted(set(gguf.GGMLQuantizationType) - _WRONG_THERE), ids=lambda t: t.name)
def test_every_type_of_the_gguf_package_is_in_the_table_with_its_sizes(theirs: gguf.GGMLQuantizationType) -> None:
    ours = TYPE_BY_ID[theirs.value]
    assert (ours.name, (ours.block_size, ours.type_size_bytes)) == (theirs.name, gguf.GGML_QUANT_SIZES[theirs])


def test_ids_and_names_are_unique() -> None:
    assert len(TYPE_BY_ID) == len(TYPE_BY_NAME) == len(TENSOR_TYPES)


@pytest.mark.parametrize("row", TENSOR_TYPES, ids=lambda row: row.name)
def test_scales_lie_inside_the_block_and_apart(row: TensorType) -> None:
    taken = [byte for s in row.scales for byte in range(s.offset_bytes, s.offset_bytes + _SCALE_BYTES[s.kind])]
    assert len(taken) == len(set(taken))
    assert all(0 <= byte < row.type_size_bytes for byte in taken)


def test_only_integers_have_no_scale() -> None:
    assert {row.name for row in TENSOR_TYPES if not row.scales} == {"I8", "I16", "I32", "I64"}


def test_every_quant_that_can_be_asked_for_promises_a_type() -> None:
    missing = {quant.name for quant in QUANTS} - PROMISED_TYPES.keys() - {"COPY"}
    assert not missing
    assert all(name in TYPE_BY_NAME for names in PROMISED_TYPES.values() for name in names)
