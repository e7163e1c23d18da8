"""What the unit tests share: a local source that needs no model, and a build on the fake engine."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantyard.cli import output
from quantyard.cli.json_outputs.base import JsonOutput
from quantyard.cli.json_outputs.schemas import output_schema_name
from quantyard.execution.runner import PlanRunner
from quantyard.execution.scheduler import Concurrency
from quantyard.paths import REPO_DIR
from quantyard.plan.build import BuildOptions, make_build_plan
from quantyard.plan.evaluation import add_measuring_steps
from quantyard.plan.measuring_steps import MeasureOptions
from quantyard.protocol.base import FileEntry, Progress, StageResult, files_digest
from quantyard.protocol.builder import OutType, Parity
from quantyard.protocol.evaluation import Runtime, Suite, TaskEntry
from quantyard.protocol.runner import file_sha256
from quantyard.quants.selection import parse_quants
from quantyard.sources.resolve import Source
from quantyard.store.artifact import Artifact, ModelId
from quantyard.store.stages import ModelStore
from tests.hub_server import HubServer
from tests.outputs import check_named
from tests.unit.fake_engine import FakeEngine


@pytest.fixture(autouse=True, scope="session")
def _no_fsync() -> Iterator[None]:
    """A test ends before the power fails, and waiting for the disk would take most of its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """A command tells its own process of certificates and proxies; the next test is another process' worth."""
    before = dict(os.environ)
    yield
    if before != dict(os.environ):
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(autouse=True)
def _outputs_are_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test has a command print with JSON=1 is compared with the published schema."""
    written = output.json_text

    def checked(value: JsonOutput) -> str:
        text = written(value)
        check_named(output_schema_name(type(value)), json.loads(text))
        return text

    monkeypatch.setattr(output, "json_text", checked)


class Notes:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def begin(self, label: str, number: int, of: int) -> None:
        self.lines.append(f"begin {label}")

    def progress(self, label: str, progress: Progress) -> None:
        self.lines.append(f"progress {progress.done}")

    def end(self, label: str, result: StageResult) -> None:
        self.lines.append(f"end {label}")

    def fail(self, label: str, text: str) -> None:
        self.lines.append(text)

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def running_hub() -> Iterator[HubServer]:
    with HubServer() as running:
        yield running


@pytest.fixture
def hub_server(running_hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """A Hub without repos, asked without a proxy."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    running_hub.heal()
    running_hub.repos.clear()
    running_hub.renamed.clear()
    return running_hub


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def local_source(tmp_path: Path) -> Source:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    path = folder / "config.json"
    files = (FileEntry(path="config.json", size_bytes=path.stat().st_size, sha256=file_sha256(path)),)
    digest = files_digest(files)
    return Source(
        model=ModelId("local", "tiny", digest), kind="huggingface", title=str(folder), files=files,
        local=Artifact(digest, files, folder), dtypes={"BF16": 1000},
    )


@pytest.fixture
def hub_source(local_source: Source) -> Source:
    model = ModelId("org", "tiny", "a" * 40)
    return replace(local_source, local=None, repo_id="org/tiny", revision="main", model=model)


MakeRunner = Callable[..., PlanRunner]
MakeMeasured = Callable[..., PlanRunner]
ONE_AT_A_TIME = Concurrency(stages=1, memory_bytes=0)  # what runs side by side is the subject of test_scheduler.py
SUITE = Suite(name="trial", tasks=(TaskEntry(task="arc_easy", limit=200),))
OPTIONS = MeasureOptions(suite=SUITE, runtime=Runtime())


@pytest.fixture
def make_runner(tmp_path: Path) -> MakeRunner:
    def make(
        source: Source, engine: FakeEngine, quants: str = "Q4_K_M", outtype: OutType = "auto", parity: Parity = "off"
    ) -> PlanRunner:
        options = BuildOptions(
            quants=parse_quants(quants), outtype=outtype, allow_pickle=False, allow_requantize=False,
            allow_mismatch=(), threads=0, workers=4, endpoint=None, parity=parity,
        )
        store = ModelStore(tmp_path / "artifacts", source.model)
        return PlanRunner(make_build_plan(source, options), engine, store, REPO_DIR, limit=ONE_AT_A_TIME)

    return make


@pytest.fixture
def measured(make_runner: MakeRunner) -> MakeMeasured:
    """A runner whose plan measures; keywords change the options."""

    def make(source: Source, engine: FakeEngine, quants: str = "Q4_K_M", **changes: Any) -> PlanRunner:
        options = replace(OPTIONS, **changes)
        names = f"{options.baseline.name},{quants}" if options.baseline else quants
        runner = make_runner(source, engine, names)
        runner.plan = add_measuring_steps(runner.plan, options)
        return runner

    return make
