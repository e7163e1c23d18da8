"""LoRA adapters: what is refused before llama.cpp's converter can get it wrong, what a result must hold, the plan."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builder.checks.lora_adapter import (
    AdapterConfig,
    BaseSide,
    LoraAdapter,
    LoraPair,
    check_lora_fit,
    lora_pairs,
    read_lora_config,
)
from builder.lora import check_lora_result, lora
from quantyard import cli
from quantyard.cli.commands import ADAPTING
from quantyard.cli.request import read_command_request
from quantyard.errors import BadRequest, BadSource, NeedsPermission, QuantyardError, RepoNotFound
from quantyard.execution.runner import PlanRunner
from quantyard.formats.gguf import read_gguf_header
from quantyard.hub.client import HubAccess
from quantyard.paths import REPO_DIR
from quantyard.plan.lora import plan_lora
from quantyard.plan.steps import BuildPlan, ExternalInput
from quantyard.protocol.base import ExitCode
from quantyard.protocol.builder import LoraRequest
from quantyard.protocol.runner import Stage, StageFailure
from quantyard.requests import BuildRequest
from quantyard.store.hash_cache import HashCache
from quantyard.store.stages import ModelStore
from quantyard.workflows import planning
from quantyard.workflows.lora import workflow_publish_lora
from tests.adapters import attention_pairs, safetensors, write_adapter
from tests.gguf_files import TensorSpec, Value, gguf
from tests.hub_server import HubServer
from tests.unit.conftest import Notes
from tests.unit.fake_engine import FakeEngine, writes

MODULE = "model.layers.0.self_attn.q_proj"
A, B = f"base_model.model.{MODULE}.lora_A.weight", f"base_model.model.{MODULE}.lora_B.weight"
SHAPES = {A: (4, 64), B: (32, 4)}
BASE = BaseSide(
    model_class="LlamaForCausalLM", architecture="llama", shapes={f"{MODULE}.weight": (32, 64)}, why_no_shapes="",
    ties_embeddings=False, versions={}, pickle={},
)


def _pairs(n_layers: int = 1) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in attention_pairs(n_layers, 64, 32).items()}


# ---- what an adapter says of itself ------------------------------------------------------------------


def test_an_ordinary_adapter_of_peft_passes(tmp_path: Path) -> None:
    config = read_lora_config(write_adapter(tmp_path, {}))
    assert (config.lora_alpha, config.base_model_name_or_path) == (8, "org/base")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"peft_type": None}, "not what PEFT writes"),
        ({"use_dora": True}, "DoRA"),
        ({"use_rslora": True}, "root of the rank"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save=['lm_head']"),
        ({"alpha_pattern": {"q_proj": 4}}, "an alpha of their own"),
        ({"fan_in_fan_out": True}, "the other way round"),
        ({"layer_replication": [[0, 4], [2, 5]]}, "repeats layers"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"lora_alpha": 0}, "lora_alpha is 0.0, which scales nothing"),
        ({"lora_alpha": "much"}, "not what PEFT writes"),
    ],
)
def test_an_adapter_that_a_gguf_cannot_hold_is_refused_by_name(
    change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(StageFailure, match=r".+") as failed:
        read_lora_config(write_adapter(tmp_path, {}, **change))
    assert failed.value.exit_code is ExitCode.BAD_REQUEST
    assert says in failed.value.error.message and failed.value.error.hint


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "eva", "orthogonal"])
def test_a_start_of_training_that_left_the_base_model_alone_passes(start: object, tmp_path: Path) -> None:
    read_lora_config(write_adapter(tmp_path, {}, init_lora_weights=start))


# ---- its tensors -------------------------------------------------------------------------------------


def test_tensors_are_paired_by_module_and_a_pair_knows_the_weight_it_changes() -> None:
    rows = {"base_model.model.model.embed_tokens.lora_embedding_A": (4, 1000),
            "base_model.model.model.embed_tokens.lora_embedding_B": (64, 4)}  # fmt: skip
    pairs = lora_pairs({**SHAPES, **rows, "base_model.model.model.embed_tokens.base_layer.weight": (1000, 64)})
    assert {name: pair.weight_shape for name, pair in pairs.items()} == {
        MODULE: (32, 64), "model.embed_tokens": (1000, 64)
    }  # fmt: skip
    assert {pair.rank for pair in pairs.values()} == {4}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({f"base_model.model.{MODULE}.lora_magnitude_vector": (32,)}, "lora_magnitude_vector is neither"),
        ({"base_model.model.lm_head.weight": (100, 64)}, "lm_head.weight is neither"),
        ({"base_model.model.model.norm.weight": (64,)}, "norm.weight is neither"),
        ({f"base_model.model.{MODULE}.lora_B.bias": (32,)}, "lora_B.bias is neither"),
        ({"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": (4, 64)}, "lora_B []"),
        ({B: (32, 8)}, "lora_A has the shape [4, 64], lora_B [32, 8]"),
        ({A: (4, 64, 3, 3)}, "[4, 64, 3, 3]"),
    ],
)
def test_a_tensor_that_would_be_left_out_or_has_no_partner_is_named(
    change: dict[str, tuple[int, ...]], says: str
) -> None:
    with pytest.raises(StageFailure) as failed:
        lora_pairs({**SHAPES, **change})
    assert says in failed.value.error.message


def test_an_adapter_without_tensors_is_refused() -> None:
    with pytest.raises(StageFailure, match="holds no tensors"):
        lora_pairs({})


def test_an_adapter_must_fit_its_base_model_in_names_and_shapes() -> None:
    check_lora_fit(lora_pairs(SHAPES), BASE)
    with pytest.raises(StageFailure, match=r"LlamaForCausalLM, has no model.layers.0.self_attn.v_proj, which"):
        check_lora_fit(lora_pairs(_pairs()), BASE)
    with pytest.raises(StageFailure, match=r"made for \[32, 64\], BASE has \[64, 64\]"):
        check_lora_fit(lora_pairs(SHAPES), BASE.model_copy(update={"shapes": {f"{MODULE}.weight": (64, 64)}}))


def test_names_of_another_release_of_transformers_fit_and_experts_are_left_to_the_converter() -> None:
    older = {name.replace(".model.model.", ".model.language_model.model."): shape for name, shape in SHAPES.items()}
    check_lora_fit(lora_pairs(older), BASE)
    check_lora_fit(
        lora_pairs({name.replace("self_attn", "mlp.experts.7"): shape for name, shape in SHAPES.items()}), BASE
    )


@pytest.mark.parametrize(("module", "is_embedding"), [("lm_head", False), ("model.embed_tokens", True)])
def test_where_embeddings_and_output_are_one_matrix_no_adapter_changes_one_of_them(
    module: str, is_embedding: bool
) -> None:
    pairs = {module: LoraPair((4, 100 if is_embedding else 64), (64 if is_embedding else 100, 4), is_embedding)}
    untied = BASE.model_copy(update={"shapes": {f"{module}.weight": (100, 64)}})
    check_lora_fit(pairs, untied)
    with pytest.raises(StageFailure, match="one matrix for token embeddings and output"):
        check_lora_fit(pairs, untied.model_copy(update={"ties_embeddings": True}))


def test_where_the_shapes_of_the_base_model_are_not_known_nothing_is_held_against_the_adapter() -> None:
    check_lora_fit(lora_pairs(SHAPES), BASE.model_copy(update={"shapes": {}, "why_no_shapes": "unknown class"}))


# ---- the result --------------------------------------------------------------------------------------

METADATA: dict[str, Value] = {
    "general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 8.0,
}  # fmt: skip
Q = "blk.0.attn_q.weight"
TENSORS = (TensorSpec(f"{Q}.lora_a", (64, 4)), TensorSpec(f"{Q}.lora_b", (4, 32)))
ADAPTER = LoraAdapter(AdapterConfig(peft_type="LORA", lora_alpha=8), {MODULE: LoraPair((4, 64), (32, 4))})


@pytest.fixture
def checked(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Holds a GGUF of these tensors against `ADAPTER`; keywords change its metadata."""

    def check(
        tensors: tuple[TensorSpec, ...] = TENSORS, adapter: LoraAdapter = ADAPTER, **changes: Value
    ) -> dict[str, Any]:
        path = tmp_path / "adapter.gguf"
        metadata = METADATA | {key.replace("__", "."): item for key, item in changes.items()}
        path.write_bytes(gguf(metadata, tensors))
        return check_lora_result(read_gguf_header(path), adapter, "llama")

    return check


