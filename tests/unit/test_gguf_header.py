"""The GGUF reader: right about good files, quick and clear about bad ones."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf as gguf_py
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from quantyard.formats.gguf import GgufArray, GgufError, read_gguf_beginning, read_gguf_header, read_gguf_model
from tests.gguf_files import SMALL, SMALL_TENSORS, TensorSpec, gguf, preamble, string, tensor_info, value

Write = Callable[[bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(data: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(data)
        return path

    return write_file


def test_a_small_file_is_read_whole(write: Write) -> None:
    header = read_gguf_header(write(SMALL))
    assert (header.version, header.architecture, header.file_type, header.context_length) == (3, "llama", 15, 2048)
    assert header.chat_template == "{{ messages }}"
    assert header.metadata["flag"] is True
    assert header.metadata["scale"] == 0.5
    assert [(t.name, t.shape, t.type.name) for t in header.tensors] == [
        (spec.name, spec.shape, spec.type_name) for spec in SMALL_TENSORS
    ]
    assert header.is_quantized
    assert header.n_params == 256 * 3 + 32 * 2 + 7
    assert header.tensor_bytes == 3 * 144 + 2 * 22 + 28
    assert header.file_size == len(SMALL)


def test_arrays_are_recorded_by_type_length_and_digest_but_not_kept(write: Write) -> None:
    tokens = read_gguf_header(write(SMALL)).metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, GgufArray)
    assert (tokens.element_type, tokens.length, tokens.size_bytes) == ("string", 4, 4 * 8 + 6)


def test_a_digest_depends_on_the_elements_alone(write: Write) -> None:
    def digest(before: str, tokens: list[str]) -> str:
        array = read_gguf_header(write(gguf({"x": before, "tokens": tokens}, []))).metadata["tokens"]
        assert isinstance(array, GgufArray)
        return array.sha256

    assert digest("a", ["p", "q"]) == digest("abc", ["p", "q"]) != digest("a", ["p", "r"])


def test_a_vocabulary_larger_than_the_read_buffer_is_stepped_over_exactly(write: Write) -> None:
    tokens = ["x" * (i % 50) for i in range(60_000)] + ["y" * 3_000_000, "z"]
    header = read_gguf_header(write(gguf({"tokens": tokens, "after": "here"}, SMALL_TENSORS)))
    assert header.metadata["after"] == "here"
    assert len(header.tensors) == 3


def test_what_the_gguf_package_writes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf_py.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    writer.add_context_length(4096)
    writer.add_token_list(["a", "b"])
    writer.add_tensor("one", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("two", np.ones((4,), dtype=np.float16))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    header = read_gguf_header(path)
    assert (header.alignment, header.context_length) == (64, 4096)
    assert [(t.name, t.shape) for t in header.tensors] == [("one", (3, 2)), ("two", (4,))]
    assert np.fromfile(path, np.float32, 6, offset=header.tensors[0].offset).tolist() == list(range(6))


@pytest.mark.parametrize("version", [2, 3])
def test_versions_2_and_3_are_read(write: Write, version: int) -> None:
    assert read_gguf_header(write(gguf({}, SMALL_TENSORS, version))).version == version


_TENSOR = tensor_info("t", (4,), 0, 0)


def _with_tensors(*infos: bytes, data: int = 4096) -> bytes:
    head = preamble(len(infos), 0) + b"".join(infos)
    return head + bytes(-len(head) % 32) + bytes(data)


HOSTILE = {
    "empty": (b"", "ends inside the magic"),
    "not a GGUF": (b"PK\3\4" + bytes(100), "not a GGUF"),
    "version 1": (preamble(0, 0, version=1), "version 1"),
    "version 4": (preamble(0, 0, version=4), "version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "2^60 tensors": (preamble(1 << 60, 0) + bytes(100), "claims 1152921504606846976 tensors"),
    "2^64-1 keys": (preamble(0, (1 << 64) - 1) + bytes(100), "metadata keys"),
    "a key past the end": (preamble(0, 1) + struct.pack("<Q", 1 << 40) + bytes(50), "bytes for a metadata key"),
    "an empty key": (preamble(0, 1) + string("") + value(1) + bytes(9), "empty metadata key"),
    "a key twice": (preamble(0, 2) + 2 * (string("k") + value(1)), "repeats the metadata key 'k'"),
    "a key that is not UTF-8": (preamble(0, 1) + string(b"\xff") + value(1) + bytes(9), "not UTF-8"),
    "an unknown value type": (preamble(0, 1) + string("k") + struct.pack("<I", 99) + bytes(8), "value type 99"),
    "an array of arrays": (preamble(0, 1) + string("k") + struct.pack("<IIQ", 9, 9, 1) + bytes(8), "nests an array"),
    "2^60 strings": (preamble(0, 1) + string("k") + struct.pack("<IIQ", 9, 8, 1 << 60), "elements in 'k'"),
    "2^60 bytes": (preamble(0, 1) + string("k") + struct.pack("<IIQ", 9, 0, 1 << 60), "elements in 'k'"),
    "a string past the end": (preamble(0, 1) + string("k") + struct.pack("<IQ", 8, 1 << 62) + b"x", "value of 'k'"),
    "a token past the end": (
        preamble(0, 1) + string("k") + struct.pack("<IIQQ", 9, 8, 2, 1 << 50) + bytes(50), "string of 1125899906842624",
    ),
    "alignment 0": (gguf({"general.alignment": 0}, []), "alignment 0"),
    "alignment 33": (gguf({"general.alignment": 33}, []), "alignment 33"),
    "alignment 2^31": (gguf({"general.alignment": 1 << 31}, []), "alignment 2147483648"),
    "an alignment in words": (gguf({"general.alignment": "32"}, []), "not an integer"),
    "a tensor twice": (_with_tensors(_TENSOR, tensor_info("t", (4,), 0, 32)), "repeats the tensor 't'"),
    "five dimensions": (_with_tensors(tensor_info("t", (1, 1, 1, 1, 1), 0, 0)), "5 dimensions"),
    "2^32-1 dimensions": (_with_tensors(string("t") + struct.pack("<I", 0xFFFFFFFF)), "4294967295 dimensions"),
    "a dimension of zero": (_with_tensors(tensor_info("t", (4, 0), 0, 0)), "impossible shape"),
    "an overflowing shape": (_with_tensors(tensor_info("t", (1 << 40, 1 << 40), 0, 0)), "impossible shape"),
    "a shape of 2^64-1": (_with_tensors(tensor_info("t", ((1 << 64) - 1,), 0, 0)), "impossible shape"),
    "an unknown type": (_with_tensors(tensor_info("t", (4,), 4, 0)), "unknown type 4"),
    "half a block": (_with_tensors(tensor_info("t", (100,), 12, 0)), "not whole blocks of 256"),
    "a crooked offset": (_with_tensors(tensor_info("t", (4,), 0, 7)), "not a multiple of 32"),
    "an offset past the end": (_with_tensors(tensor_info("t", (4,), 0, 1 << 40)), "ends at byte"),
    "a tensor past the end": (_with_tensors(tensor_info("t", (4096,), 0, 0)), "ends at byte"),
    "overlapping tensors": (_with_tensors(tensor_info("a", (64,), 0, 0), tensor_info("b", (4,), 0, 32)), "overlap"),
    "a name of 64 bytes": (_with_tensors(tensor_info("n" * 64, (4,), 0, 0)), "more than the 63 allowed"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_refused_with_its_reason_in_no_time(write: Write, name: str) -> None:
    data, reason = HOSTILE[name]
    path = write(data)
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(GgufError) as caught:
        read_gguf_header(path)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reason in str(caught.value)
    assert str(caught.value).startswith("model.gguf ")
    assert time.process_time() - started < 1
    assert peak_bytes < 8_000_000


@pytest.mark.commands
@pytest.mark.parametrize("length", range(0, len(SMALL) - 40, 7))
def test_a_file_cut_anywhere_is_refused(write: Write, length: int) -> None:
    with pytest.raises(GgufError):
        read_gguf_header(write(SMALL[:length]))


def _read_or_refuse(path: Path) -> None:
    started = time.process_time()
    try:
        header = read_gguf_header(path)
    except GgufError:
        pass
    else:
        assert all(tensor.offset + tensor.size_bytes <= header.file_size for tensor in header.tensors)
    assert time.process_time() - started < 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, len(SMALL) - 1), byte=st.integers(0, 255))
@example(position=4, byte=0)
def test_a_flipped_byte_leads_to_a_header_or_an_error_and_nothing_else(write: Write, position: int, byte: int) -> None:
    _read_or_refuse(write(SMALL[:position] + bytes([byte]) + SMALL[position + 1 :]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, len(SMALL)), junk=st.binary(max_size=200))
def test_junk_after_any_beginning_leads_to_a_header_or_an_error(write: Write, cut: int, junk: bytes) -> None:
    _read_or_refuse(write(SMALL[:cut] + junk))


def _shard(folder: Path, number: int, count: int, tensors: list[TensorSpec], total: int) -> Path:
    path = folder / f"m-{number:05}-of-{count:05}.gguf"
    keys = {"split.no": number - 1, "split.count": count, "split.tensors.count": total}
    path.write_bytes(gguf({"general.architecture": "llama", **keys} if number == 1 else keys, tensors))
    return path


def test_shards_are_joined_and_tensors_keep_the_shard_they_are_in(tmp_path: Path) -> None:
    first = _shard(tmp_path, 1, 2, [TensorSpec("a", (4,))], 2)
    second = _shard(tmp_path, 2, 2, [TensorSpec("b", (8,))], 2)
    model = read_gguf_model(first)
    assert [(t.name, t.path) for t in model.tensors] == [("a", first), ("b", second)]
    assert (model.architecture, model.n_params, model.paths) == ("llama", 12, (first, second))
    assert model.file_size == first.stat().st_size + second.stat().st_size


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    first = _shard(tmp_path, 1, 2, [TensorSpec("a", (4,))], 2)
    with pytest.raises(GgufError, match=r"m-00002-of-00002\.gguf is missing"):
        read_gguf_model(first)


def test_a_shard_that_is_not_the_first_is_refused(tmp_path: Path) -> None:
    _shard(tmp_path, 1, 2, [TensorSpec("a", (4,))], 2)
    second = _shard(tmp_path, 2, 2, [TensorSpec("b", (4,))], 2)
    with pytest.raises(GgufError, match="give the first"):
        read_gguf_model(second)


def test_shards_that_repeat_or_lack_a_tensor_are_refused(tmp_path: Path) -> None:
    first = _shard(tmp_path, 1, 2, [TensorSpec("a", (4,))], 3)
    _shard(tmp_path, 2, 2, [TensorSpec("a", (4,))], 3)
    with pytest.raises(GgufError, match="repeats the tensor 'a'"):
        read_gguf_model(first)
    _shard(tmp_path, 2, 2, [TensorSpec("b", (4,))], 3)
    with pytest.raises(GgufError, match="announces 3 tensors; its shards hold 2"):
        read_gguf_model(first)


@pytest.mark.parametrize("n_bytes", range(0, len(SMALL), 7))
def test_the_beginning_of_a_file_gives_what_is_whole_in_it(n_bytes: int) -> None:
    whole, n_tensors = read_gguf_beginning(SMALL, "m.gguf")
    assert whole["general.architecture"] == "llama" and n_tensors == 3
    try:
        metadata, _ = read_gguf_beginning(SMALL[:n_bytes], "m.gguf")
    except GgufError:
        assert n_bytes < 24
    else:
        assert metadata.items() <= whole.items()


def test_a_beginning_that_claims_terabytes_costs_nothing() -> None:
    claims = preamble(1 << 60, 1 << 60) + string("a") + struct.pack("<IIQ", 9, 4, 1 << 40) + bytes(1000)
    started = time.monotonic()
    assert read_gguf_beginning(claims, "m.gguf") == ({}, 1 << 60)
    assert time.monotonic() - started < 1
