"""Recipes: how they are read, which tensors they name, and that nothing contradictory or unknown gets through."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest

from builder.checks.tensors import check_recipe_types
from quantyard.cli.request import read_command_request
from quantyard.errors import BadRequest, UnknownQuant
from quantyard.formats.gguf import GgufHeader, TensorInfo, read_gguf_header
from quantyard.formats.tensor_patterns import PatternProblem, check_tensor_pattern, resolve_tensor_patterns
from quantyard.plan.build import BuildOptions, make_build_plan
from quantyard.plan.imatrix import Calibration, plan_imatrix_trial, plan_with_imatrix
from quantyard.protocol.base import stage_request_digest
from quantyard.protocol.builder import QuantizeRequest, VerifyRequest
from quantyard.publish.rebuild import release_rebuild_request
from quantyard.publish.verify import CheckedRelease
from quantyard.quants.catalog import find_quant
from quantyard.quants.file_size import TensorShape, quant_gguf_bytes, sized_model
from quantyard.quants.recipe import Recipe
from quantyard.quants.recipe_files import read_quant_recipe, shipped_recipes
from quantyard.quants.selection import parse_quants, quant_of_recipe
from quantyard.sources.resolve import Source
from quantyard.tune.recipe_text import tuned_recipe_text
from tests.gguf_files import SMALL_METADATA, TensorSpec, gguf
from tests.manifests import manifest_of

KINDS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
MIXED = Recipe(
    name="Mine", base="Q4_K_M", description="for a test", output="Q6_K", token_embedding="Q5_K",
    tensors={"attn_v": "Q8_0", "blk.0-1.ffn_down": "Q6_K"},
)  # fmt: skip


def tensors_of(n_layers: int = 10, row: int = 512, *, tied: bool = True) -> tuple[TensorInfo, ...]:
    """The tensors of a llama, norms and all."""
    names = [("token_embd.weight", (row, 64)), ("output_norm.weight", (row,))]
    names += [] if tied else [("output.weight", (row, 64))]
    for layer in range(n_layers):
        names += [(f"blk.{layer}.{kind}.weight", (row, 8)) for kind in KINDS]
        names += [(f"blk.{layer}.attn_norm.weight", (row,)), (f"blk.{layer}.ffn_gate_inp.weight", (row, 8))]
    return tuple(TensorInfo(name, shape, 30, 0, 0, Path()) for name, shape in names)


def layers_of(types: dict[str, str], pattern: str) -> list[int]:
    """The layers whose tensors a pattern named."""
    return sorted(int(name.split(".")[1]) for name in resolve_tensor_patterns(tensors_of(), {pattern: "Q8_0"}))


# ---- patterns ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "layers"),
    [
        ("attn_v", list(range(10))), ("attn_v.weight", list(range(10))), ("blk.*.attn_v", list(range(10))),
        ("blk.3.attn_v", [3]), ("blk.0-2,9.attn_v", [0, 1, 2, 9]), ("blk.0%-33%.attn_v", [0, 1, 2, 3]),
        ("blk.33%-66%.attn_v", [4, 5, 6]), ("blk.66%-100%.attn_v", [7, 8, 9]), ("blk.8-400.attn_v", [8, 9]),
    ],
)  # fmt: skip
def test_a_pattern_names_a_kind_in_the_layers_it_says(pattern: str, layers: list[int]) -> None:
    assert layers_of({}, pattern) == layers


def test_parts_of_the_depth_that_touch_share_no_layer_and_leave_none_out() -> None:
    for n_layers in range(1, 40):
        tensors = tensors_of(n_layers)
        parts = [f"blk.{a}%-{b}%.attn_v" for a, b in ((0, 33), (33, 66), (66, 100))]
        named = []
        for part in parts:
            try:
                named += list(resolve_tensor_patterns(tensors, {part: "Q8_0"}))
            except PatternProblem:
                assert n_layers < 3  # too few for three parts
        assert sorted(named) == sorted(f"blk.{i}.attn_v.weight" for i in range(n_layers))


def test_a_glob_names_no_tensor_that_llama_quantize_leaves_alone() -> None:
    named = resolve_tensor_patterns(tensors_of(1), {"*": "Q8_0"})
    assert sorted(named) == sorted(f"blk.0.{kind}.weight" for kind in KINDS)


def test_the_pattern_that_names_fewer_of_the_same_tensors_decides_in_whatever_order() -> None:
    types = {"ffn_*": "Q4_K", "blk.0-4.ffn_down": "Q6_K", "ffn_down": "Q5_K", "blk.2.ffn_down": "Q8_0"}
    for given in (types, dict(reversed(types.items()))):
        found = resolve_tensor_patterns(tensors_of(), given)
        assert [found[f"blk.{i}.ffn_down.weight"] for i in (0, 2, 4, 5)] == ["Q6_K", "Q8_0", "Q6_K", "Q5_K"]
        assert found["blk.0.ffn_up.weight"] == "Q4_K"


def test_patterns_at_odds_of_which_neither_is_more_specific_are_refused() -> None:
    with pytest.raises(PatternProblem) as refused:
        resolve_tensor_patterns(tensors_of(), {"blk.0-4.ffn_*": "Q6_K", "ffn_down": "Q5_K"})
    assert "'ffn_down' (Q5_K)" in refused.value.message and "'blk.0-4.ffn_*' (Q6_K)" in refused.value.message
    assert "neither is more specific" in refused.value.message


def test_patterns_that_agree_need_no_order() -> None:
    found = resolve_tensor_patterns(tensors_of(), {"blk.0-4.ffn_*": "Q6_K", "ffn_down": "Q6_K"})
    assert set(found.values()) == {"Q6_K"}


@pytest.mark.parametrize(
    ("pattern", "says"),
    [("attn_vv", "Did you mean attn_v"), ("blk.10.attn_v", "layers 0 to 9"), ("attn_norm", "Did you mean"),
     ("zebra", "It has these: attn_k")],
)  # fmt: skip
def test_a_pattern_that_names_nothing_is_refused_with_what_it_may_have_meant(pattern: str, says: str) -> None:
    with pytest.raises(PatternProblem, match="matches no tensor of this model") as refused:
        resolve_tensor_patterns(tensors_of(), {pattern: "Q8_0"})
    assert says in refused.value.hint


@pytest.mark.parametrize(
    "pattern",
    ["", "blk.attn_v", "blk.1-.attn_v", "blk.5-2.attn_v", "blk.50%-20%.attn_v", "blk.0%-101%.attn_v", "attn v", "(a|b)",
     "attn_v=Q8_0", "blk.1.2.attn_v", "token_embd", "output.weight", "blk.0.blk.1.attn_v", "[a-z]+"],
)  # fmt: skip
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(PatternProblem):
        check_tensor_pattern(pattern)


def test_tied_embeddings_are_the_output_too_and_their_own_field_wins() -> None:
    assert resolve_tensor_patterns(tensors_of(), {}, output="Q6_K") == {"token_embd.weight": "Q6_K"}
    assert resolve_tensor_patterns(tensors_of(), {}, "Q6_K", "Q5_K") == {"token_embd.weight": "Q5_K"}
    both = {"token_embd.weight": "Q5_K", "output.weight": "Q6_K"}
    assert resolve_tensor_patterns(tensors_of(tied=False), {}, "Q6_K", "Q5_K") == both
    assert resolve_tensor_patterns(tensors_of(tied=False), {}, "Q6_K") == {"output.weight": "Q6_K"}


def test_rows_that_a_type_does_not_fit_get_what_llama_cpp_takes_instead() -> None:
    """Of the embeddings too: there llama-quantize checks nothing, and writes what cannot be loaded."""
    found = resolve_tensor_patterns(tensors_of(1, row=576), {"attn_v": "Q4_K", "attn_q": "Q6_K"}, embedding="Q5_K")
    assert found == {"blk.0.attn_v.weight": "Q5_0", "blk.0.attn_q.weight": "Q8_0", "token_embd.weight": "Q5_1"}


# ---- files -------------------------------------------------------------------------------------------

GOOD = "name: Mine\nbase: q4_k_m\ndescription: for a test\ntensors:\n  attn_v: q8_0\n"


def read(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return read_quant_recipe(path)


def test_names_of_types_are_read_in_any_case(tmp_path: Path) -> None:
    recipe = read(tmp_path, GOOD)
    assert (recipe.base, recipe.tensors) == ("Q4_K_M", {"attn_v": "Q8_0"})


@pytest.mark.parametrize(
    ("was", "now", "says"),
    [
        ("q8_0", "q8_9", "did you mean 'Q8_0'"), ("q8_0", "Q4_K_M", "a mixture of types"),
        ("q8_0", "Q4_K_M", "did you mean 'Q4_K'"), ("q8_0", "F64", "not a tensor type"),
        ("q4_k_m", "Q4_KM", "Did you mean 'Q4_K_M'"), ("q4_k_m", "BF16", "a recipe cannot change it"),
        ("Mine", "Q5_K_M", "one of llama.cpp's own quants"), ("Mine", "../up", "name"), ("Mine", "a b", "name"),
        ("attn_v: q8_0", "attn_v: q8_0\n  attn_v: q6_k", "'attn_v' is repeated"),
        ("attn_v", "token_embd", "token_embedding"),
        ("tensors:", "tensor:", "did you mean 'tensors'"), ("tensors:\n  attn_v: q8_0\n", "", "changes nothing"),
        ("attn_v: q8_0", "attn_v: 8", "tensors"), ("attn_v", "attn[v]", "not a pattern"),
        ("attn_v: q8_0", "blk.0-4.ffn_*: q6_k\n  ffn_down: q5_k", "neither is more specific"),
        ("description: for a test", "description: ''", "description"), (GOOD, "- a\n- list", "has no fields"),
        (GOOD, "name: &a Mine\nbase: *a", "alias"), (GOOD, "a: [", "not usable YAML"), (GOOD, "", "has no fields"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_when_the_recipe_is_read(was: str, now: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(BadRequest) as refused:
        read(tmp_path, GOOD.replace(was, now))
    assert says in refused.value.message and refused.value.hint


def test_a_recipe_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="cannot be read"):
        read_quant_recipe(tmp_path / "none.yaml")


def test_a_recipe_that_was_written_is_read_as_the_same(tmp_path: Path) -> None:
    for recipe in (MIXED, *shipped_recipes()):
        assert read(tmp_path, tuned_recipe_text(recipe)) == recipe
    quoted = MIXED.model_copy(update={"description": 'a "quoted" back\\slash: #1'})
    assert read(tmp_path, tuned_recipe_text(quoted)) == quoted


def test_three_recipes_come_with_quantyard_and_fit_any_llama() -> None:
    assert len(shipped_recipes()) == 3
    for recipe in shipped_recipes():
        for tensors in (tensors_of(8), tensors_of(40, tied=False), tensors_of(30, row=576)):
            assert resolve_tensor_patterns(tensors, recipe.tensors, recipe.output, recipe.token_embedding)


# ---- as a quant --------------------------------------------------------------------------------------


def test_a_recipe_is_named_like_a_quant_in_any_case() -> None:
    quants = parse_quants("Q8_0,q4_k_m-attn,Q4_K_M-ATTN")
    assert [quant.name for quant in quants] == ["Q8_0", "Q4_K_M-ATTN"]
    assert (quants[1].base, quants[1].ftype) == ("Q4_K_M", find_quant("Q4_K_M").ftype)
    with pytest.raises(UnknownQuant, match="Did you mean 'Q4_K_M-ATTN'"):
        parse_quants("Q4_K_M-ATTTN")
    with pytest.raises(UnknownQuant, match="Did you mean 'Q4_K_M'"):
        parse_quants("Q4_KM")


def test_users_recipes_are_read_from_the_command_line(tmp_path: Path) -> None:
    read(tmp_path, GOOD)
    mine, environment = str(tmp_path / "mine.yaml"), {"ARTIFACTS": str(tmp_path)}
    asked = argparse.Namespace(RECIPE=mine)
    assert [quant.name for quant in read_command_request(asked, environment).quants] == ["Mine"]
    both = read_command_request(argparse.Namespace(RECIPE=mine, QUANT="Q8_0,mine"), environment)
    assert [quant.name for quant in both.quants] == ["Q8_0", "Mine"]
    with pytest.raises(BadRequest, match="Two recipes have the name Mine"):
        read_command_request(argparse.Namespace(RECIPE=f"{mine},{mine}"), environment)


def test_a_rebuild_makes_the_recipe_that_the_manifest_tells_of(tmp_path: Path) -> None:
    manifest = manifest_of()
    record = manifest.stages["quantize Q4_K_M"]
    told = {"recipe": "Q4_K_M", "quant": "Q5_K_M", "tensor_types": {"attn_v": "Q8_0"}, "output_type": "Q6_K"}
    made = record.model_copy(update={"request": record.request | told})
    manifest = manifest.model_copy(update={
        "stages": manifest.stages | {"quantize Mine": made},
        "quants": {"Mine": manifest.quants["Q4_K_M"].model_copy(update={"made_by": "quantize Mine"})},
    })  # fmt: skip
    request = read_command_request(argparse.Namespace(), {"ARTIFACTS": str(tmp_path)})
    again = release_rebuild_request(request, CheckedRelease(Path("release"), manifest, ("Mine",)), tmp_path)
    assert again.quants[0].recipe == Recipe(
        name="Mine", base="Q5_K_M", description="as its manifest tells it", tensors={"attn_v": "Q8_0"}, output="Q6_K"
    )


def test_a_matrix_is_given_to_recipes_as_to_any_quant(local_source: Source) -> None:
    options = BuildOptions((quant_of_recipe(MIXED), find_quant("Q8_0")), "auto", False, False, (), 0, 4, None)
    plan = make_build_plan(local_source, options)
    given = plan_with_imatrix(plan, Calibration(), ["Mine", "Q8_0"])
    assert [step.label for step in given.steps if "imatrix" in step.inputs] == ["quantize Mine"]
    trial = plan_imatrix_trial(plan, Calibration())
    assert trial is not None
    assert {"quantize Mine", "quantize-plain Mine", "divergence Mine"} <= {step.label for step in trial.steps}


def test_a_type_that_needs_a_matrix_makes_the_recipe_need_one() -> None:
    assert quant_of_recipe(MIXED.model_copy(update={"tensors": {"attn_v": "IQ2_XS"}})).needs_imatrix
    assert not quant_of_recipe(MIXED).needs_imatrix


def test_a_plan_names_its_steps_after_the_recipe_and_tells_both_stages_what_it_says(local_source: Source) -> None:
    options = BuildOptions((quant_of_recipe(MIXED), find_quant("Q8_0")), "auto", False, False, (), 0, 4, None)
    steps = {step.label: step.request for step in make_build_plan(local_source, options).steps}
    asked, check, plain = steps["quantize Mine"], steps["verify Mine"], steps["quantize Q8_0"]
    assert isinstance(asked, QuantizeRequest) and isinstance(check, VerifyRequest)
    assert (asked.quant, asked.label, asked.tensor_types) == ("Q4_K_M", "Mine", MIXED.tensors)
    assert check.tensor_types == MIXED.tensors and check.token_embedding_type == "Q5_K"
    assert not {"recipe", "tensor_types", "output_type", "token_embedding_type"} & set(plain.model_dump(mode="json"))


def test_a_plain_request_has_the_key_it_had_and_a_recipes_name_is_not_in_its_own() -> None:
    plain = QuantizeRequest(quant="Q4_K_M", ftype=15)
    assert stage_request_digest(plain) == "6baba04aa9c52ab3449894e2c3849633dbc71657405902f387ad72e63e7003b1"
    mixed = plain.model_copy(update={"recipe": "one", "tensor_types": {"attn_v": "Q8_0"}})
    assert stage_request_digest(mixed) == stage_request_digest(mixed.model_copy(update={"recipe": "other"}))
    assert stage_request_digest(mixed) != stage_request_digest(plain)


def test_what_is_quantized_already_is_still_given_its_recipe(local_source: Source) -> None:
    quant = quant_of_recipe(MIXED)
    assert not replace(local_source, kind="gguf", gguf_file="m-Mine.gguf").is_already(quant, "auto")


def test_verify_holds_every_tensor_to_the_recipe(tmp_path: Path) -> None:
    made = _file(tmp_path, "Q8_0")
    types = resolve_tensor_patterns(made.tensors, {"attn_v": "Q8_0"})
    assert check_recipe_types(types, made) == []
    broken = check_recipe_types(types, _file(tmp_path, "Q4_0"))
    assert broken == ["Tensor blk.0.attn_v.weight is Q4_0, and the recipe says Q8_0."]


def _file(tmp_path: Path, kind: str) -> GgufHeader:
    path = tmp_path / f"{kind}.gguf"
    path.write_bytes(gguf(SMALL_METADATA, [TensorSpec("blk.0.attn_v.weight", (64, 2), kind)]))
    return read_gguf_header(path)


def test_the_expected_size_follows_the_recipe() -> None:
    config = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 100,
              "tie_word_embeddings": True}  # fmt: skip
    names = [f"model.layers.{i}.self_attn.{kind}_proj.weight" for i in range(2) for kind in "qkvo"]
    tensors = [TensorShape(name, (512, 512), "BF16") for name in names]
    tensors.append(TensorShape("model.embed_tokens.weight", (100, 512), "BF16"))
    plain = quant_gguf_bytes(sized_model(tensors, config), find_quant("Q4_0"))
    recipe = Recipe(name="Mine", base="Q4_0", description="x", tensors={"blk.0.attn_q": "Q8_0"}, token_embedding="Q4_0")
    mixed = quant_gguf_bytes(sized_model(tensors, config), quant_of_recipe(recipe))
    embeddings = 100 * 512 * (18 / 32 - 210 / 256)
    assert mixed - plain == 512 * 512 * (34 - 18) // 32 + embeddings
