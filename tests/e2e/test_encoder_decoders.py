"""A random FLAN-T5 the whole way: built, verified by its logits, served, and asked everything that the API promises."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from quantyard.paths import REPO_DIR, local_venv_path
from tests.conftest import run_json
from tests.docker.compose_project import ENCODER_DECODER, Project, free_port
from tests.docker.server import wait_for
from tests.tiny_t5 import convert_tiny_t5

WRITE = """
import pathlib, sys
from tests.tiny_t5 import write_tiny_t5
write_tiny_t5(pathlib.Path(sys.argv[1]), sys.argv[2])
"""
_PYTHON = str(local_venv_path({}) / "bin" / "python")
SLOW_FAMILIES = [pytest.param(name, marks=pytest.mark.slow) for name in ("madlad", "mt5")]


@pytest.fixture(scope="module")
def tiny(local_tools: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes a model of a family, with the Python that has sentencepiece."""
    folder = tmp_path_factory.mktemp("t5")

    def write(family: str) -> Path:
        if not (folder / family).exists():
            argv = [_PYTHON, "-c", WRITE, str(folder / family), family]
            subprocess.run(argv, check=True, cwd=REPO_DIR, timeout=120)
        return folder / family

    return write


def _contract(model: Path, artifacts: Path, engine: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The facts of `verify`, and the report of the API test."""
    run_json("contract", MODEL=str(model), QUANT="Q8_0", ENGINE=engine, ARTIFACTS=str(artifacts), THREADS="1")
    manifest = json.loads(next(artifacts.glob("local/*/*/manifest.json")).read_text())
    return manifest["stages"]["verify Q8_0"]["facts"], manifest["contracts"]["Q8_0"]


@pytest.mark.parametrize("family", ["flan-t5", *SLOW_FAMILIES])
def test_it_is_built_verified_by_its_logits_and_served_without_docker(
    family: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    facts, contract = _contract(tiny(family), tmp_path, "local")
    assert facts["architecture"] == "t5" and facts["logits"] > 10
    _all_kept(contract)


@pytest.mark.slow
def test_it_is_built_verified_by_its_logits_and_served_with_docker(
    builder_image: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    facts, contract = _contract(tiny("flan-t5"), tmp_path, "docker")
    assert facts["logits"] > 10
    _all_kept(contract)


def _all_kept(contract: dict[str, Any]) -> None:
    broken = [check for check in contract["checks"] if check["status"] == "failed"]
    assert not broken
    apart = {check["name"]: check["finding"] for check in contract["checks"] if check["status"] == "not supported"}
    assert set(apart) == {"as-measured", "json-schema", "tool-calls", "picture", "sound"}
    assert all("not applicable" in why for why in apart.values())
    assert "encoder-decoders" in contract["server"]


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path)
    for name in ("quantyard", "builder", "locks"):
        shutil.copytree(REPO_DIR / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    yield made
    made.down()


def test_docker_compose_up_answers_for_it_behind_the_proxy(
    builder_image: str, tiny: Callable[[str], Path], project: Project
) -> None:
    convert_tiny_t5(tiny("flan-t5"), project.folder / "artifacts" / "served" / "flan.gguf", _PYTHON)
    port = free_port()
    variables = {"PORT": str(port), "BUILDER_IMAGE": builder_image}
    done = project.compose(*ENCODER_DECODER, "up", "--detach", "--wait", **variables)
    assert done.returncode == 0, done.stderr
    address, headers = f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {project.key()}"}
    wait_for(lambda: requests.get(f"{address}/health", timeout=5).status_code == 200, 30)
    assert requests.post(f"{address}/v1/completions", json={"prompt": "a"}, timeout=20).status_code == 401
    body = {"messages": [{"role": "user", "content": "Hello world"}], "max_tokens": 8, "temperature": 0}
    answer = requests.post(f"{address}/v1/chat/completions", json=body, headers=headers, timeout=60).json()
    assert answer["model"] == "flan" and answer["usage"]["completion_tokens"] <= 8
    assert answer["choices"][0]["message"]["content"]
