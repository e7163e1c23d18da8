"""A measurement in shards has the same bits as the measurement of the whole, on real files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_cpp")

import eval.analysis.self_check
from eval.behaviour import behaviour
from eval.divergence import divergence
from eval.domains import domains
from eval.evaluate import evaluate
from quantyard.paths import REPO_DIR
from quantyard.protocol.behaviour import BehaviourEntry, BehaviourSettings
from quantyard.protocol.behaviour_run import BehaviourRequest
from quantyard.protocol.evaluation import (
    DivergenceRequest,
    DivergenceSettings,
    DomainSettings,
    DomainsRequest,
    EvaluateRequest,
    Runtime,
    TaskEntry,
)
from quantyard.protocol.task_results import SelfCheck
from tests.shards import MeasuringStage, RanStage, without_times
from tests.tiny_gguf import write_tiny

SUITES = REPO_DIR / "eval" / "suites"
ONE_THREAD = Runtime(threads=1)
Demo = Callable[[str], Path]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file and a baseline with one layer less, both with random weights and a vocabulary of bytes."""
    folder = tmp_path_factory.mktemp("tiny")
    return {
        "model": write_tiny(None, folder / "model.gguf", n_layers=2),
        "baseline": write_tiny(None, folder / "baseline.gguf", n_layers=1),
    }


def _divergence(files: dict[str, Path], **settings: Any) -> MeasuringStage:
    request = DivergenceRequest(
        label="Q", baseline_file="baseline.gguf" if "baseline" in files else None, runtime=ONE_THREAD,
        settings=DivergenceSettings(n_ctx=64, **settings),
    )
    return MeasuringStage(divergence, request, files)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_divergence_in_shards_of_chunks_is_the_same_bits(tiny: dict[str, Path], tmp_path: Path, count: int) -> None:
    stage = _divergence(tiny, n_chunks=7, rolling=True, weights_chunks=1)
    whole, (merged, shards) = stage.run(tmp_path / "one"), stage.run_in_shards(tmp_path / "many", count)
    assert merged.left("divergence.json") == whole.left("divergence.json")
    assert "parts" in whole.left("divergence.json")
    assert merged.outcome.facts == whole.outcome.facts
    assert all(shard.outcome.facts == {} for shard in shards)


def test_more_shards_than_chunks_give_the_same_bits(tiny: dict[str, Path], tmp_path: Path) -> None:
    stage = _divergence(tiny, n_chunks=2, weights_chunks=0)
    merged, _ = stage.run_in_shards(tmp_path / "many", 4)
    assert merged.left("divergence.json") == stage.run(tmp_path / "one").left("divergence.json")


def test_a_baseline_in_shards_has_the_same_perplexity(tiny: dict[str, Path], tmp_path: Path) -> None:
    stage = _divergence({"model": tiny["model"]}, n_chunks=5)
    merged, _ = stage.run_in_shards(tmp_path / "many", 2)
    assert merged.left("divergence.json") == stage.run(tmp_path / "one").left("divergence.json")


def test_domains_in_shards_are_the_same_bits_in_the_same_order(tiny: dict[str, Path], tmp_path: Path) -> None:
    settings = DomainSettings(tokens=64, n_ctx=64, long_documents=0, names=("code", "prose", "language_de"))
    request = DomainsRequest(label="Q", baseline_file="baseline.gguf", settings=settings, runtime=ONE_THREAD)
    stage = MeasuringStage(domains, request, tiny)
    whole, (merged, shards) = stage.run(tmp_path / "one"), stage.run_in_shards(tmp_path / "many", 2)
    assert merged.left("domains.json") == whole.left("domains.json")
    assert merged.outcome.facts == whole.outcome.facts
    assert sorted(len(shard.left("domains.json")["domains"]) for shard in shards) == [1, 2]


# ---- questions ---------------------------------------------------------------------------------------


def _evaluation(gguf: Path, *tasks: TaskEntry, suite: Path = SUITES) -> MeasuringStage:
    request = EvaluateRequest(
        label="Q", model_file=gguf.name, tasks=tasks, include_path="smoke", runtime=ONE_THREAD
    )
    return MeasuringStage(evaluate, request, {"model": gguf, "suite": suite})