def test_a_whole_adapter_passes_with_what_was_counted(checked: Callable[..., dict[str, Any]]) -> None:
    assert checked() == {"tensors": 2, "n_params": 64 * 4 + 4 * 32, "alpha": 8}


def test_a_module_that_became_several_tensors_and_embeddings_on_their_side_pass(
    checked: Callable[..., dict[str, Any]],
) -> None:
    halves = tuple(
        TensorSpec(f"blk.0.{name}.weight.lora_{side}", shape)
        for name in ("attn_q", "attn_k") for side, shape in (("a", (64, 4)), ("b", (4, 16)))
    )
    assert checked(halves)["tensors"] == 4
    rows = (TensorSpec("token_embd.weight.lora_a", (4, 1000)), TensorSpec("token_embd.weight.lora_b", (4, 64)))
    pair = LoraPair((4, 1000), (64, 4), is_embedding=True)
    assert checked(rows, replace(ADAPTER, pairs={"model.embed_tokens": pair}))["tensors"] == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"general__type": "model"}, "general.type is 'model', not 'adapter'"),
        ({"adapter__type": "control"}, "adapter.type is 'control'"),
        ({"general__architecture": "qwen2"}, "general.architecture is 'qwen2', not 'llama'"),
        ({"adapter__lora__alpha": 16.0}, "adapter.lora.alpha is 16.0, not 8.0"),
        ({"tensors": TENSORS[:1]}, f"{Q} lacks its lora_a or lora_b"),
        ({"tensors": (TENSORS[0], TensorSpec(f"{Q}.lora_b", (8, 16)))}, f"{Q} has rank 4 in lora_a and 8 in lora_b"),
        ({"tensors": (TensorSpec(f"{Q}.lora_a", (64, 2)), TensorSpec(f"{Q}.lora_b", (2, 64)))}, "its ranks are [2]"),
        ({"tensors": (TENSORS[0], TensorSpec(f"{Q}.lora_b", (4, 16)))}, "64 of 128 lora_b weights were written"),
    ],
)
def test_a_result_that_is_not_the_adapter_fails(
    changes: dict[str, Any], says: str, checked: Callable[..., dict[str, Any]]
) -> None:
    with pytest.raises(StageFailure) as failed:
        checked(**changes)
    assert failed.value.exit_code is ExitCode.UNSUPPORTED_MODEL and says in failed.value.error.message


