"""A build with nothing to do is quick: it loads only what tells that it has nothing to do."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest

from quantyard.cli.request import read_command_request
from quantyard.engines.docker_engine import DockerEngine
from quantyard.engines.images import IMAGES, SHARED
from quantyard.execution.runner import PlanRunner
from quantyard.paths import REPO_DIR
from quantyard.store.stages import ModelStore
from quantyard.workflows.planning import workflow_plan
from tests.tiny_model import write_safetensors
from tests.unit.conftest import Notes
from tests.unit.fake_daemon import FakeDaemon, fake_daemon
from tests.unit.fake_engine import FakeEngine

# What other commands and other builds need. The Docker SDK alone (with requests and urllib3) takes 0.1 s.
UNNEEDED = {
    "docker", "requests", "urllib3", "huggingface_hub", "httpx2", "jinja2", "yaml", "numpy", "argcomplete", "asyncio",
    "filelock", "concurrent.futures",
    "rich.progress", "rich.table", "quantyard.engines.docker", "quantyard.engines.local",
    "quantyard.hub.client", "quantyard.forecast.time", "quantyard.forecast.from_manifests",
    "quantyard.execution.live_progress", "quantyard.plan.calibration_inputs", "quantyard.plan.suites",
    "quantyard.execution.measured_before", "quantyard.execution.shared_baseline",
    "quantyard.execution.stage_lines", "quantyard.plan.api_tests", "quantyard.plan.evaluation",
    "quantyard.plan.imatrix", "quantyard.plan.measuring_steps", "quantyard.plan.shards",
    # Models, each of which takes as long to define as three frozen dataclasses.
    *(f"quantyard.protocol.{name}" for name in (
        "api_tests", "behaviour", "behaviour_run", "cache_results", "divergence_results", "evaluation",
        "foreign_findings", "measurements", "measuring_facts", "openvino", "openvino_results", "predictions",
        "reference", "shard", "similarity_results", "speed_results", "task_results",
    )),
}  # fmt: skip
_STANDARD = re.compile(r"^from dataclasses import .*\bdataclass\b", re.MULTILINE)
_OF_IMAGES = {room for rooms in SHARED.values() for room in rooms}
UNNEEDED_ROOMS = ("api", "publish", "card", "report_page", "gate", "choose", "tune")


class _Engine(FakeEngine):
    """A fake engine with the tools, and so the keys, of a real one."""

    def __init__(self, real: DockerEngine) -> None:
        super().__init__()
        self._real = real

    def identity(self, image: str) -> str | None:
        return self._real.identity(image)


def _model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    (folder / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {}, "merges": []}}')
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    write_safetensors(folder / "model.safetensors", {"model.norm.weight": (64,)})
    return folder


def _build(asked: Mapping[str, str], daemon: FakeDaemon, notes: Notes) -> None:
    """What `quantyard build` would make, made by a fake engine."""
    request = read_command_request(argparse.Namespace(), asked)
    real = DockerEngine(request.environment, request.images)
    for image in IMAGES:
        daemon.images[request.images.bases[image]] = {"Id": "sha256:12"}
        daemon.images[real._tag(image, "sha256:12")] = {"Id": "sha256:34"}
    plan = workflow_plan(request)
    PlanRunner(plan, _Engine(real), ModelStore(request.artifacts, plan.source.model), REPO_DIR).run(notes)


@pytest.mark.commands
def test_a_build_with_nothing_to_do_loads_nothing_that_only_work_needs(
    tmp_path: Path, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, artifacts = _model(tmp_path / "tiny"), tmp_path / "artifacts"
    with fake_daemon(tmp_path) as daemon:
        monkeypatch.setenv("DOCKER_HOST", daemon.host)
        code = "import sys\nfrom quantyard.cli import main\ntry:\n    main()\nfinally:\n    print(*sys.modules)"
        asked = {
            "MODEL": str(model), "QUANT": "Q4_K_M", "ENGINE": "docker", "ARTIFACTS": str(artifacts),
            "LLAMA_CPP_IMAGE": "base", "LLAMA_CPP_TAG": "1", "PYTHONPATH": str(REPO_DIR), "PYTHONSAFEPATH": "1",
        }
        _build(asked, daemon, notes)
        done = subprocess.run(
            [sys.executable, "-c", code, "build"], env=os.environ | asked, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0 and "Nothing to do" in done.stderr, done.stderr
    loaded = set(done.stdout.splitlines()[-1].split())
    assert loaded & UNNEEDED == set()
    rooms = {name.split(".")[1] for name in loaded if name.startswith("quantyard.")}
    assert rooms & set(UNNEEDED_ROOMS) == set()
    orchestrator = (name for name in loaded if name.startswith("quantyard.") and name.split(".")[1] not in _OF_IMAGES)
    text_of = {name: Path(str(find_spec(name).origin)).read_text() for name in orchestrator}  # type: ignore[union-attr]
    standard = {name for name, text in text_of.items() if _STANDARD.search(text)}
    assert standard <= {"quantyard.records"}, "take dataclass from quantyard.records, which defines it in a third"


def test_modules_of_models_below_the_command_line_leave_out_future_annotations() -> None:
    files = {path for path in (REPO_DIR / "quantyard").rglob("*.py") if "cli" not in path.parts}
    models = {path: path.read_text() for path in files if re.search(r"\(Frozen\):|defer_build=True", path.read_text())}
    assert len(models) > 10
    assert {path.name for path, text in models.items() if "\nfrom __future__ import annotations\n" in text} == set()
