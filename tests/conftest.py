"""What tests with real parts share: Docker, the images, the demo model and a tiny one, and the command line.

Tests are known by the fixtures they use: those that ask for `engine_tools` or `docker_client` need real tools.
Without a daemon they are skipped; with REQUIRE_DOCKER=1 that is a failure.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from rich.console import Console

from quantyard import cli
from quantyard.cli.request import read_command_request
from quantyard.engines.registry import choose_engine
from quantyard.errors import EngineError
from quantyard.execution.progress import LineReporter
from quantyard.paths import REPO_DIR, read_pins
from quantyard.workflows.demo import workflow_demo_folder
from tests.outputs import check_output
from tests.tiny_model import write_tiny_model

pytest_plugins = ["tests.phases", "tests.released"]
BUILD_TIMEOUT_S = 1800
NO_TWIN = {"PARITY": "off"}  # it takes longer than the rest of a small build; its own tests ask for it
DEMO_QUANTS = "Q4_K_M,Q8_0"


def command(*argv: str) -> list[str]:
    """The command line of Quantyard, as a list to run."""
    return [sys.executable, "-m", "quantyard", *argv]


def start(*argv: str, **environment: str) -> subprocess.Popen[str]:
    """Start a command of Quantyard; its variables come as make would pass them."""
    return subprocess.Popen(
        command(*argv), env=os.environ | NO_TWIN | environment, cwd=REPO_DIR, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=_hears_ctrl_c,
    )


def _hears_ctrl_c() -> None:
    """Whatever started the tests in the background has made them, and what they start, deaf to it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of Quantyard to its end."""
    return subprocess.run(
        command(*argv), env=os.environ | NO_TWIN | environment, cwd=REPO_DIR, text=True, timeout=BUILD_TIMEOUT_S,
        stdin=subprocess.DEVNULL, capture_output=True, check=False,
    )


def run_here(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The same in this process, a second quicker: for one of many cases of a kind, whose others `run` tries."""
    before, on_sigterm, said, out = dict(os.environ), signal.getsignal(signal.SIGTERM), io.StringIO(), io.StringIO()
    os.environ.update(NO_TWIN | environment)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said), contextlib.chdir(REPO_DIR):
            cli.main(argv)
    except SystemExit as ended:
        return subprocess.CompletedProcess(argv, int(ended.code or 0), out.getvalue(), said.getvalue())
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)
        os.environ.clear()
        os.environ.update(before)


def run_json(*argv: str, **environment: str) -> dict[str, Any]:
    """Run a command that must end well with `--json`; returns its one object, which is as its published schema says."""
    done = run(*argv, JSON="1", **environment)
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    check_output(argv[0], value)
    return value


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all processes of this run of the tests."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def made_once(folder: Path, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returns, called by the first of all processes that asks for it."""
    path = folder / f"{name}.json"
    with FileLock(folder / f"{name}.lock"):
        if not path.exists():
            path.write_text(json.dumps(make()))
        value = json.loads(path.read_text())
    assert isinstance(value, dict)
    return value


@pytest.fixture(scope="session")
def docker_client() -> Iterator[Any]:
    """A client of the real daemon."""
    from quantyard.engines.docker import connect_docker

    try:
        client = connect_docker(timeout_s=20)
    except EngineError as error:
        if os.environ.get("REQUIRE_DOCKER") == "1":
            pytest.fail(f"REQUIRE_DOCKER=1, but {error.message}")
        pytest.skip(error.message)
    yield client
    client.close()