# ---- the stage, before any tool runs -----------------------------------------------------------------


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """A stage with an adapter, a base model and a converter that is there."""
    converter = tmp_path / "convert_lora_to_gguf.py"
    converter.touch()
    made = Stage("lora", tmp_path / "in", tmp_path / "out", {"LLAMA_LORA_CONVERTER": str(converter)})
    made.files_dir.mkdir(parents=True)
    write_adapter(made.in_dir / "adapter", attention_pairs(1, 64, 32))
    (made.in_dir / "base").mkdir()
    (made.in_dir / "base" / "config.json").write_text("{}")
    return made


def test_a_builder_without_the_converter_says_where_it_looked_and_what_has_it(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "convert_lora_to_gguf.py").unlink()
    with pytest.raises(StageFailure, match=f"{tmp_path}/convert_lora_to_gguf.py does not exist") as failed:
        lora(stage, LoraRequest(name="mine"))
    assert "ENGINE=local" in failed.value.error.hint


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "no adapter_config.json"),
        (lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"), "ALLOW_PICKLE=1"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"short"), "truncated"),
        (
            lambda folder: (folder / "adapter_model.safetensors").write_bytes(
                safetensors({A: np.full((4, 64), np.nan, np.float32)})
            ),
            "NaN or infinite",
        ),
    ],
)
def test_an_adapter_that_cannot_be_read_is_refused_before_a_tool_sees_it(
    spoil: Callable[[Path], object], says: str, stage: Stage
) -> None:
    spoil(stage.in_dir / "adapter")
    with pytest.raises(StageFailure) as failed:
        lora(stage, LoraRequest(name="mine"))
    assert failed.value.exit_code is ExitCode.BAD_REQUEST
    assert says in failed.value.error.message + failed.value.error.hint


