"""The Python API: the commands as functions that return objects.

    import quantyard

    built = quantyard.build("org/name", quant="Q4_K_M", engine="local", progress=print)
    built.files[0].path

`quantyard/__init__.py` exports these functions. See docs/how-to/python-api.md.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Unpack

from quantyard.api.call import Progress, api_reporter, api_request, document_api_call, translate_api_errors
from quantyard.api.settings import (
    BuildSettings,
    BumpSettings,
    ChooseSettings,
    CompareSettings,
    EvaluateSettings,
    GateSettings,
    LoraSettings,
    MachineSettings,
    MatrixSettings,
    PlanSettings,
    PublishSettings,
    ReleaseSettings,
    ReportSettings,
    TuneSettings,
    VerifySettings,
)
from quantyard.protocol.api_tests import ContractReport
from quantyard.protocol.gate import GateReport
from quantyard.requests import BuildRequest
from quantyard.workflows import build as building
from quantyard.workflows import bump as bumping
from quantyard.workflows import choose as choosing
from quantyard.workflows import compare as comparing
from quantyard.workflows import matrix as matrices
from quantyard.workflows import planning
from quantyard.workflows import release as releasing
from quantyard.workflows import tune as tuning
from quantyard.workflows import verify as verifying
from quantyard.workflows.bump import Bumped
from quantyard.workflows.choose import Chosen
from quantyard.workflows.compare import ComparedFiles
from quantyard.workflows.demo import Demo
from quantyard.workflows.doctor import DoctorFinding
from quantyard.workflows.lora import Adapter
from quantyard.workflows.matrix import Matrix
from quantyard.workflows.release import Publication, WrittenReport
from quantyard.workflows.results import Built, Planned
from quantyard.workflows.tune import Tuned
from quantyard.workflows.verify import Verification

Model = str | os.PathLike[str]


@document_api_call("build", BuildSettings)
def build(model: Model, *, progress: Progress = None, **settings: Unpack[BuildSettings]) -> Built:
    """Fetch, convert, quantize and verify a model; skip finished stages.

    Args:
        model: a repo of the Hub, `org/name[@revision]`; a folder; a GGUF; or a preset's name.
        progress: called with each line of progress.

    Raises:
        BadRequest: the request is not valid; nothing has run.
        HubError: the network failed, or the Hub refused the request.
        OutOfResources: disk or memory ran out; `NotEnoughDisk` before a byte is downloaded.
        EngineError: Docker or the local tools are missing or do not work.
        StageFailed: a stage failed; stages that finished before it are kept.
    """
    request = api_request("build", settings, MODEL=model)
    with translate_api_errors():
        return building.build(request, api_reporter(progress))


@document_api_call("eval", EvaluateSettings)
def evaluate(model: Model, *, progress: Progress = None, **settings: Unpack[EvaluateSettings]) -> Built:
    """Measure what quantization cost; missing files are built first. The report is `Built.report`.

    Args:
        model: as of `build`.
        progress: called with each line of progress.

    Raises:
        NotScored: the model does not expose token log-probabilities, so it cannot be measured.
        QuantyardError: as `build`.
    """
    request = api_request("eval", settings, MODEL=model)
    with translate_api_errors():
        return building.evaluate(request, api_reporter(progress))


@document_api_call("contract", BuildSettings)
def contract(
    model: Model, *, progress: Progress = None, **settings: Unpack[BuildSettings]
) -> tuple[ContractReport, ...]:
    """Serve each file on loopback and test its API; missing files are built first.

    A check that fails is a finding of the report, not an error: see `ContractReport.passed`.

    Args:
        model: as of `build`.
        progress: called with each line of progress.

    Raises:
        QuantyardError: as `build`.
    """
    request = api_request("contract", settings, MODEL=model)
    with translate_api_errors():
        return building.workflow_check_api(request, api_reporter(progress)).contracts


@document_api_call("plan", PlanSettings)
def plan(model: Model, **settings: Unpack[PlanSettings]) -> Planned:
    """Plan a build, an evaluation (`suite`) or a matrix (`quants`): stages, disk, memory and time. Nothing runs.

    Args:
        model: as of `build`.

    Raises:
        BadRequest: the request is not valid.
        HubError: the network failed, or the Hub refused the request.
    """
    request = api_request("plan", settings, MODEL=model)
    with translate_api_errors():
        return planning.plan(request)


@document_api_call("matrix", MatrixSettings)
def matrix(model: Model, *, progress: Progress = None, **settings: Unpack[MatrixSettings]) -> Matrix:
    """Make and measure many quants in one run; failed quants are in `Matrix.built.failures` and do not stop the others.

    Args:
        model: as of `build`.
        progress: called with each line of progress.

    Raises:
        StageFailed: no quant could be made, or the baseline failed.
        QuantyardError: as `build`.
    """
    request = api_request("matrix", settings, MODEL=model)
    with translate_api_errors():
        return matrices.matrix(request, api_reporter(progress))


@document_api_call("compare", CompareSettings)
def compare(
    model: Model, repos: Model | Sequence[Model], *, progress: Progress = None, **settings: Unpack[CompareSettings]
) -> ComparedFiles:
    """Measure GGUF files that others made of a model beside ours, against our baseline, after checking them.

    A file that cannot be had or is not of this model is in `ComparedFiles.failures`, and does not stop the others.

    Args:
        model: as of `build`.
        repos: repos of the Hub, folders, GGUF files, `ollama:name:tag` (its store), `ollama://name:tag` (its registry).
        progress: called with each line of progress.

    Raises:
        QuantyardError: no file of others could be measured: the first one's error; or as `build`.
    """
    request = api_request("compare", settings, MODEL=model, REPOS=repos)
    with translate_api_errors():
        return comparing.compare(request, api_reporter(progress))


@document_api_call("bump", BumpSettings)
def bump(model: Model, *, progress: Progress = None, **settings: Unpack[BumpSettings]) -> Bumped:
    """Build and measure with another llama.cpp (`llama_cpp`) beside the recorded one; nothing recorded is replaced.

    What got worse is a finding, not an error: see `Bumped.is_worse`.

    Args:
        model: as of `build`.
        progress: called with each line of progress.

    Raises:
        BadRequest: nothing was built yet.
        QuantyardError: as `build`.
    """
    request = api_request("bump", settings, MODEL=model)
    with translate_api_errors():
        return bumping.bump(request, api_reporter(progress))


@document_api_call("tune", TuneSettings)
def tune(model: Model, *, progress: Progress = None, **settings: Unpack[TuneSettings]) -> Tuned:
    """Search a mix of tensor types for a file size (`target_size`) or a divergence (`target_kld`); make and measure it.

    Args:
        model: as of `build`.
        progress: called with each line of progress.

    Raises:
        BadRequest: no goal or two goals are given, or no mix reaches the goal; the message names the nearest.
        QuantyardError: as `build`.
    """
    request = api_request("tune", settings, MODEL=model)
    with translate_api_errors():
        return tuning.tune(request, api_reporter(progress))


@document_api_call("choose", ChooseSettings)
def choose(model: Model, **settings: Unpack[ChooseSettings]) -> Chosen:
    """The best of the measured files for a memory size and a speed; `Chosen.best` is the file to take.

    Args:
        model: as of `build`.

    Raises:
        BadRequest: nothing was measured, or no file meets the limits; the hint names what would help.
    """
    request = api_request("choose", settings, MODEL=model)
    with translate_api_errors():
        found = choosing.choose(request)
        if found.choice is None:
            raise found.refusal(request.model)
        return found


@document_api_call("gate", GateSettings)
def gate(model: Model, *, progress: Progress = None, **settings: Unpack[GateSettings]) -> GateReport:
    """Compare what was measured with the budgets; publish nothing. An exceeded budget is a finding, not an error.

    Args:
        model: as of `build`.
        progress: called with each line of progress.

    Raises:
        BadRequest: nothing was built or measured, or the budgets cannot be read.
    """
    request = api_request("gate", settings, MODEL=model)
    with translate_api_errors():
        return releasing.gate(request, api_reporter(progress))


@document_api_call("report", ReportSettings)
def report(model: Model, *, progress: Progress = None, **settings: Unpack[ReportSettings]) -> WrittenReport:
    """Write the model card and the report page of what was built and measured.

    Args:
        model: as of `build`.
        progress: called with each line of progress.

    Raises:
        BadRequest: nothing was built or measured.
    """
    request = api_request("report", settings, MODEL=model)
    with translate_api_errors():
        return releasing.report(request, api_reporter(progress))


@document_api_call("publish", PublishSettings)
def publish(model: Model, *, progress: Progress = None, **settings: Unpack[PublishSettings]) -> Publication:
    """Publish what was built and measured: to the Hub (`repo`), to a registry (`oci`), or both.

    With `dry_run=True` nothing is sent; `Publication.intended` holds what would be sent.

    Args:
        model: as of `build`.
        progress: called with each line of progress.

    Raises:
        BadRequest: nothing was built or measured, or the destination is not valid.
        GateClosed: a budget is exceeded, undecided or not measured; never for a dry run.
        HubError, EngineError: sending failed.
    """
    request = api_request("publish", settings, MODEL=model)
    with translate_api_errors():
        return releasing.publish(request, api_reporter(progress))


@document_api_call("release", ReleaseSettings)
def release(model: Model, *, progress: Progress = None, **settings: Unpack[ReleaseSettings]) -> Publication:
    """Build, measure, test, compare with the budgets and publish; skip finished stages.

    Args:
        model: as of `build`.
        progress: called with each line of progress.

    Raises:
        QuantyardError: as `build`, `evaluate` and `publish`.
    """
    request = api_request("release", settings, MODEL=model)
    with translate_api_errors():
        return releasing.release(request, api_reporter(progress))


@document_api_call("verify", VerifySettings)
def verify(*, progress: Progress = None, **settings: Unpack[VerifySettings]) -> Verification:
    """Check a published repo (`repo`), or a folder or a file (`file`), against its manifest.

    A check that fails is a finding, not an error: see `Verification.state`.

    Args:
        progress: called with each line of progress.

    Raises:
        BadRequest: the file does not exist, or is not named in a manifest beside it.
        HubError: the repo cannot be downloaded.
    """
    request = api_request("verify", settings)
    with translate_api_errors():
        return verifying.verify(request, api_reporter(progress))


@document_api_call("lora", LoraSettings)
def lora(adapter: Model, *, progress: Progress = None, **settings: Unpack[LoraSettings]) -> Adapter:
    """Convert a LoRA adapter in PEFT format to GGUF, to be served on top of its base model.

    Args:
        adapter: a repo of the Hub, `org/name[@revision]`, or a folder.
        progress: called with each line of progress.

    Raises:
        QuantyardError: as `build`.
    """
    from quantyard.workflows.lora import workflow_make_lora

    request = api_request("lora", settings, ADAPTER=adapter)
    with translate_api_errors():
        return workflow_make_lora(request, api_reporter(progress))


@document_api_call("doctor", MachineSettings)
def doctor(**settings: Unpack[MachineSettings]) -> list[DoctorFinding]:
    """Check this machine; every finding comes with a remedy."""
    from quantyard.workflows.doctor import workflow_doctor

    return workflow_doctor(api_request("doctor", settings))


@document_api_call("demo", MachineSettings)
def demo(*, progress: Progress = None, **settings: Unpack[MachineSettings]) -> Demo:
    """Build and measure a real 135M model; needs no account anywhere.

    Args:
        progress: called with each line of progress.

    Raises:
        QuantyardError: as `build`.
    """
    from quantyard.workflows.demo import demo

    request: BuildRequest = api_request("demo", settings)
    with translate_api_errors():
        return demo(request, api_reporter(progress))