@pytest.fixture(scope="session")
def images(docker_client: Any, run_folder: Path) -> dict[str, str]:
    """What `make images` says of the images, built if they are not: `builder_image`, `eval_image` …"""
    with FileLock(run_folder / "images.lock"):
        done = run("images", ENGINE="docker")
    if done.returncode != 0 and os.environ.get("REQUIRE_DOCKER") != "1":
        pytest.skip(f"no images: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


@pytest.fixture(scope="session")
def builder_image(images: dict[str, str]) -> str:
    """The builder image's id."""
    return images["builder_image"]


@pytest.fixture(scope="session")
def eval_image(images: dict[str, str]) -> str:
    """The eval image's id."""
    return images["eval_image"]


@pytest.fixture(scope="session")
def server_image(images: dict[str, str]) -> str:
    """The server image's id."""
    return images["server_image"]


@pytest.fixture(scope="session")
def balancer_image() -> str:
    """The image that the manifests name, or its stand-in; BALANCER names another."""
    if given := os.environ.get("BALANCER"):
        return given
    argv = [str(REPO_DIR / "scripts" / "base-images.sh"), "--if-unreachable", "balancer"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pins = read_pins(REPO_DIR / "versions.env")
    return f"{pins['BALANCER_IMAGE']}:{pins['BALANCER_TAG']}"


@pytest.fixture(params=["docker", "local"])
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine in turn, with its tools ready; `local` where the tier has it (see tests/phases.py)."""
    name = str(request.param)
    request.getfixturevalue("builder_image" if name == "docker" else "local_tools")
    return name


@pytest.fixture(scope="session")
def local_tools() -> None:
    """`.venv-local`, set up if it is not."""
    done = run("images", ENGINE="local")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def some_engine(request: pytest.FixtureRequest) -> str:
    """Docker where a daemon answers, else local: for what does not depend on which."""
    try:
        request.getfixturevalue("builder_image")
    except pytest.skip.Exception:
        request.getfixturevalue("local_tools")
        return "local"
    return "docker"


@dataclass(frozen=True)
class Demo:
    """A build of the demo's `DEMO_QUANTS` from nothing, in a store of its own: the plan before it and its answer."""

    engine: str
    model: Path
    artifacts: Path
    plan: dict[str, Any]
    made: dict[str, Any]

    def again(self, **variables: str) -> dict[str, Any]:
        """Another build into the same artifacts."""
        asked = {"MODEL": str(self.model), "QUANT": DEMO_QUANTS, "ENGINE": self.engine}
        return run_json("build", **{**asked, "ARTIFACTS": str(self.artifacts), **variables})

    @property
    def manifest(self) -> dict[str, Any]:
        value = json.loads(Path(self.made["manifest"]).read_text())
        assert isinstance(value, dict)
        return value

    def file(self, quant: str) -> Path:
        return next(Path(f["path"]) for f in self.made["files"] if f["quant"] == quant)

    def lend(self, artifacts: Path, *kinds: str) -> None:
        """Give another store finished stages of these kinds (`convert`, `quantize-Q8_0`)."""
        lend(self.artifacts, artifacts, *kinds)


def lend(lender: Path, borrower: Path, *kinds: str) -> None:
    """Put finished stages of these kinds into another store, as hard links; what they would make is there already.

    A store writes into no file of a finished stage.
    """
    for folder in lender.glob("local/*/*/stages/[!.]*"):
        target = borrower / folder.relative_to(lender)
        if f"{folder.name}-".startswith(tuple(f"{kind}-" for kind in kinds)) and not target.exists():
            partial = target.with_name(f".lent-{target.name}")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(folder, partial, copy_function=_link)
            partial.rename(target)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # the folders of tests are on another file system
        shutil.copy2(source, target)


@pytest.fixture(scope="session")
def demo_source(some_engine: str, run_folder: Path) -> Path:
    """SmolLM2-135M-Instruct in Hugging Face format, as `make demo` makes it; kept between test runs."""
    asked = {"ENGINE": some_engine, "ARTIFACTS": str(REPO_DIR / "artifacts")}
    settings = read_command_request(argparse.Namespace(), os.environ | asked)
    engine, _ = choose_engine(settings.engine, settings.environment, settings.images)
    with FileLock(run_folder / "demo-source.lock"):
        return workflow_demo_folder(settings, engine, LineReporter(Console(stderr=True)))


@pytest.fixture(scope="session")
def built_demo(demo_source: Path, run_folder: Path) -> Callable[[str], Demo]:
    """The build of an engine, made once per test run: converting takes most of the time of a build."""

    @cache
    def build(engine: str) -> Demo:
        artifacts = run_folder / f"artifacts-{engine}"
        asked = {"MODEL": str(demo_source), "QUANT": DEMO_QUANTS, "ENGINE": engine, "ARTIFACTS": str(artifacts)}

        def plan_and_build() -> dict[str, Any]:
            return {"plan": run_json("plan", **asked), "made": run_json("build", **asked)}

        return Demo(engine, demo_source, artifacts, **made_once(run_folder, f"demo-{engine}", plan_and_build))

    return build


@pytest.fixture(scope="session")
def demo_model(
    some_engine: str, demo_source: Path, built_demo: Callable[[str], Demo], run_folder: Path
) -> Path:  # fmt: skip
    """The same, and built in the project's own artifacts, as `make demo` does before it measures."""
    own = REPO_DIR / "artifacts"
    with FileLock(run_folder / "demo-model.lock"):
        if not list((own / "local" / demo_source.name).glob("*/*-Q8_0.gguf")):
            built_demo(some_engine).lend(own, "convert", "quantize", "verify")
        run_json("build", MODEL=str(demo_source), QUANT=DEMO_QUANTS, ENGINE=some_engine, ARTIFACTS=str(own))
    return demo_source


@pytest.fixture(scope="session")
def demo_q4(demo_model: Path) -> Path:
    """The demo model in Q4_K_M, as its last build published it."""
    built = (REPO_DIR / "artifacts" / "local" / demo_model.name).glob("*/*-Q4_K_M.gguf")
    return max(built, key=lambda path: path.stat().st_mtime)


@pytest.fixture(scope="session")
def tiny_model(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that converts in seconds."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny", demo_model)