def test_a_base_model_whose_configuration_is_no_object_is_refused(stage: Stage) -> None:
    (stage.in_dir / "base" / "config.json").write_text("[]")
    with pytest.raises(StageFailure, match=r"BASE's config.json cannot be read"):
        lora(stage, LoraRequest(name="mine"))


# ---- the plan ----------------------------------------------------------------------------------------

Plan = Callable[..., BuildPlan]


def _request(artifacts: Path, **environment: str) -> BuildRequest:
    return read_command_request(
        argparse.Namespace(), {"ARTIFACTS": str(artifacts), "HOME": str(artifacts), **environment}
    )


@pytest.fixture
def plan(tmp_path: Path, hub: HubServer) -> Plan:
    """The plan of `make lora` with these variables."""

    def make(**variables: str) -> BuildPlan:
        access = HubAccess(hub.endpoint, hub.token)
        return plan_lora(_request(tmp_path / "artifacts", **variables), access, HashCache(tmp_path / "hashes.json"))

    return make


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = write_adapter(tmp_path / "mine", attention_pairs(1, 64, 32))
    (folder / "optimizer.pt").write_bytes(b"not needed")
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return folder


def test_folders_are_used_in_place_and_only_what_the_converter_needs_of_them(
    plan: Plan, adapter: Path, base: Path
) -> None:
    made = plan(ADAPTER=str(adapter), BASE=str(base))
    assert [step.label for step in made.steps] == ["lora"] and not made.targets
    given = {
        name: origin.artifact for name, origin in made.steps[0].inputs.items() if isinstance(origin, ExternalInput)
    }
    names = {name: sorted(f.path for f in artifact.files) for name, artifact in given.items()}
    assert names == {
        "adapter": ["adapter_config.json", "adapter_model.safetensors"], "base": ["config.json", "tokenizer.json"]
    }  # fmt: skip
    assert not any(artifact.whole_folder for artifact in given.values()), "the base's weights would be seen"


def test_the_hub_gives_the_adapter_at_its_commit_and_of_its_base_no_weights(
    plan: Plan, hub: HubServer, adapter: Path, base: Path
) -> None:
    hub.add_repo("org/mine", folder=adapter, files={"README.md": b"# Mine", "sub/x.json": b"{}"}, license="mit")
    hub.add_repo("org/base", folder=base)
    made = plan(ADAPTER="org/mine")
    assert [step.label for step in made.steps] == ["fetch adapter", "fetch base", "lora"]
    fetched = [{f.path for f in step.request.files} for step in made.steps[:2]]  # type: ignore[attr-defined]
    assert fetched[0] == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert fetched[1] == {"config.json", "tokenizer.json"}
    assert made.source.model.commit == hub.repos["org/mine"].commit and made.source.license == "mit"
    assert "org/mine at" in made.source.title and "for org/base at" in made.source.title


def test_the_revision_of_the_base_model_that_the_adapter_names_is_taken(
    plan: Plan, hub: HubServer, adapter: Path, base: Path
) -> None:
    hub.add_repo("org/base", folder=base, branches=("main", "v2"))
    write_adapter(adapter, attention_pairs(1, 64, 32), revision="v2")
    plan(ADAPTER=str(adapter))
    assert any("/revision/v2" in request.path for request in hub.requests)


