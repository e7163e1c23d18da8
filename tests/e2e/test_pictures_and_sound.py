"""Tiny models that see or hear: built with their projectors, checked, served, and shown a picture or a sound."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import NO_TWIN, run, run_json
from tests.tiny_vision import write_tiny_vision

# Family → what it reads, and a check of the API test that sends it some.
CHECKS = {"smolvlm": "picture", "gemma3": "picture", "qwen2-vl": "picture", "qwen2-audio": "sound"}


@pytest.fixture(scope="module")
def tiny(local_tools: None, demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("media")

    def write(family: str) -> Path:
        return folder / family if (folder / family).exists() else write_tiny_vision(folder / family, family, demo_model)

    return write


def _manifest(artifacts: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(next(artifacts.glob("local/*/*/manifest.json")).read_text())
    return found


def _contract(model: Path, artifacts: Path, engine: str) -> dict[str, Any]:
    run_json(
        "contract", MODEL=str(model), QUANT="Q8_0", ENGINE=engine, ARTIFACTS=str(artifacts), THREADS="1", **NO_TWIN
    )
    return _manifest(artifacts)


def _is_whole(manifest: dict[str, Any], check: str) -> None:
    """The projector holds the source's values and is recorded; what the model reads was read."""
    facts = manifest["stages"]["projector"]["facts"]
    assert facts["n_computed"] <= 1 and facts["n_same"] + facts["n_moved"] > 40
    assert facts["projection_dim"] in (64, None) and facts["q8_0_error"] < 0.01
    names = [entry["path"] for entry in manifest["projector"]["files"]]
    assert len(names) == 2 and names[0].endswith("-F16.gguf") and names[1].endswith("-Q8_0.gguf")
    checks = {record["name"]: record for record in manifest["contracts"]["Q8_0"]["checks"]}
    assert checks[check]["status"] == "passed", checks[check]["finding"]
    assert not [name for name, record in checks.items() if record["status"] == "failed"]


@pytest.mark.slow
@pytest.mark.parametrize("family", CHECKS)
def test_a_model_is_built_with_its_projector_served_with_it_and_asked(
    family: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    manifest = _contract(tiny(family), tmp_path, "local")
    _is_whole(manifest, CHECKS[family])
    folder = next(tmp_path.glob("local/*/*/manifest.json")).parent
    served = {path.name for path in (tmp_path / "served").glob("*.gguf")}
    assert served == {f"{family}-Q8_0.gguf", f"mmproj-{family}-F16.gguf"} <= {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_the_image_that_serves_reads_the_picture_too(
    builder_image: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    _is_whole(_contract(tiny("smolvlm"), tmp_path, "docker"), "picture")


def test_a_plan_names_the_parts_and_what_parts_leaves_out(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    asked = {"MODEL": str(tiny("smolvlm")), "QUANT": "Q8_0", "ENGINE": "local", "ARTIFACTS": str(tmp_path)}
    planned = run_json("plan", **asked)
    assert planned["projector"]["media"] == ["vision"] and planned["projector"]["size_bytes"] > 50_000
    assert "projector" in [stage["label"] for stage in planned["stages"]]
    alone = run_json("plan", **asked, PARTS="text")
    assert "projector" not in [stage["label"] for stage in alone["stages"]]
    assert "PARTS=text leaves out what reads pictures." in alone["notes"]
    wrong = run("plan", **asked, PARTS="3")
    assert wrong.returncode == 2 and "DEPTH_PARTS=3" in wrong.stderr
