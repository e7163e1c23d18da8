"""The stage `split` on the demo's Q8_0, on both engines; `verify` then loads the shards and holds them against it."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from quantyard.cli.request import read_command_request
from quantyard.engines.registry import choose_engine
from quantyard.errors import StageFailed
from quantyard.execution.progress import LineReporter
from quantyard.execution.runner import PlanRunner
from quantyard.formats.gguf import read_gguf_header, read_gguf_model
from quantyard.hub.client import HubAccess
from quantyard.paths import REPO_DIR
from quantyard.plan.stages import STAGES
from quantyard.plan.steps import BuildPlan, ExternalInput, ModelFile, Step, StepOutput
from quantyard.protocol.builder import SplitRequest, VerifyRequest
from quantyard.sources.resolve import find_source
from quantyard.store.hash_cache import HashCache
from quantyard.store.stages import ModelStore
from tests.conftest import run_json

LIMIT_BYTES = 50_000_000
PREFIX = "demo-Q8_0"
NAMES = tuple(f"{PREFIX}-0000{number}-of-00003.gguf" for number in (1, 2, 3))


@dataclass(frozen=True)
class Splitter:
    """Splits one file with one engine."""

    engine: str
    gguf: Path
    artifacts: Path

    def run(self, max_size_bytes: int) -> PlanRunner:
        """Split and verify; the runner, for what it left."""
        request = read_command_request(
            argparse.Namespace(), os.environ | {"ENGINE": self.engine, "ARTIFACTS": str(self.artifacts)}
        )
        engine, _ = choose_engine(request.engine, request.environment, request.images)
        hashes = HashCache(self.artifacts / ".hashes.json")
        source = find_source(str(self.gguf), HubAccess(None, None), hashes, allow_pickle=False, gguf_file=None)
        assert source.local is not None
        whole, name = ExternalInput(source.local), self.gguf.name
        asked = SplitRequest(model_file=name, prefix=PREFIX, max_size_bytes=max_size_bytes)
        check = VerifyRequest(quant="Q8_0", model_file=NAMES[0], source_file=name, has_reference=False, threads=1)
        steps = (
            Step("split", STAGES["split"], asked, {"source": whole}, source.size_bytes),
            Step("verify", STAGES["verify"], check, {"model": StepOutput("split"), "source": whole}, 0),
        )
        plan = BuildPlan(source, steps, ModelFile(whole, name), (), "auto", "")
        runner = PlanRunner(plan, engine, ModelStore(self.artifacts, source.model), REPO_DIR)
        runner.run(LineReporter(Console(stderr=True)))
        return runner


@pytest.fixture(scope="module")
def q8_0(demo_model: Path) -> Path:
    """The demo's Q8_0, built before."""
    made = run_json("build", MODEL=str(demo_model), QUANT="Q8_0", ARTIFACTS=str(REPO_DIR / "artifacts"))
    return Path(made["files"][0]["path"]).resolve()


@pytest.fixture
def splitter(engine: str, q8_0: Path, tmp_path: Path) -> Splitter:
    return Splitter(engine, q8_0, tmp_path)


def _stages(runner: PlanRunner) -> dict[str, Any]:
    return dict(json.loads((runner.store.folder / "manifest.json").read_text())["stages"])


def test_the_shards_keep_the_limit_and_llama_cpp_loads_them_as_the_model_they_were(splitter: Splitter) -> None:
    runner = splitter.run(LIMIT_BYTES)
    folder, stages = runner.output("split"), _stages(runner)
    assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)
    assert max(path.stat().st_size for path in folder.iterdir()) <= LIMIT_BYTES
    assert [entry["path"] for entry in stages["split"]["outputs"]] == list(NAMES)
    whole, shards = read_gguf_model(splitter.gguf), read_gguf_model(folder / NAMES[0])
    assert stages["split"]["facts"] == {
        "shards": 3, "tensors": len(whole.tensors), "tensor_bytes": whole.tensor_bytes,
    }  # fmt: skip
    assert {tensor.name for tensor in shards.tensors} == {tensor.name for tensor in whole.tensors}
    assert stages["verify"]["facts"]["logits"] and "not checked" not in str(stages["verify"]["facts"]["logits"])
    assert "unknown" not in stages["split"]["tools"].values()


def test_both_engines_cut_between_the_same_tensors(splitter: Splitter) -> None:
    folder = splitter.run(LIMIT_BYTES).output("split")
    cuts = [[tensor.name for tensor in read_gguf_header(folder / name).tensors] for name in NAMES]
    assert cuts == _planned(splitter.gguf, room=48_000_000)


def _planned(gguf: Path, room: int) -> list[list[str]]:
    """In the order of the file, a shard is closed by the tensor that does not fit."""
    cuts: list[list[str]] = [[]]
    left = room
    for tensor in read_gguf_header(gguf).tensors:
        if tensor.size_bytes > left:
            cuts.append([])
            left = room
        cuts[-1].append(tensor.name)
        left -= tensor.size_bytes
    return cuts


def test_a_tensor_above_the_limit_is_an_error_that_names_it(splitter: Splitter) -> None:
    largest = max(read_gguf_header(splitter.gguf).tensors, key=lambda tensor: tensor.size_bytes)
    with pytest.raises(StageFailed) as failed:
        splitter.run(largest.size_bytes)
    assert failed.value.code == 2
    assert f"{largest.name} is {largest.size_bytes:,} bytes" in failed.value.message
    assert "Allow shards of" in failed.value.hint
