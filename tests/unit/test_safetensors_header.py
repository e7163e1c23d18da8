"""The safetensors reader: right about good files, clear about damaged ones."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builder.checks.nonfinite import find_nonfinite_tensors
from quantyard.formats.safetensors import (
    SafetensorsError,
    read_safetensors_file,
    read_safetensors_folder,
    safetensors_dtype,
)

_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "F8_E4M3": 1, "F64": 8}


def _entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def _raw(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _file(tensors: Mapping[str, tuple[str, list[int]]]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        size = int(np.prod(shape)) * _ITEM_BYTES[dtype]
        header[name] = _entry(dtype, shape, end, end + size)
        end += size
    return _raw(header, bytes(end))


SMALL = _file({"w": ("BF16", [4, 8]), "b": ("F32", [8]), "empty": ("F32", [0, 3])})


def _write(folder: Path, data: bytes, name: str = "model.safetensors") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def test_a_good_file_is_read(tmp_path: Path) -> None:
    path = _write(tmp_path, SMALL)
    (file,) = read_safetensors_folder(tmp_path)
    assert (file.path, file.size, set(file.tensors)) == (path, len(SMALL), {"w", "b", "empty"})
    assert (file.tensors["w"].dtype, file.tensors["w"].shape) == ("BF16", (4, 8))
    assert file.tensors["b"].end == len(SMALL)


BAD = {
    "empty": (b"", "truncated"),
    "seven bytes": (bytes(7), "truncated"),
    "a header past the end": (struct.pack("<Q", 1 << 40) + b"{}", "truncated"),
    "a header of 200 MB": (struct.pack("<Q", 200_000_000), "truncated"),
    "no JSON": (_raw(b"{nope", b""), "not JSON"),
    "not UTF-8": (_raw(b'{"\xff": 1}', b""), "not UTF-8"),
    "deep JSON": (_raw(b"[" * 100_000, b""), "nested too deeply"),
    "a number of 5000 digits": (_raw(b'{"a":' + b"9" * 5000 + b"}", b""), "5,000 digits"),
    "a list": (_raw([], b""), "not a JSON object"),
    "a name twice": (_raw(b'{"a":{},"a":{}}', b""), "'a' is repeated"),
    "an entry that is a number": (_raw({"a": 3}, b""), "not a JSON object"),
    "an unknown dtype": (_raw({"a": _entry("F99", [1], 0, 4)}, bytes(4)), "unknown dtype 'F99'"),
    "a dtype that is a list": (_raw({"a": _entry([], [1], 0, 4)}, bytes(4)), "unknown dtype"),  # type: ignore[arg-type]
    "a negative shape": (_raw({"a": _entry("F32", [-1], 0, 4)}, bytes(4)), "shape [-1]"),
    "a true shape": (_raw({"a": _entry("F32", [True], 0, 4)}, bytes(4)), "shape [True]"),
    "a huge shape": (_raw({"a": _entry("F32", [1 << 62] * 50, 0, 4)}, bytes(4)), "takes"),
    "three offsets": (_raw({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, bytes(4)), "data_offsets"),
    "a shape that does not fit": (_raw({"a": _entry("F32", [2], 0, 4)}, bytes(4)), "takes 8 bytes"),
    "backward offsets": (_raw({"a": _entry("F32", [1], 4, 0)}, bytes(4)), "takes 4 bytes"),
    "a gap": (_raw({"a": _entry("F32", [1], 0, 4), "b": _entry("F32", [1], 8, 12)}, bytes(12)), "leaves a gap"),
    "an overlap": (_raw({"a": _entry("F32", [2], 0, 8), "b": _entry("F32", [1], 4, 8)}, bytes(8)), "overlaps"),
    "a gap at the start": (_raw({"a": _entry("F32", [1], 4, 8)}, bytes(8)), "leaves a gap"),
    "one byte short": (SMALL[:-1], "truncated"),
    "one byte more": (SMALL + b"\0", "too long"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_by_name_and_reason(tmp_path: Path, name: str) -> None:
    data, reason = BAD[name]
    path = _write(tmp_path, data)
    with pytest.raises(SafetensorsError) as caught:
        read_safetensors_file(path)
    assert reason in str(caught.value)
    assert str(caught.value).startswith("model.safetensors ")


def test_an_oversized_header_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = _write(tmp_path, struct.pack("<Q", 100_000_001))
    with path.open("r+b") as stream:
        stream.truncate(200_000_000)  # sparse
    with pytest.raises(SafetensorsError, match="header of 100000001 bytes"):
        read_safetensors_file(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, len(SMALL) - 1), byte=st.integers(0, 255))
def test_a_flipped_byte_leads_to_a_file_or_an_error_and_nothing_else(tmp_path: Path, position: int, byte: int) -> None:
    path = _write(tmp_path, SMALL[:position] + bytes([byte]) + SMALL[position + 1 :])
    with contextlib.suppress(SafetensorsError):
        read_safetensors_file(path)


def _sharded(folder: Path, weight_map: Mapping[str, str]) -> None:
    _write(folder, _file({"a": ("BF16", [2, 2])}), "model-00001-of-00002.safetensors")
    _write(folder, _file({"b": ("BF16", [2, 2])}), "model-00002-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


_FIRST, _SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def test_shards_that_agree_with_their_index_are_read(tmp_path: Path) -> None:
    _sharded(tmp_path, {"a": _FIRST, "b": _SECOND})
    assert [list(file.tensors) for file in read_safetensors_folder(tmp_path)] == [["a"], ["b"]]


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    _sharded(tmp_path, {"a": _FIRST, "b": _SECOND})
    (tmp_path / _SECOND).unlink()
    with pytest.raises(SafetensorsError, match=f"{_SECOND} is missing"):
        read_safetensors_folder(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "reason"),
    [
        ({"a": _SECOND, "b": _FIRST}, "lacks the tensor 'a'"),
        ({"a": _FIRST, "b": _SECOND, "c": _SECOND}, "lacks the tensor 'c'"),
        ({"a": _FIRST, "b": "../b.safetensors"}, "not a file of this folder"),
        ({"a": _FIRST, "b": 3}, "not a file of this folder"),
        ({}, "no weight_map"),
    ],
)
def test_an_index_that_disagrees_is_refused(tmp_path: Path, weight_map: dict[str, str], reason: str) -> None:
    _sharded(tmp_path, weight_map)
    with pytest.raises(SafetensorsError, match=reason):
        read_safetensors_folder(tmp_path)


def test_a_tensor_the_index_does_not_name_is_refused(tmp_path: Path) -> None:
    _sharded(tmp_path, {"a": _FIRST, "b": _SECOND})
    _write(tmp_path, _file({"b": ("BF16", [2, 2]), "extra": ("F32", [1])}), _SECOND)
    with pytest.raises(SafetensorsError, match="'extra'"):
        read_safetensors_folder(tmp_path)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, SMALL, "one.safetensors")
    _write(tmp_path, SMALL, "two.safetensors")
    with pytest.raises(SafetensorsError, match=r"two\.safetensors repeats the tensor 'w' of one\.safetensors"):
        read_safetensors_folder(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SafetensorsError, match="holds no"):
        read_safetensors_folder(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "dtype"),
    [
        ({"w": ("BF16", [8, 8])}, "BF16"),
        ({"w": ("F16", [8, 8])}, "F16"),
        ({"w": ("F32", [8, 8])}, "F32"),
        ({"w": ("F64", [8, 8])}, "F32"),
        ({"w": ("BF16", [8, 8]), "v": ("F16", [8, 8])}, "F32"),
        ({"w": ("BF16", [8, 8]), "head": ("F32", [8, 8])}, "F32"),
        ({"w": ("BF16", [8, 8]), "norm": ("F32", [64])}, "BF16"),
        ({"w": ("BF16", [100, 100]), "router": ("F32", [10, 9])}, "BF16"),
        ({"w": ("BF16", [100, 100]), "small": ("F16", [10, 9])}, "F32"),
        ({"w": ("F8_E4M3", [8, 8])}, "BF16"),
        ({"w": ("I32", [8, 8])}, "F32"),
        ({"norm": ("F16", [8])}, "F32"),
    ],
)
def test_the_source_dtype_is_the_narrowest_that_loses_nothing(
    tmp_path: Path, tensors: dict[str, tuple[str, list[int]]], dtype: str
) -> None:
    _write(tmp_path, _file(tensors))
    assert safetensors_dtype(read_safetensors_folder(tmp_path)) == dtype


@pytest.mark.parametrize(
    ("dtype", "bits"), [("F32", "<I"), ("F16", "<H"), ("BF16", "<H"), ("F64", "<Q")], ids=["F32", "F16", "BF16", "F64"]
)
def test_nan_and_infinity_are_found_by_tensor_name(tmp_path: Path, dtype: str, bits: str) -> None:
    nan = {"F32": 0x7FC00000, "F16": 0xFE00, "BF16": 0x7FC0, "F64": 0x7FF8 << 48}[dtype]
    infinity = {"F32": 0xFF800000, "F16": 0x7C00, "BF16": 0xFF80, "F64": 0x7FF0 << 48}[dtype]
    data = bytearray(_file({"good": (dtype, [3, 5]), "nan": (dtype, [3, 5]), "inf": (dtype, [3, 5])}))
    file = read_safetensors_file(_write(tmp_path, bytes(data)))
    struct.pack_into(bits, data, file.tensors["nan"].end - _ITEM_BYTES[dtype], nan)
    struct.pack_into(bits, data, file.tensors["inf"].start, infinity)
    _write(tmp_path, bytes(data))
    assert find_nonfinite_tensors([file]) == ["nan", "inf"]
