"""Splitting a GGUF: the shards the package `gguf` writes, what is refused before, and the check after."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import gguf as gguf_py
import pytest
from pydantic import ValidationError

from builder.split import check_split_shards, split, split_tensor_bytes
from quantyard.formats.gguf import GgufHeader, read_gguf_header, read_gguf_model
from quantyard.protocol.base import ExitCode
from quantyard.protocol.builder import SplitRequest
from quantyard.protocol.runner import Stage, StageFailure
from tests.gguf_files import SMALL_METADATA, TensorSpec, gguf, string

LIMIT_BYTES = 2_200_000
N_TENSORS = 6
EACH_BYTES = 800_000


def _tensor(name: str, size_bytes: int = EACH_BYTES, type_name: str = "F32") -> TensorSpec:
    data = random.Random(name).randbytes(size_bytes)
    return TensorSpec(name, (size_bytes // 4,) if type_name == "F32" else (size_bytes,), type_name, data)


TENSORS = tuple(_tensor(f"blk.{i}.weight") for i in range(N_TENSORS))


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """A stage without llama.cpp's programs, and a model of 4.8 MB as its input."""
    made = Stage("split", tmp_path / "in", tmp_path / "out", {})
    made.files_dir.mkdir(parents=True)
    (made.in_dir / "source").mkdir(parents=True)
    (made.in_dir / "source" / "model.gguf").write_bytes(gguf(SMALL_METADATA, TENSORS))
    return made


def _request(max_size_bytes: int = LIMIT_BYTES, model_file: str = "model.gguf") -> SplitRequest:
    return SplitRequest(model_file=model_file, prefix="tiny-Q8_0", max_size_bytes=max_size_bytes)


def _source(stage: Stage) -> Path:
    return stage.in_dir / "source" / "model.gguf"


def _shards(stage: Stage) -> list[Path]:
    return sorted(stage.files_dir.iterdir())


def _refusal(stage: Stage, request: SplitRequest) -> StageFailure:
    with pytest.raises(StageFailure) as failed:
        split(stage, request)
    return failed.value


# ---- what is made ------------------------------------------------------------------------------------


