"""Wrappers of training leave words in the names of tensors; without them the names are the architecture's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from builder.llama.converter_input import open_converter_input
from quantyard.formats.safetensors import read_safetensors_folder
from quantyard.formats.wrapped_names import unwrapped_names, wrapper_words
from tests.tiny_model import write_safetensors

NAMES = ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight"]


@pytest.mark.parametrize(
    "prefix",
    ["_orig_mod.", "module.", "_fsdp_wrapped_module.", "base_model.model.", "_orig_mod.module.", "module._orig_mod.",
     "_forward_module.", "module.module.", "state_dict.", "_fsdp_wrapped_module._checkpoint_wrapped_module."],
)  # fmt: skip
def test_a_wrapper_before_all_names_is_stripped(prefix: str) -> None:
    renamed = unwrapped_names([prefix + name for name in NAMES])
    assert list(renamed.values()) == NAMES and wrapper_words(renamed) == prefix


@pytest.mark.parametrize("word", ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."])
def test_a_wrapper_around_a_part_is_stripped_where_it_stands(word: str) -> None:
    inner = f"model.layers.0.{word}mlp.up_proj.weight"
    renamed = unwrapped_names([NAMES[0], inner, NAMES[2]])
    assert renamed == {inner: NAMES[1]} and wrapper_words(renamed) == word


def test_names_that_a_trainer_doubled_are_halved() -> None:
    assert list(unwrapped_names([f"model.{name}" for name in NAMES]).values()) == NAMES


@pytest.mark.parametrize(
    "names",
    [
        NAMES, ["module.a", "b"], ["model.layers.0.x", "model.norm"], [], ["_orig_mod.a", "a"], ["_orig_mod."],
        ["model.language_model.layers.0.x", "model.visual.x", "lm_head.weight"], ["transformer.h.0.x"],
    ],
)
def test_other_names_stay(names: list[str]) -> None:
    assert unwrapped_names(names) == {}


# ---- what the converter is given ---------------------------------------------------------------------


def model(folder: Path, names: list[str], files: list[str], index: str = "") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for number, file in enumerate(files):
        write_safetensors(folder / file, dict.fromkeys(names[number::len(files)], (2, 2)))
    if index:
        weight_map = {name: files[number % len(files)] for number, name in enumerate(names)}
        (folder / index).write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize(
    ("files", "index"),
    [(["model.safetensors"], ""), (["a.safetensors", "b.safetensors"], "model.safetensors.index.json"),
     (["model.safetensors-00001-of-00002.safetensors", "model.safetensors-00002-of-00002.safetensors"], "")],
)  # fmt: skip
def test_a_folder_that_the_converter_reads_is_given_as_it_is(files: list[str], index: str, tmp_path: Path) -> None:
    folder = model(tmp_path / "m", NAMES, files, index)
    with open_converter_input(folder, read_safetensors_folder(folder), {}) as given:
        assert (given.folder, given.launcher) == (folder, ())


def test_weights_of_other_names_are_linked_to_names_that_the_converter_looks_for(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", NAMES, ["x-1.safetensors", "x-2.safetensors"], "x.safetensors.index.json")
    with open_converter_input(folder, read_safetensors_folder(folder), {}) as given:
        links = {path.name: path.readlink().name for path in given.folder.iterdir()}
    assert links == {
        "config.json": "config.json", "model-00001-of-00002.safetensors": "x-1.safetensors",
        "model-00002-of-00002.safetensors": "x-2.safetensors",
    }  # fmt: skip
    assert not given.folder.exists()


READER = """
import json
class SafetensorsLocal:
    def __init__(self, filename):
        with open(filename, "rb") as file:
            self.tensors = json.loads(file.read(int.from_bytes(file.read(8), "little")))
"""
CONVERTER = """
import sys, pathlib, gguf.utility
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.safetensors")):
    print(*sorted(gguf.utility.SafetensorsLocal(path).tensors), *sys.argv[2:], __name__)
"""


def test_the_converter_sees_the_names_without_the_wrapper(tmp_path: Path) -> None:
    """With a converter of the same shape as llama.cpp's; tests/e2e runs the real one."""
    folder = model(tmp_path / "m", [f"_orig_mod.{name}" for name in NAMES], ["model.safetensors"])
    (tmp_path / "app" / "gguf-py" / "gguf").mkdir(parents=True)
    (tmp_path / "app" / "gguf-py" / "gguf" / "__init__.py").write_text("")
    (tmp_path / "app" / "gguf-py" / "gguf" / "utility.py").write_text(READER)
    converter = tmp_path / "app" / "convert_hf_to_gguf.py"
    converter.write_text(CONVERTER)
    with open_converter_input(folder, read_safetensors_folder(folder), {}) as given:
        argv = [sys.executable, *given.launcher, str(converter), str(given.folder), "--outfile"]
        done = subprocess.run(argv, capture_output=True, text=True, check=True, env={})
    assert done.stdout.split() == [*sorted(NAMES), "--outfile", "__main__"]
