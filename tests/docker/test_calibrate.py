"""The stage `calibrate` and what is made with its matrix: with the image's own llama-imatrix, on a tiny model."""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from rich.console import Console

from builder.imatrix.matrix import Imatrix, check_imatrix_fits, read_imatrix
from quantyard.cli.request import read_command_request
from quantyard.engines.registry import choose_engine
from quantyard.errors import EngineError, StageFailed
from quantyard.execution.progress import LineReporter
from quantyard.execution.runner import PlanRunner
from quantyard.formats.gguf import read_gguf_header, read_gguf_model
from quantyard.hub.client import HubAccess
from quantyard.paths import REPO_DIR
from quantyard.plan.stages import STAGES
from quantyard.plan.steps import BuildPlan, ExternalInput, ModelFile, Origin, Step, StepOutput
from quantyard.protocol.base import StageRequest
from quantyard.protocol.builder import CalibrateRequest, QuantizeRequest, VerifyRequest
from quantyard.sources.resolve import Source, find_source
from quantyard.store.artifact import Artifact
from quantyard.store.hash_cache import HashCache
from quantyard.store.stages import ModelStore
from tests.conftest import run_json
from tests.tiny_gguf import write_tiny

SAVE_EVERY = 4
N_CHUNKS = 12


@dataclass(frozen=True)
class Yard:
    """Runs stages on one GGUF, each yard in a store of its own."""

    engine: str
    source: Source
    artifacts: Path

    @property
    def base(self) -> ModelFile:
        assert self.source.local is not None
        return ModelFile(ExternalInput(self.source.local), self.source.gguf_file or "")

    def run(self, steps: Sequence[Step]) -> PlanRunner:
        """Run the steps; the runner, for what they left."""
        environment = os.environ | {"ENGINE": self.engine, "ARTIFACTS": str(self.artifacts)}
        request = read_command_request(argparse.Namespace(), environment)
        engine, _ = choose_engine(request.engine, request.environment, request.images)
        plan = BuildPlan(self.source, tuple(steps), self.base, (), "auto", "")
        runner = PlanRunner(plan, engine, ModelStore(self.artifacts, self.source.model), REPO_DIR)
        runner.run(LineReporter(Console(stderr=True)))
        return runner

    def step(self, label: str, request: StageRequest, **inputs: Origin) -> Step:
        return Step(label, STAGES[request.stage], request, {"source": self.base.origin, **inputs}, 0)

    def calibrate(self, **changes: Any) -> Step:
        inputs = {name: changes.pop(name) for name in ("text",) if name in changes}
        asked: dict[str, Any] = {"n_chunks": N_CHUNKS, "save_every": SAVE_EVERY, "threads": 1} | changes
        return self.step("calibrate", CalibrateRequest(source_file=self.base.path, **asked), **inputs)

    def made(self, **changes: Any) -> Imatrix:
        """The matrix of such a calibration."""
        return read_imatrix(self.run([self.calibrate(**changes)]).output("calibrate") / "imatrix.gguf")

    def quantize(self, quant: str, ftype: int, matrix: Origin | None, file: str = "imatrix.gguf") -> Step:
        request = QuantizeRequest(
            quant=quant, ftype=ftype, source_file=self.base.path, threads=1, imatrix_file=file if matrix else None
        )
        inputs = {"imatrix": matrix} if matrix else {}
        return self.step(f"quantize {quant}", request, **inputs)