def test_shards_have_the_names_of_llama_cpp_and_none_is_above_the_limit(stage: Stage) -> None:
    outcome = split(stage, _request())
    assert [path.name for path in _shards(stage)] == [f"tiny-Q8_0-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert all(path.stat().st_size <= LIMIT_BYTES for path in _shards(stage))
    assert outcome.facts == {"shards": 3, "tensors": N_TENSORS, "tensor_bytes": N_TENSORS * EACH_BYTES}
    assert outcome.tools.keys() == {"gguf"} and outcome.argv


def test_the_shards_say_where_they_belong_with_the_types_of_llama_cpp(stage: Stage) -> None:
    split(stage, _request())
    for number, path in enumerate(_shards(stage)):
        fields = gguf_py.GGUFReader(path).fields
        said = {name: (field.types[0].name, field.contents()) for name, field in fields.items() if "split." in name}
        assert said == {
            "split.no": ("UINT16", number), "split.count": ("UINT16", 3), "split.tensors.count": ("INT32", N_TENSORS),
        }  # fmt: skip


def test_metadata_is_in_the_first_shard_with_its_types(stage: Stage) -> None:
    split(stage, _request())
    before, after = (gguf_py.GGUFReader(path).fields for path in (_source(stage), _shards(stage)[0]))
    for name in SMALL_METADATA:
        assert (after[name].types, after[name].contents()) == (before[name].types, before[name].contents()), name
    assert not read_gguf_header(_shards(stage)[1]).architecture


def test_a_vocabulary_that_is_no_utf_8_is_kept_as_it_is(stage: Stage) -> None:
    latin = string("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + string(b"\xe9") + string("b")
    whole = gguf({"general.architecture": "llama", "tokenizer.ggml.tokens": ["é", "b"]}, TENSORS)
    usual = string("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + string("é") + string("b")
    at = whole.index(usual)
    head = whole[: whole.index(TENSORS[0].bytes)].rstrip(b"\0")
    head = head.replace(usual, latin) + bytes(8)  # the last offset ends in zeros
    head = head[: head.index(b"blk.5.weight") + 12 + 4 + 8 + 4 + 8]
    _source(stage).write_bytes(head + bytes(-len(head) % 32) + whole[whole.index(TENSORS[0].bytes) :])
    assert at > 0 and split(stage, _request()).facts["shards"] == 3
    tokens = gguf_py.GGUFReader(_shards(stage)[0]).fields["tokenizer.ggml.tokens"]
    assert [tokens.parts[index].tobytes() for index in tokens.data] == [b"\xe9", b"b"]


def test_quantized_tensors_keep_their_type_and_shape(stage: Stage) -> None:
    blocks = random.Random(1).randbytes(34 * 40_000)
    quantized = tuple(TensorSpec(f"blk.{i}.weight", (1600, 800), "Q8_0", blocks) for i in range(3))
    _source(stage).write_bytes(gguf(SMALL_METADATA, quantized))
    split(stage, _request())
    made = read_gguf_model(_shards(stage)[0])
    assert [(tensor.type.name, tensor.shape) for tensor in made.tensors] == [("Q8_0", (1600, 800))] * 3


def test_tensors_whose_size_is_no_multiple_of_the_alignment_stay_below_the_limit(stage: Stage) -> None:
    odd = tuple(_tensor(f"blk.{i}.weight", 100_004) for i in range(40))
    _source(stage).write_bytes(gguf(SMALL_METADATA, odd))
    split(stage, _request(1_010_000))
    assert len(_shards(stage)) == 5 and max(path.stat().st_size for path in _shards(stage)) <= 1_010_000


# ---- what is refused ---------------------------------------------------------------------------------


def test_a_tensor_that_is_larger_than_a_shard_is_named_with_its_size(stage: Stage) -> None:
    _source(stage).write_bytes(gguf(SMALL_METADATA, (*TENSORS, _tensor("token_embd.weight", 3_000_000))))
    error = _refusal(stage, _request())
    assert error.exit_code is ExitCode.BAD_REQUEST and error.error.kind == "tensor-too-large"
    assert "token_embd.weight is 3,000,000 bytes" in error.error.message
    enough = int(error.error.hint.split()[3].replace(",", ""))
    assert split(stage, _request(enough)).facts["tensors"] == N_TENSORS + 1


@pytest.mark.parametrize("size_bytes", [1, 1000, 999_999])
def test_a_limit_that_holds_no_tensor_is_refused(stage: Stage, size_bytes: int) -> None:
    assert _refusal(stage, _request(size_bytes)).error.kind == "tensor-too-large"
    assert _shards(stage) == []


def test_a_file_within_the_limit_is_not_split(stage: Stage) -> None:
    size_bytes = _source(stage).stat().st_size
    assert _refusal(stage, _request(size_bytes)).error.kind == "not-above-limit"
    assert split(stage, _request(size_bytes - 1)).facts["shards"] == 2


def test_shards_are_not_split_again(stage: Stage) -> None:
    split(stage, _request())
    for path in _shards(stage):
        path.rename(_source(stage).with_name(path.name))
    error = _refusal(stage, _request(1_000_000, "tiny-Q8_0-00001-of-00003.gguf"))
    assert error.error.kind == "already-split" and "3 shards" in error.error.message


def test_an_alignment_that_llama_gguf_split_would_break_is_refused(stage: Stage) -> None:
    _source(stage).write_bytes(gguf({**SMALL_METADATA, "general.alignment": 64}, TENSORS, alignment=64))
    error = _refusal(stage, _request())
    assert error.exit_code is ExitCode.UNSUPPORTED_MODEL and "64 bytes" in error.error.message


@pytest.mark.parametrize("content", [b"", b"GGUF", b"PK\x03\x04 no model", gguf(SMALL_METADATA, ())])
def test_what_is_no_gguf_with_tensors_is_refused(stage: Stage, content: bytes) -> None:
    _source(stage).write_bytes(content)
    assert _refusal(stage, _request()).exit_code is ExitCode.BAD_REQUEST


def test_a_file_that_is_not_there_is_refused(stage: Stage) -> None:
    assert _refusal(stage, _request(model_file="none.gguf")).exit_code is ExitCode.BAD_REQUEST


@pytest.mark.parametrize("prefix", ["", "../up", "a/b", "/etc/x", "a\0b", "x" * 201])
def test_a_prefix_leads_to_no_other_folder(prefix: str) -> None:
    with pytest.raises(ValidationError):
        SplitRequest(model_file="model.gguf", prefix=prefix, max_size_bytes=LIMIT_BYTES)


# ---- the check ---------------------------------------------------------------------------------------


def _checked(stage: Stage, limit: int = LIMIT_BYTES) -> StageFailure:
    with pytest.raises(StageFailure) as failed:
        check_split_shards(stage, read_gguf_model(_source(stage)), read_gguf_model(_shards(stage)[0]), limit)
    assert failed.value.exit_code is ExitCode.BUG
    return failed.value


@pytest.fixture
def made(stage: Stage) -> GgufHeader:
    split(stage, _request())
    return read_gguf_model(_shards(stage)[0])


@pytest.mark.parametrize("where", [0, EACH_BYTES // 2, EACH_BYTES - 1])
def test_one_bit_of_one_tensor_is_noticed(stage: Stage, made: GgufHeader, where: int) -> None:
    tensor = made.tensors[-1]
    data = bytearray(tensor.path.read_bytes())
    data[tensor.offset + where] ^= 1
    tensor.path.write_bytes(data)
    assert f"tensor {tensor.name} differs. (1 differences" in str(_checked(stage))


def test_a_tensor_too_many_or_too_few_is_noticed(stage: Stage, made: GgufHeader) -> None:
    _source(stage).write_bytes(gguf(SMALL_METADATA, TENSORS[:-1]))
    assert "blk.5.weight is only in the shards" in str(_checked(stage))


@pytest.mark.parametrize("change", [{"flag": 1}, {"llama.context_length": 4096}, {"tokenizer.ggml.tokens": ["x"]}])
def test_other_metadata_is_noticed(stage: Stage, made: GgufHeader, change: dict[str, int]) -> None:
    _source(stage).write_bytes(gguf({**SMALL_METADATA, **change}, TENSORS))
    assert f"metadata {next(iter(change))} differs" in str(_checked(stage))


def test_metadata_that_is_gone_is_noticed(stage: Stage, made: GgufHeader) -> None:
    _source(stage).write_bytes(gguf({**SMALL_METADATA, "general.name": "tiny"}, TENSORS))
    assert "metadata general.name differs" in str(_checked(stage))


def test_a_shard_above_the_limit_is_noticed(stage: Stage, made: GgufHeader) -> None:
    assert "tiny-Q8_0-00001-of-00003.gguf is" in str(_checked(stage, limit=1_000_000))


def test_a_file_that_is_no_shard_is_noticed(stage: Stage) -> None:
    (stage.files_dir / "leftover.gguf").write_bytes(b"")
    error = _refusal(stage, _request())
    assert error.exit_code is ExitCode.BUG and "leftover.gguf is not one of the expected shards" in error.error.message


def test_room_is_kept_for_the_header(stage: Stage) -> None:
    source = read_gguf_model(_source(stage))
    assert split_tensor_bytes(source, 3_000_000) == 2_000_000
    assert split_tensor_bytes(source, 3_002_000) == 3_000_000
