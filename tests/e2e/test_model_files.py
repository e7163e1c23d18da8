"""Folders as people have them, built with the real tools: what is chosen is what is converted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantyard.formats.gguf import read_gguf_model
from quantyard.formats.safetensors import read_safetensors_file
from tests.conftest import run, run_json
from tests.tiny_model import tiny_shapes, write_safetensors


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be changed."""
    return Path(shutil.copytree(tiny_model, tmp_path / "changed"))


def _shards(model: Path, names: list[str], index: str, prefix: str = "", seed: int = 7) -> None:
    """The model's weights anew, in these files, with the index beside them."""
    config = json.loads((model / "config.json").read_text())
    shapes = {f"{prefix}{name}": shape for name, shape in tiny_shapes(config).items()}
    weight_map = {name: names[number % len(names)] for number, name in enumerate(shapes)}
    for file in names:
        held = {name: shapes[name] for name, place in weight_map.items() if place == file}
        write_safetensors(model / file, held, {f"{prefix}model.norm.weight": -1.0}, seed=seed)
    (model / index).write_text(json.dumps({"weight_map": weight_map}))


def _built(model: Path, engine: str, folder: Path, **variables: str) -> tuple[dict[str, Any], Path]:
    asked = {"ENGINE": engine, "ARTIFACTS": str(folder / "artifacts"), "QUANT": "BF16", **variables}
    made = run_json("build", MODEL=str(model), **asked)
    return json.loads(Path(made["manifest"]).read_text()), Path(made["files"][0]["path"])


def _first_rows(path: Path, name: str) -> bytes:
    """The beginning of a tensor's bytes, of a GGUF or a safetensors file."""
    if path.suffix == ".gguf":
        at = next(tensor.offset for tensor in read_gguf_model(path).tensors if tensor.name == name)
    else:
        at = read_safetensors_file(path).tensors[name].start
    with path.open("rb") as stream:
        stream.seek(at)
        return stream.read(512)


def test_shards_of_other_names_with_a_wrappers_prefix_are_built_and_an_older_file_beside_them_is_not(
    some_engine: str, model: Path, tmp_path: Path
) -> None:
    """All at once: the names of Qwen3.5's shards, an index of another name, `_orig_mod.`, a file of other weights."""
    names = ["weights.safetensors-00001-of-00002.safetensors", "weights.safetensors-00002-of-00002.safetensors"]
    _shards(model, names, "weights.safetensors.index.json", "_orig_mod.", seed=11)
    manifest, gguf = _built(model, some_engine, tmp_path)
    listed = {file["path"] for file in manifest["source"]["files"]}
    assert set(names) < listed and "model.safetensors" not in listed
    held = _first_rows(gguf, "token_embd.weight")
    assert held == _first_rows(model / names[0], "_orig_mod.model.embed_tokens.weight")
    assert held != _first_rows(model / "model.safetensors", "model.embed_tokens.weight")


def test_an_outtype_that_cannot_hold_the_weights_is_the_users_to_change(
    some_engine: str, model: Path, tmp_path: Path
) -> None:
    weights = model / "model.safetensors"
    at = read_safetensors_file(weights).tensors["model.layers.0.mlp.up_proj.weight"].start
    data = bytearray(weights.read_bytes())
    data[at : at + 2] = (np.array([70_000], np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
    weights.write_bytes(data)
    asked = {"ENGINE": some_engine, "ARTIFACTS": str(tmp_path / "artifacts"), "QUANT": "Q8_0"}
    done = run("build", MODEL=str(model), OUTTYPE="f16", **asked)
    assert done.returncode == 2, done.stderr
    assert "blk.0.ffn_up.weight" in done.stderr and "OUTTYPE=bf16" in done.stderr
