"""`make lora` with real parts: adapters converted by llama.cpp's own script, then served by a real llama-server.

Where the builder image is made on a stand-in that lacks the script, ENGINE=docker is skipped and says so.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quantyard.formats.gguf import read_gguf_header
from quantyard.paths import REPO_DIR
from tests.adapters import attention_pairs, safetensors, write_adapter
from tests.conftest import run, run_json
from tests.docker.server import server
from tests.hub_server import HubServer

PROMPTS = ("The capital of France is", "Once upon a time", "def add(a, b):")
DEMO = {"n_layers": 30, "hidden": 576, "kv": 192}
Convert = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def all_artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture
def artifacts(all_artifacts: Path, engine: str) -> Path:
    """A folder for each engine: a download that one of them finished would not be made again by the other."""
    return all_artifacts / engine


@pytest.fixture
def convert(engine: str, artifacts: Path) -> Convert:
    """Runs `lora --json`; what it says, or why there is nothing to say."""

    def convert_one(adapter: Path | str, base: Path | str = "", **variables: str) -> dict[str, Any]:
        asked = {"ADAPTER": str(adapter), "BASE": str(base), "ENGINE": engine, "ARTIFACTS": str(artifacts)}
        done = run("lora", JSON="1", **{**asked, **variables})
        if "no convert_lora_to_gguf.py" in done.stderr:
            assert "ENGINE=local" in done.stderr and done.returncode == 2
            pytest.skip(done.stderr.splitlines()[-2].removeprefix("error: "))
        value = json.loads(done.stdout)
        assert isinstance(value, dict) and ("error" in value) == (done.returncode != 0), done.stderr
        return value

    return convert_one


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For the demo model: one that changes it, one whose every lora_B is zero."""
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: write_adapter(folder / name, attention_pairs(**DEMO, b_scale=scale))
        for name, scale in (("strong", 0.1), ("zero", 0.0))
    }


@pytest.fixture(scope="module")
def q8_0(demo_model: Path) -> Path:
    """The demo's Q8_0, built before."""
    made = run_json("build", MODEL=str(demo_model), QUANT="Q8_0", ARTIFACTS=str(REPO_DIR / "artifacts"))
    return Path(made["files"][0]["path"])


@pytest.fixture
def answers(docker_client: Any, server_image: str, q8_0: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """What the demo model goes on with at temperature 0, served with an adapter or without, one server at a time."""

    def ask(adapter: Path | None = None) -> list[str]:
        options: dict[str, Any] = {}
        if adapter is not None:
            options = {
                "environment": {"LORA": "/lora.gguf"},
                "volumes": {str(adapter): {"bind": "/lora.gguf", "mode": "ro"}},
            }
        with server(docker_client, server_image, q8_0, tmp_path, **options) as served:
            served.wait_healthy()
            body = {"max_tokens": 24, "temperature": 0, "seed": 1}
            asked = [served.post("/v1/completions", {"prompt": prompt, **body}) for prompt in PROMPTS]
            return [answer.json()["choices"][0]["text"] for answer in asked]

    return ask


def test_an_adapter_changes_the_answers_of_its_base_model_and_one_of_zeros_changes_none(
    convert: Convert, adapters: dict[str, Path], demo_model: Path, answers: Callable[..., list[str]]
) -> None:
    strong, zero = (Path(convert(adapters[name], demo_model)["path"]) for name in ("strong", "zero"))
    plain = answers()
    assert answers(zero) == plain
    changed = answers(strong)
    assert all(now != before for now, before in zip(changed, plain, strict=True)), changed


def test_the_file_holds_the_whole_adapter_and_the_same_command_again_runs_nothing(
    convert: Convert, adapters: dict[str, Path], demo_model: Path, artifacts: Path
) -> None:
    made = convert(adapters["strong"], demo_model)
    path, manifest = Path(made["path"]), json.loads(Path(made["manifest"]).read_text())
    assert path.name == "strong-lora.gguf" and path.parent.parent == artifacts / "local" / "strong"
    header = read_gguf_header(path)
    said = {key: header.metadata[key] for key in ("general.type", "adapter.type", "adapter.lora.alpha")}
    assert said == {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 8.0}
    assert header.architecture == "llama" and len(header.tensors) == 2 * 60
    facts = manifest["stages"]["lora"]["facts"]
    assert (facts["modules"], facts["ranks"], facts["shapes"]) == (60, [4], "fit the base model")
    assert {"transformers", "torch"} <= manifest["stages"]["lora"]["tools"].keys()
    assert convert(adapters["strong"], demo_model)["ran"] == []


def test_an_adapter_of_another_model_is_refused_with_the_module_that_does_not_fit(
    convert: Convert, adapters: dict[str, Path], tiny_model: Path, tmp_path: Path
) -> None:
    error = convert(adapters["strong"], tiny_model)["error"]
    assert error["exit_code"] == 2 and "has no model.layers.1.self_attn.q_proj" in error["message"]
    wide = write_adapter(tmp_path / "wide", attention_pairs(1, DEMO["hidden"], DEMO["kv"]))
    error = convert(wide, tiny_model)["error"]
    assert error["exit_code"] == 2 and "made for [576, 576], BASE has [64, 64]" in error["message"]
    assert "BASE=" in error["hint"]


def test_an_architecture_that_llama_cpp_does_not_know_is_named(
    convert: Convert, adapters: dict[str, Path], tmp_path: Path, demo_model: Path
) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(json.loads((demo_model / "config.json").read_text()) | {"architectures": ["UnheardOfForCausalLM"]})
    )
    error = convert(adapters["strong"], tmp_path)["error"]
    assert error["exit_code"] == 3 and "UnheardOfForCausalLM" in error["message"]


def test_a_base_model_stored_in_4_bits_is_taken_as_the_model_that_it_is(
    convert: Convert, adapters: dict[str, Path], tmp_path: Path, demo_model: Path
) -> None:
    config = json.loads((demo_model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    made = convert(adapters["strong"], tmp_path)
    assert Path(made["path"]).is_file()


@pytest.fixture
def hub(tiny_model: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        server.add_repo("org/base", folder=tiny_model)
        yield server


def test_adapter_and_base_come_from_the_hub_without_the_weights_of_the_base(
    convert: Convert, hub: HubServer, tmp_path: Path
) -> None:
    config = write_adapter(tmp_path / "one", {}).joinpath("adapter_config.json").read_bytes()
    weights = safetensors(attention_pairs(1, 64, 32))
    files = {"adapter_config.json": config, "adapter_model.safetensors": weights, "optimizer.pt": b"not needed"}
    hub.add_repo("org/adapter", files={**files, "README.md": b"# An adapter\n"}, private=True)
    variables = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token, "NO_PROXY": hub.host, "no_proxy": hub.host}
    made = convert("org/adapter", **variables)
    assert made["ran"] == ["fetch adapter", "fetch base", "lora"]
    assert made["commit"] == hub.repos["org/adapter"].commit
    asked = {r.path.rpartition("/")[2] for r in hub.requests if "/resolve/" in r.path}
    assert {"adapter_model.safetensors", "config.json"} <= asked
    assert not asked & {"model.safetensors", "optimizer.pt"}
    shutil.rmtree(Path(made["manifest"]).parent)
