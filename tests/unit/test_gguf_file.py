"""A GGUF given as MODEL is told apart by its metadata: a whole model, or something else that this format holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from quantyard.errors import BadSource
from quantyard.sources.gguf_file import read_model_gguf
from tests.gguf_files import SMALL_METADATA, TensorSpec, Value, gguf

TENSOR = TensorSpec("blk.0.ffn_up.weight", (32, 2))


def refused(path: Path, data: bytes | None = None) -> str:
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(BadSource) as caught:
        read_model_gguf(path)
    return f"{caught.value.message} | {caught.value.hint}"


KINDS: dict[str, tuple[Mapping[str, Value], str, str]] = {
    "imatrix": ({"general.type": "imatrix", "imatrix.chunk_count": 10}, "an importance matrix", "IMATRIX="),
    "imatrix-untyped": ({"imatrix.chunk_count": 10}, "an importance matrix", "IMATRIX="),
    "adapter": ({"general.type": "adapter", "general.architecture": "llama"}, "a LoRA adapter", "LORA_FILE="),
    "adapter-untyped": ({"general.architecture": "llama", "adapter.type": "lora"}, "a LoRA adapter", "LORA_FILE="),
    "mmproj": ({"general.type": "mmproj", "general.architecture": "clip"}, "a projector", "language model"),
    "clip": ({"general.architecture": "clip"}, "a projector", "language model"),
    "clip-called-model": ({"general.type": "model", "general.architecture": "clip"}, "a projector", "language model"),
    "control-vector": ({"general.architecture": "controlvector"}, "a control vector", "steers"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_a_model_is_called_by_its_kind_and_the_command_that_takes_it(kind: str, tmp_path: Path) -> None:
    metadata, what, hint = KINDS[kind]
    said = refused(tmp_path / "file.gguf", gguf(metadata, [TENSOR]))
    assert said.startswith(f"file.gguf is {what}") and "not a model. | " in said and hint in said


def test_a_vocabulary_alone_is_not_a_model(tmp_path: Path) -> None:
    said = refused(tmp_path / "vocab.gguf", gguf({**SMALL_METADATA, "tokenizer.ggml.model": "gpt2"}, ()))
    assert "a vocabulary without weights (0 tensors)" in said


def test_an_importance_matrix_of_the_old_format_is_known_by_its_name(tmp_path: Path) -> None:
    assert "IMATRIX=" in refused(tmp_path / "imatrix.dat", b"\x10\0\0\0")


def _part(number: int, count: int, total: int) -> bytes:
    metadata: dict[str, Value] = {**SMALL_METADATA} if number == 0 else {"general.architecture": "llama"}
    split: dict[str, Value] = {"split.no": number, "split.count": count, "split.tensors.count": total}
    return gguf({**metadata, **split}, [TensorSpec(f"blk.{number}.ffn_up.weight", (32, 2))])


def write_parts(folder: Path, *names: str) -> list[Path]:
    for number, name in enumerate(names):
        (folder / name).write_bytes(_part(number, len(names), len(names)))
    return [folder / name for name in names]


def test_the_first_part_is_the_model_with_all_its_parts(tmp_path: Path) -> None:
    first, _ = write_parts(tmp_path, "m-00001-of-00002.gguf", "m-00002-of-00002.gguf")
    assert len(read_model_gguf(first).paths) == 2


def test_a_later_part_names_the_first(tmp_path: Path) -> None:
    first, second = write_parts(tmp_path, "m-00001-of-00002.gguf", "m-00002-of-00002.gguf")
    said = refused(second)
    assert "part 2 of 2 of a split model" in said and f"MODEL={first}" in said


@pytest.mark.parametrize("names", [("part1.gguf", "part2.gguf"), ("m_1of2.gguf", "m_2of2.gguf"), ("a.gguf", "b.gguf")])
@pytest.mark.parametrize("given", [0, 1])
def test_renamed_parts_get_the_commands_that_name_them_right(
    names: tuple[str, ...], given: int, tmp_path: Path
) -> None:
    said = refused(write_parts(tmp_path, *names)[given])
    assert f"mv {tmp_path / names[0]} " in said and "-00001-of-00002.gguf && mv " in said


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    first, second = write_parts(tmp_path, "m-00001-of-00002.gguf", "m-00002-of-00002.gguf")
    second.unlink()
    assert "m-00002-of-00002.gguf is missing" in refused(first)


def test_parts_joined_by_cat_are_found(tmp_path: Path) -> None:
    said = refused(tmp_path / "m.gguf", _part(0, 2, 2) + _part(1, 2, 2))
    assert "joined by cat" in said and "llama-gguf-split --merge" in said


@pytest.mark.parametrize("name", ["m.gguf-split-a", "m.gguf.part1of2", "m.gguf.001"])
def test_a_piece_that_was_cut_by_bytes_is_to_be_joined(name: str, tmp_path: Path) -> None:
    said = refused(tmp_path / name, gguf(SMALL_METADATA, [TensorSpec("t", (4096, 8))])[:-1000])
    assert "cat m.gguf* > m.gguf" in said


def test_a_file_cut_short_is_to_be_downloaded_again(tmp_path: Path) -> None:
    said = refused(tmp_path / "cut.gguf", gguf(SMALL_METADATA, [TensorSpec("t", (4096, 8))])[:-1000])
    assert "ends at byte" in said and "Download or copy it again" in said