@pytest.fixture(scope="module")
def tiny_source(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """The tiny model as an unquantized GGUF."""
    artifacts = tmp_path_factory.mktemp("tiny")
    made = run_json("build", MODEL=str(tiny_model), QUANT="BF16", ARTIFACTS=str(artifacts), ENGINE="docker")
    return _source(Path(made["files"][0]["path"]).resolve(), artifacts)


def _source(gguf: Path, artifacts: Path) -> Source:
    hashes = HashCache(artifacts / ".hashes.json")
    return find_source(str(gguf), HubAccess(None, None), hashes, allow_pickle=False, gguf_file=None)


@pytest.fixture(scope="module")
def yard(tiny_source: Source, tmp_path_factory: pytest.TempPathFactory, builder_image: str) -> Yard:
    """One for all: what two tests ask for is made once."""
    return Yard("docker", tiny_source, tmp_path_factory.mktemp("yard") / "artifacts")


def _values(path: Path) -> dict[str, bytes]:
    """The numbers of a GGUF: each tensor's bytes."""
    data = path.read_bytes()
    return {t.name: data[t.offset : t.offset + t.size_bytes] for t in read_gguf_header(path).tensors}


def test_a_matrix_covers_the_model_and_says_how_it_was_made(yard: Yard) -> None:
    runner = yard.run([yard.calibrate()])
    matrix = read_imatrix(runner.output("calibrate") / "imatrix.gguf")
    check_imatrix_fits(matrix, read_gguf_model(yard.base.origin.artifact.folder / yard.base.path))  # type: ignore[union-attr]
    facts = runner.find_finished()["calibrate"].result.facts
    assert (matrix.n_chunks, facts["chunks"], facts["chunk_tokens"]) == (N_CHUNKS, N_CHUNKS, 512)
    assert {name.split(".")[2] for name in matrix.entries} == {
        "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down",
    }  # fmt: skip
    text = (runner.output("calibrate") / "calibration.txt").read_text()
    assert facts["dialogues_in_template"] and "<|im_start|>user\n" in text
    assert "token_embd.weight" in str(facts["note"]) and float(str(facts["perplexity"])) > 1


def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_bytes(
    yard: Yard, tmp_path: Path, stage_container: Callable[[str, Path], Any]
) -> None:
    whole = yard.run([yard.calibrate()]).output("calibrate") / "imatrix.gguf"
    other = Yard("docker", yard.source, tmp_path / "killed")
    killer = threading.Thread(target=_kill_after_first_leg, args=(stage_container, other.artifacts))
    killer.start()
    with pytest.raises((EngineError, StageFailed)):
        other.run([other.calibrate()])
    killer.join()
    saved = sorted(path.name for path in other.artifacts.rglob("upto-*.gguf"))
    assert saved == [f"upto-{n:06}.gguf" for n in (4, 8, 12)][: len(saved)] and saved
    resumed = other.run([other.calibrate()])
    assert (resumed.output("calibrate") / "imatrix.gguf").read_bytes() == whole.read_bytes()
    assert resumed.find_finished()["calibrate"].result.facts["perplexity_chunks"] in range(1, N_CHUNKS + 1)
    assert not list(other.artifacts.rglob(".partial"))


def _kill_after_first_leg(stage_container: Callable[[str, Path], Any], artifacts: Path) -> None:
    container = stage_container("calibrate", artifacts)
    while not list(artifacts.rglob(f"upto-{SAVE_EVERY:06}.gguf")):
        time.sleep(0.01)
    container.kill()


@pytest.mark.parametrize(
    ("norm", "says"),
    [("blk.0.attn_norm.weight", "activations overflow"), ("output_norm.weight", "perplexity of chunks 0 to 1 is nan")],
)
def test_values_that_are_not_numbers_are_refused_inside_the_model_and_at_its_outputs(
    norm: str, says: str, demo_q4: Path, builder_image: str, tmp_path: Path
) -> None:
    """llama-imatrix stops at the first kind, most often before it has printed why, and ends well with the second."""
    path = write_tiny(demo_q4, tmp_path / "tiny.gguf")
    reader = GGUFReader(path, "r+")
    next(tensor for tensor in reader.tensors if tensor.name == norm).data[:] = np.inf
    reader.data.flush()
    yard = Yard("docker", _source(path, tmp_path), tmp_path / "artifacts")
    with pytest.raises(StageFailed, match=says) as failed:
        yard.run([yard.calibrate(n_chunks=2)])
    assert failed.value.code == 3 and "OUTTYPE" in failed.value.hint


def test_legs_add_up_to_the_numbers_of_one_run(yard: Yard) -> None:
    legs = yard.run([yard.calibrate()]).output("calibrate") / "imatrix.gguf"
    once = yard.run([yard.calibrate(save_every=1000)]).output("calibrate") / "imatrix.gguf"
    assert _values(legs) == _values(once)


def test_files_made_with_a_matrix_verify_and_differ_from_those_made_without(yard: Yard) -> None:
    plain = yard.run([yard.quantize("Q4_K_M", 15, None)]).output("quantize Q4_K_M") / "model.gguf"
    steps = [yard.calibrate()]
    for quant, ftype in (("Q4_K_M", 15), ("IQ2_XS", 20)):
        steps.append(yard.quantize(quant, ftype, StepOutput("calibrate")))
        request = VerifyRequest(quant=quant, source_file=yard.base.path, has_reference=False, threads=1)
        steps.append(yard.step(f"verify {quant}", request, model=StepOutput(f"quantize {quant}")))
    runner = yard.run(steps)
    given = runner.output("quantize Q4_K_M") / "model.gguf"
    assert _values(given).keys() == _values(plain).keys() and _values(given) != _values(plain)
    assert read_gguf_header(given).metadata["quantize.imatrix.chunks_count"] == N_CHUNKS


def test_a_matrix_of_another_model_ends_the_build_before_quantizing(yard: Yard, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    made = yard.run([yard.calibrate(n_chunks=2)]).output("calibrate") / "imatrix.gguf"
    other.write_bytes(made.read_bytes().replace(b"blk.0.ffn_up.weight", b"blk.9.ffn_up.weight"))
    source = Artifact("d" * 64, (), tmp_path, whole_folder=True)
    with pytest.raises(StageFailed, match=r"belongs to another model: it covers blk\.9\.ffn_up\.weight") as failed:
        yard.run([yard.quantize("Q4_K_M", 15, ExternalInput(source), "other.gguf")])
    assert failed.value.code == 2 and "IMATRIX=auto" in failed.value.hint


@pytest.mark.parametrize(
    ("content", "says"), [("Far too short. " * 40, "two chunks of 512 need 1,024"), ("\0" * 5000, "is binary")]
)
def test_a_users_text_that_cannot_be_used_is_refused(content: str, says: str, yard: Yard, tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "mine.txt").write_text(content)
    text = ExternalInput(Artifact("e" * 64, (), folder))
    with pytest.raises(StageFailed, match=says) as failed:
        yard.run([yard.calibrate(text_files=("mine.txt",), text=text)])
    assert failed.value.code == 2 and failed.value.hint


def test_the_local_engine_quantizes_with_a_matrix_to_the_same_numbers(
    yard: Yard, local_tools: None, tmp_path: Path
) -> None:
    matrix = yard.run([yard.calibrate()]).output("calibrate")
    given = ExternalInput(Artifact("f" * 64, (), matrix))
    made = [
        Yard(engine, yard.source, tmp_path / engine).run([yard.quantize("Q4_K_M", 15, given)])
        for engine in ("docker", "local")
    ]
    docker, local = (runner.output("quantize Q4_K_M") / "model.gguf" for runner in made)
    assert _values(docker) == _values(local)
    assert np.isfinite(np.frombuffer(_values(local)["output_norm.weight"], np.float32)).all()


@pytest.fixture(scope="module")
def experts_source(demo_q4: Path, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A mixture of experts, the last of which no token reaches."""
    folder = tmp_path_factory.mktemp("experts")
    return _source(write_tiny(demo_q4, folder / "experts.gguf", "experts"), folder)


@pytest.mark.parametrize("source", ["tiny_source", "experts_source"])
def test_both_engines_make_the_same_matrix(
    source: str, request: pytest.FixtureRequest, tmp_path: Path, builder_image: str, local_tools: None
) -> None:
    docker, local = (
        Yard(engine, request.getfixturevalue(source), tmp_path / engine).made(n_chunks=5, save_every=3)
        for engine in ("docker", "local")
    )
    assert docker.entries.keys() == local.entries.keys()
    assert (docker.n_chunks, docker.chunk_tokens) == (local.n_chunks, local.chunk_tokens)
    for name, entry in docker.entries.items():
        # A token whose best experts are nearly equal may reach another one: the kernels add in another order.
        assert np.allclose(entry.counts, local.entries[name].counts, atol=2)
        assert np.allclose(entry.importance(), local.entries[name].importance(), rtol=1e-2)


@pytest.mark.parametrize("engine", ["docker", "local"])
def test_an_expert_that_no_token_reached_is_told_and_the_model_quantized_all_the_same(
    engine: str, request: pytest.FixtureRequest, experts_source: Source, tmp_path: Path
) -> None:
    request.getfixturevalue("builder_image" if engine == "docker" else "local_tools")
    yard = Yard(engine, experts_source, tmp_path)
    quantize = yard.quantize("IQ4_NL", 25, StepOutput("calibrate"))
    facts = yard.run([yard.calibrate(n_chunks=3), quantize]).find_finished()["calibrate"].result.facts
    assert facts["experts_without"] == {
        f"blk.{layer}.ffn_{part}_exps.weight": 1 for layer in (0, 1) for part in ("gate", "up", "down")
    }
    assert "6 of 30 experts" in str(facts["note"]) and "CALIBRATION" in str(facts["note"])
