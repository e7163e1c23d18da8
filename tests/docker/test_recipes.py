"""Recipes with the image's own llama-quantize: tensors are what the recipe says, sizes what was expected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantyard.formats.gguf import GgufHeader, read_gguf_model
from quantyard.formats.tensor_patterns import resolve_tensor_patterns, tensor_type_for_row
from quantyard.quants.exact_sizes import Sizes, stock_quant_sizes
from quantyard.store.manifest import read_manifest
from quantyard.tune.recipe_text import tuned_recipe_text
from quantyard.tune.sensitivity import tuned_recipe
from quantyard.tune.tensor_groups import tuning_tensor_groups
from quantyard.tune.type_errors import LADDER
from tests.conftest import run, run_json

Build = Callable[..., dict[str, GgufHeader]]


@pytest.fixture(scope="module")
def build(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, builder_image: str) -> Build:
    """Builds quants and recipes of the tiny model in one store; their headers, by name."""
    artifacts = tmp_path_factory.mktemp("recipes")

    def go(**asked: str) -> dict[str, GgufHeader]:
        made = run_json("build", MODEL=str(tiny_model), ARTIFACTS=str(artifacts), **{"ENGINE": "docker"} | asked)
        return {file["quant"]: read_gguf_model(Path(file["path"])) for file in made["files"]}

    return go


def test_a_recipe_gives_each_tensor_its_type_and_all_others_those_of_its_base(build: Build, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "name: MINE\nbase: Q4_K_M\ndescription: for a test\ntoken_embedding: Q4_K\n"
        "tensors:\n  attn_v: Q8_0\n  blk.0.ffn_*: Q6_K\n  blk.0.ffn_up: BF16\n"
    )
    made = build(QUANT="Q4_K_M,MINE", RECIPE=str(recipe))
    plain, mixed = made["Q4_K_M"], {tensor.name: tensor for tensor in made["MINE"].tensors}
    types = {"attn_v": "Q8_0", "blk.0.ffn_*": "Q6_K", "blk.0.ffn_up": "BF16"}
    told = resolve_tensor_patterns(plain.tensors, types, embedding="Q4_K")
    assert told["blk.0.ffn_up.weight"] == "BF16" and "token_embd.weight" in told
    assert {name: tensor.type.name for name, tensor in mixed.items()} == {
        t.name: told.get(t.name, t.type.name) for t in plain.tensors
    }
    manifest = read_manifest(made["MINE"].paths[0].parent / "manifest.json")
    assert manifest is not None
    record, header = manifest.quants["MINE"], made["MINE"]
    assert record.file.endswith("-MINE.gguf")
    assert record.bits_per_weight == pytest.approx(8 * header.tensor_bytes / header.n_params, abs=1e-3)
    argv = manifest.stages["quantize MINE"].argv[0]
    assert "--token-embedding-type" in argv and "^blk[.]0[.]ffn_up[.]weight$=bf16" in argv


def test_ours_are_built_by_their_names_and_verify_accepts_them(build: Build) -> None:
    made = build(QUANT="Q4_K_M-EMBED,Q4_K_M-ATTN")
    for header in made.values():
        types = {t.type.name for t in header.tensors if t.name.endswith("attn_v.weight")}
        assert types == {"Q8_0"}


def test_sizes_are_known_to_the_byte_before_a_file_is_made(build: Build, tmp_path: Path) -> None:
    made = build(QUANT="Q8_0,Q4_K_M,Q5_K_M,Q3_K_S,IQ4_XS,Q2_K")
    sizes = Sizes(made["Q8_0"])
    stock = stock_quant_sizes(sizes)
    assert {name: stock[name] for name in made} == {name: header.file_size for name, header in made.items()}
    groups = tuning_tensor_groups(made["Q8_0"])
    types = [LADDER[number % len(LADDER)] for number in range(len(groups))]
    recipe = tuned_recipe("EACH", groups, types, "every type once or more")
    path = tmp_path / "each.yaml"
    path.write_text(tuned_recipe_text(recipe))
    expected = {t.name: kind for group, kind in zip(groups, types, strict=True) for t in group.tensors}
    mixed = build(RECIPE=str(path))["EACH"]
    assert mixed.file_size == sizes.of_file(expected)
    shapes = {tensor.name: tensor.shape[0] for tensor in mixed.tensors}
    found = {tensor.name: tensor.type.name for tensor in mixed.tensors if tensor.name in expected}
    assert found == {name: tensor_type_for_row(kind, shapes[name]) for name, kind in expected.items()}


@pytest.mark.parametrize(
    ("line", "says"), [("attn_vv: Q8_0", "Did you mean attn_v"), ("blk.90.attn_v: Q8_0", "layers 0 to")]
)
def test_a_pattern_that_the_model_has_no_tensor_for_ends_the_build_before_quantizing(
    line: str, says: str, tiny_model: Path, tmp_path: Path, builder_image: str
) -> None:
    recipe = tmp_path / "bad.yaml"
    recipe.write_text(f"name: BAD\nbase: Q4_K_M\ndescription: for a test\ntensors:\n  {line}\n")
    asked: dict[str, Any] = {"MODEL": str(tiny_model), "RECIPE": str(recipe), "ARTIFACTS": str(tmp_path / "a")}
    done = run("build", **asked, ENGINE="docker")
    assert done.returncode == 2 and "matches no tensor of this model" in done.stderr and says in done.stderr
    assert not list((tmp_path / "a").rglob("*-BAD.gguf"))


def test_both_engines_make_the_same_tensors(build: Build, tmp_path: Path, local_tools: None) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("name: MINE\nbase: Q4_0\ndescription: x\noutput: Q6_K\ntensors:\n  attn_v: Q8_0\n")
    docker, local = (build(RECIPE=str(recipe), ENGINE=engine)["MINE"] for engine in ("docker", "local"))
    assert [(t.name, t.type.name) for t in docker.tensors] == [(t.name, t.type.name) for t in local.tensors]
