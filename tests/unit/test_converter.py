"""The converter runs with the transformers that it was made for, or with the newer one where a model needs that."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from builder.llama.converter import open_converter
from builder.llama.toolchain import LlamaTools
from tests.tiny_model import write_safetensors

OLD = {"model_type": "gpt_neox", "rotary_pct": 0.25, "transformers_version": "4.24.0"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "as the Hub has it": (OLD, {}, True),
    "nothing said": ({"model_type": "gpt_neox"}, {}, True),
    "written by transformers 5": ({**OLD, "transformers_version": "5.23.0"}, {}, False),
    "a rope as transformers 5 writes it": ({"model_type": "gpt_neox", "rope_parameters": {"rope_theta": 1}}, {}, False),
    "such a rope in the text part": ({"model_type": "gpt_neox", "text_config": {"rope_parameters": {}}}, {}, False),
    "a tokenizer of transformers 5": (OLD, {"tokenizer_class": "TokenizersBackend"}, False),
    "a kind of model that 4.57 does not know": ({"model_type": "brand_new"}, {}, False),
    "a kind that neither knows, with code of its own": ({"model_type": "own", "auto_map": {}}, {}, True),
    "no kind at all": ({}, {}, True),
}
FALCON_7B = {"model_type": "falcon", "multi_query": True, "new_decoder_architecture": False, "n": 1}


def tools(folder: Path, *, has_old: bool = True) -> LlamaTools:
    packages = folder / "packages"
    place = packages / "transformers" / "models" / "auto"
    place.mkdir(parents=True)
    (place / "configuration_auto.py").write_text('NAMES = [\n    ("gpt_neox", "GPTNeoXConfig"),\n("falcon", "F")]\n')
    python = Path(sys.executable)
    return LlamaTools(None, Path("c"), Path("l"), python, packages if has_old else None, {"PATH": "/bin"})


def model(folder: Path, config: dict[str, Any], tokenizer: dict[str, Any] | None = None) -> Path:
    source = folder / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config))
    (source / "tokenizer_config.json").write_text(json.dumps(tokenizer or {}))
    return source


@pytest.mark.parametrize("case", CASES)
def test_which_transformers_runs_is_told_by_the_models_files(case: str, tmp_path: Path) -> None:
    config, tokenizer, is_old = CASES[case]
    found = open_converter(tools(tmp_path), model(tmp_path, config, tokenizer), tmp_path)
    assert found.env.get("PYTHONPATH") == (str(tmp_path / "packages") if is_old else None)
    assert found.transformers.startswith("4.57" if is_old else "the installed one: ")
    assert found.env["PATH"] == "/bin" and found.folder == tmp_path / "source" and not found.notes


def test_without_the_folder_the_installed_one_runs_and_says_so(tmp_path: Path) -> None:
    found = open_converter(tools(tmp_path, has_old=False), model(tmp_path, OLD), tmp_path)
    assert "PYTHONPATH" not in found.env and found.transformers == "the installed one: there is no other"


@pytest.mark.parametrize("kind", ["falcon", "RefinedWebModel"])
def test_the_one_key_head_of_falcon_7b_is_written_out_in_a_copy(kind: str, tmp_path: Path) -> None:
    source = model(tmp_path, {**FALCON_7B, "model_type": kind})
    found = open_converter(tools(tmp_path), source, tmp_path)
    written = json.loads((found.folder / "config.json").read_bytes())
    assert written == {**FALCON_7B, "model_type": kind, "num_kv_heads": 1} and found.notes
    assert (found.folder / "tokenizer_config.json").resolve() == source / "tokenizer_config.json"
    assert "num_kv_heads" not in json.loads((source / "config.json").read_bytes())


@pytest.mark.parametrize(
    "change",
    [{"new_decoder_architecture": True}, {"num_kv_heads": 8}, {"multi_query": False}, {"model_type": "gpt_neox"}],
)
def test_other_falcons_are_left_as_they_are(change: dict[str, Any], tmp_path: Path) -> None:
    source = model(tmp_path, {**FALCON_7B, **change})
    assert open_converter(tools(tmp_path), source, tmp_path).folder == source


def test_the_share_of_a_neox_that_its_rope_turns_is_written_by_the_name_that_the_converter_asks_for(
    tmp_path: Path,
) -> None:
    rope = {"partial_rotary_factor": 0.25, "rope_theta": 10000}
    source = model(tmp_path, {"model_type": "gpt_neox", "rope_parameters": rope})
    found = open_converter(tools(tmp_path), source, tmp_path)
    assert json.loads((found.folder / "config.json").read_bytes())["rotary_pct"] == 0.25 and found.notes


@pytest.mark.parametrize(
    "change", [{"rotary_pct": 1.0}, {"model_type": "llama"}, {"rope_parameters": {"rope_theta": 1}}]
)
def test_what_has_the_name_or_another_kind_is_left_as_it_is(change: dict[str, Any], tmp_path: Path) -> None:
    config = {"model_type": "gpt_neox", "rope_parameters": {"partial_rotary_factor": 0.25}, **change}
    source = model(tmp_path, config)
    assert open_converter(tools(tmp_path), source, tmp_path).folder == source


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 5000])
def test_what_cannot_be_read_is_left_to_who_needs_it(text: str, tmp_path: Path) -> None:
    source = model(tmp_path, {})
    (source / "config.json").write_text(text)
    assert open_converter(tools(tmp_path), source, tmp_path).folder == source


@pytest.mark.parametrize(
    ("config", "tensor", "arguments"),
    [
        ({"model_type": "qwen3_next"}, "model.norm.weight", ("--no-nextn",)),
        ({"model_type": "qwen3_next"}, "mtp.norm.weight", ()),
        ({"model_type": "qwen3_next", "mtp_num_hidden_layers": 1}, "model.norm.weight", ()),
        ({"model_type": "qwen3"}, "model.norm.weight", ()),
    ],
)
def test_a_qwen3_next_that_lost_its_drafting_layers_is_converted_without(
    config: dict[str, Any], tensor: str, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    source = model(tmp_path, config)
    write_safetensors(source / "model.safetensors", {tensor: (4, 4)})
    assert open_converter(tools(tmp_path), source, tmp_path).arguments == arguments