@pytest.fixture
def with_examples(tmp_path: Path) -> Path:
    """Our questions as a suite of a user's own, with examples drawn from the other questions."""
    folder = shutil.copytree(SUITES / "smoke", tmp_path / "suite" / "smoke")
    task, questions = folder / "smoke_questions.yaml", folder / "questions.jsonl"
    task.write_text(task.read_text() + "fewshot_split: test\n")
    questions.write_text("\n".join(questions.read_text().splitlines()[:24]) + "\n")  # a block of 20 and one of 4
    return tmp_path / "suite"


def _assert_same_evaluation(merged: RanStage, whole: RanStage) -> None:
    """All numbers, and lm-eval's own record of every answer."""
    assert merged.left("evaluation.json") == whole.left("evaluation.json")
    assert without_times(merged.outcome.facts) == without_times(whole.outcome.facts)
    of_merged, of_whole = (
        {path.name.partition("_2")[0]: path.read_bytes() for path in ran.files.rglob("samples_*.jsonl")}
        for ran in (merged, whole)
    )
    assert of_merged == of_whole
    assert of_whole


@pytest.mark.parametrize("count", [2, 4])
def test_an_evaluation_in_shards_is_the_same_bits_with_the_same_examples(
    tiny: dict[str, Path], with_examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Random weights know no answers, so the self-check is left out; the demo model below has it."""
    checked = SelfCheck(
        known_answers=1, known_answers_right=1, n_tokens=1, packed_difference=0, noise=0, rolling_difference=0
    )
    monkeypatch.setattr(eval.analysis.self_check, "self_check", lambda _lm: checked)
    tasks = (TaskEntry(task="smoke_questions", num_fewshot=1), TaskEntry(task="smoke_generation", limit=30))
    stage = _evaluation(tiny["model"], *tasks, suite=with_examples)
    whole, (merged, shards) = stage.run(tmp_path / "one"), stage.run_in_shards(tmp_path / "many", count)
    _assert_same_evaluation(merged, whole)
    assert all(list((shard.files / "units").iterdir()) for shard in shards)


@pytest.fixture(scope="module")
def suite_and_whole(demo_gguf: Demo, tmp_path_factory: pytest.TempPathFactory) -> tuple[MeasuringStage, RanStage]:
    """The tasks of the suite smoke and its prose on the demo model, and what one run of them left."""
    tasks = (TaskEntry(task=f"smoke_{name}") for name in ("questions", "generation", "prose"))
    stage = _evaluation(demo_gguf("Q4_K_M"), *tasks)
    return stage, stage.run(tmp_path_factory.mktemp("whole") / "one")


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_a_suite_in_shards_is_the_same_bits_and_decodes_no_more(
    suite_and_whole: tuple[MeasuringStage, RanStage], tmp_path: Path, count: int
) -> None:
    stage, whole = suite_and_whole
    merged, shards = stage.run_in_shards(tmp_path, count)
    _assert_same_evaluation(merged, whole)
    spent = [json.loads(path.read_bytes())["counts"] for shard in shards for path in (shard.files / "units").iterdir()]
    assert sum(counts[1] for counts in spent) <= 1.03 * whole.left("evaluation.json")["n_tokens_decoded"]


@pytest.mark.slow
def test_scenarios_in_shards_have_the_same_answers(demo_gguf: Demo, tmp_path: Path) -> None:
    gguf = demo_gguf("Q4_K_M")
    suites = (BehaviourEntry(suite="tool_calls", limit=6), BehaviourEntry(suite="instructions", limit=6))
    request = BehaviourRequest(
        label="Q", model_file=gguf.name, settings=BehaviourSettings(suites=suites), runtime=ONE_THREAD
    )
    stage = MeasuringStage(behaviour, request, {"model": gguf})
    whole, (merged, _) = stage.run(tmp_path / "one"), stage.run_in_shards(tmp_path / "many", 2)
    assert merged.left("behaviour.json") == whole.left("behaviour.json")
    answers = [path.relative_to(whole.files) for path in whole.files.glob("*/*.json")]
    assert answers
    assert all((merged.files / path).read_bytes() == (whole.files / path).read_bytes() for path in answers)
