"""A build with nothing to do is quick: it loads only what tells that it has nothing to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quantyard.engines.docker_engine import DockerEngine
from quantyard.execution.runner import PlanRunner
from quantyard.hub.client import HubAccess
from quantyard.paths import REPO_DIR
from quantyard.plan.build import BuildOptions, make_build_plan
from quantyard.quants.selection import parse_quants
from quantyard.requests import ImageSettings, RunEnvironment
from quantyard.sources.resolve import find_source
from quantyard.store.hash_cache import HashCache
from quantyard.store.stages import ModelStore
from tests.tiny_model import write_safetensors
from tests.unit.conftest import Notes
from tests.unit.fake_daemon import FakeDaemon, fake_daemon
from tests.unit.fake_engine import FakeEngine

# What other commands and other builds need. The Docker SDK alone (with requests and urllib3) takes 0.1 s.
UNNEEDED = {
    "docker", "requests", "urllib3", "huggingface_hub", "httpx2", "jinja2", "yaml", "numpy", "argcomplete", "asyncio",
    "rich.progress", "rich.table", "quantyard.engines.docker", "quantyard.execution.live_progress",
    "quantyard.plan.calibration_inputs", "quantyard.plan.suites",
}  # fmt: skip
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
    write_safetensors(folder / "model.safetensors", {"model.norm.weight": (64,)})
    return folder


def _build(model: Path, artifacts: Path, daemon: FakeDaemon, notes: Notes) -> None:
    """What `quantyard build` would make of the model, made by a fake engine."""
    source = find_source(
        str(model), HubAccess(None, None), HashCache(artifacts / ".hashes.json"), allow_pickle=False, gguf_file=None
    )
    options = BuildOptions(
        quants=parse_quants("Q4_K_M"), outtype="auto", allow_pickle=False, allow_requantize=False,
        allow_mismatch=(), threads=0, workers=4, endpoint=None,
    )
    real = DockerEngine(RunEnvironment(REPO_DIR), ImageSettings({"builder": "base:1"}, None, {}))
    daemon.images["base:1"] = {"Id": "sha256:12"}
    daemon.images[real._tag("builder", "sha256:12")] = {"Id": "sha256:34"}
    plan, store = make_build_plan(source, options), ModelStore(artifacts, source.model)
    PlanRunner(plan, _Engine(real), store, REPO_DIR).run(notes)


def test_a_build_with_nothing_to_do_loads_nothing_that_only_work_needs(
    tmp_path: Path, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, artifacts = _model(tmp_path / "tiny"), tmp_path / "artifacts"
    with fake_daemon(tmp_path) as daemon:
        monkeypatch.setenv("DOCKER_HOST", daemon.host)
        _build(model, artifacts, daemon, notes)
        code = "import sys\nfrom quantyard.cli import main\ntry:\n    main()\nfinally:\n    print(*sys.modules)"
        asked = {
            "MODEL": str(model), "QUANT": "Q4_K_M", "ENGINE": "docker", "ARTIFACTS": str(artifacts),
            "LLAMA_CPP_IMAGE": "base", "LLAMA_CPP_TAG": "1", "PYTHONPATH": str(REPO_DIR), "PYTHONSAFEPATH": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", code, "build"], env=os.environ | asked, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0 and "Nothing to do" in done.stderr, done.stderr
    loaded = set(done.stdout.splitlines()[-1].split())
    assert loaded & UNNEEDED == set()
    rooms = {name.split(".")[1] for name in loaded if name.startswith("quantyard.")}
    assert rooms & set(UNNEEDED_ROOMS) == set()