@pytest.mark.parametrize(
    ("variables", "error", "says"),
    [
        ({}, BadRequest, "ADAPTER is not given"),
        ({"ADAPTER": "./nowhere"}, BadSource, "no folder ./nowhere"),
        ({"ADAPTER": "mine.gguf"}, BadSource, "ADAPTER=mine.gguf is a file"),
        ({"ADAPTER": "just-a-name"}, BadSource, "make lora ADAPTER=org/name"),
        ({"ADAPTER": "org/unheard-of"}, RepoNotFound, "ADAPTER: "),
        ({"ADAPTER": "{base}"}, BadSource, "has no adapter_config.json"),
        ({"ADAPTER": "{adapter}", "BASE": "{adapter}"}, BadSource, "has no config.json"),
        ({"ADAPTER": "{adapter}", "BASE": "./model.gguf"}, BadSource, "BASE=./model.gguf is a file"),
        ({"ADAPTER": "{adapter}"}, RepoNotFound, "BASE: "),  # org/base, which no Hub has
    ],
)
def test_what_cannot_be_planned_is_named_by_its_variable(
    variables: dict[str, str], error: type[QuantyardError], says: str, plan: Plan, adapter: Path, base: Path
) -> None:
    given = {name: text.format(adapter=adapter, base=base) for name, text in variables.items()}
    with pytest.raises(error) as failed:
        plan(**given)
    assert says in f"{failed.value.message} {failed.value.hint}" and "MODEL=" not in failed.value.hint


@pytest.mark.parametrize(
    ("named", "says"),
    [(None, "does not name a base model"), ("/home/me/llama", "names a folder as its base model: /home/me/llama")],
)
def test_an_adapter_that_names_no_base_model_to_be_had_wants_base(
    named: str | None, says: str, plan: Plan, adapter: Path
) -> None:
    write_adapter(adapter, attention_pairs(1, 64, 32), base_model_name_or_path=named)
    with pytest.raises(BadRequest, match=says) as failed:
        plan(ADAPTER=str(adapter))
    assert "BASE=org/name" in failed.value.hint


def test_a_pickle_adapter_is_refused_unless_allowed(plan: Plan, adapter: Path, base: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(NeedsPermission, match="pickle file"):
        plan(ADAPTER=str(adapter), BASE=str(base))
    made = plan(ADAPTER=str(adapter), BASE=str(base), ALLOW_PICKLE="1")
    assert {f.path for f in made.source.files} == {"adapter_config.json", "adapter_model.bin"}


# ---- the command -------------------------------------------------------------------------------------


def test_the_result_has_the_adapters_name_and_a_record_and_is_made_once(
    plan: Plan, adapter: Path, base: Path, tmp_path: Path, notes: Notes
) -> None:
    engine = FakeEngine(behaviours={"lora": writes("adapter.gguf")})
    for expected in (["lora"], []):
        made = plan(ADAPTER=str(adapter), BASE=str(base))
        runner = PlanRunner(made, engine, ModelStore(tmp_path / "artifacts", made.source.model), REPO_DIR)
        runner.run(notes)
        path = workflow_publish_lora(runner)
        assert runner.ran == expected
        assert path.name == "mine-lora.gguf" and path.read_text() == "adapter.gguf of lora"
    manifest = json.loads((path.parent / "manifest.json").read_text())
    assert manifest["stages"]["lora"]["outputs"][0]["path"] == "adapter.gguf"


def test_the_command_ends_with_what_to_type_to_serve_it(
    adapter: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = FakeEngine(behaviours={"lora": writes("adapter.gguf")})
    monkeypatch.setattr(planning, "choose_engine", lambda *_: (engine, "asked for"))
    for name in ("EXTRA_CA", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT"):
        monkeypatch.delenv(name, raising=False)
    argv = ["lora", f"--adapter={adapter}", f"--base={base}", f"--artifacts={tmp_path / 'artifacts'}"]
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    captured = capsys.readouterr()
    path = Path(captured.out.strip())
    assert ended.value.code == ExitCode.DONE and path.is_file()
    assert captured.err.splitlines()[-1].endswith(f"LORA_FILE={path} docker compose up")
    with pytest.raises(SystemExit):
        cli.main([*argv, "--json"])
    assert json.loads(capsys.readouterr().out)["path"] == str(path)


def test_adapter_and_base_are_options_of_lora_and_of_what_keeps_settings() -> None:
    taking = {row.name for row in cli.COMMANDS if row.name != "config" and set(ADAPTING) & set(row.settings or ())}
    assert taking == {"lora", "init"}
