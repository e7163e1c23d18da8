"""The stage `contract`: serves a GGUF and checks every promise of the API.

A server is started on loopback inside the stage's own container (which has no network), with a random key. Every check
in `api_checks` sends plain HTTP, without a client library, since the contract is what is on the wire. A broken
promise does not fail the stage: the report names it, and the gate or the user decides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final, NoReturn

import httpx2
from pydantic import ValidationError

from quantyard.formats.gguf import MEDIUM_WORDS, GgufError, Medium, read_gguf_header, read_gguf_model
from quantyard.formats.purpose import Purpose, gguf_purpose
from quantyard.formatting.numbers import format_elapsed
from quantyard.protocol.api_tests import CheckRecord, ContractReport, ContractRequest, SchemaRate
from quantyard.protocol.base import ExitCode
from quantyard.protocol.predictions import FilePredictions
from quantyard.protocol.runner import Stage, StageFailure, StageOutcome, run_stage
from quantyard.protocol.task_results import Evaluation
from server.api_checks.launch import Launch, ServedModel, Wire
from server.api_checks.outcome import CheckOutcome
from server.api_checks.session import ApiSession, BrokenPromise
from server.api_checks.table import ApiCheck, api_checks_of

REPORT_FILE: Final = "report.json"
_OF_OTHERS: Final[dict[Purpose, str]] = {
    "generate": "the model generates text", "embed": "the model embeds texts, and generates none",
    "rerank": "the model ranks documents, and generates none",
}  # fmt: skip
OnProgress = Callable[[int, int, str], None]


def _why_check_not_applicable(session: ApiSession, check: ApiCheck) -> str:
    """Why there is nothing to check; "" if there is."""
    if session.purpose not in check.purposes:
        return _OF_OTHERS[session.purpose]
    if check.needs_medium and check.needs_medium not in session.media:
        return f"the model reads no {MEDIUM_WORDS[check.needs_medium]}"
    if session.has_chat_template or not check.needs_chat:
        return ""
    if session.is_encoder_decoder:
        return "" if check.takes_plain_text else "an encoder-decoder writes plain text only"
    return "the model has no chat template (a base model)"


def run_contract_check(session: ApiSession, check: ApiCheck) -> tuple[CheckRecord, SchemaRate | None]:
    """Run one check; errors in it become its finding."""
    started = time.perf_counter()
    try:
        why = _why_check_not_applicable(session, check)
        outcome = CheckOutcome("not supported", f"not applicable: {why}") if why else check.run(session)
    except BrokenPromise as broken:
        outcome = CheckOutcome("failed", str(broken))
    except (httpx2.TransportError, OSError) as error:
        outcome = CheckOutcome("failed", f"no answer: {type(error).__name__} {error}".rstrip())
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # checks read answers unguarded
        outcome = CheckOutcome("failed", f"an answer has an unexpected structure: {type(error).__name__}: {error}")
    status, finding = outcome.status, " ".join(outcome.finding.split())
    record = CheckRecord(
        name=check.name, promise=check.promise, status=status, finding=finding,
        duration_s=time.perf_counter() - started, facts=outcome.facts,
    )  # fmt: skip
    return record, outcome.schemas


def run_contract_checks(
    address: str, key: str | None, on_progress: OnProgress = lambda _done, _total, _name: None, label: str = "",
    *, has_chat_template: bool = True, is_encoder_decoder: bool = False, purpose: Purpose = "generate",
    media: tuple[Medium, ...] = (), measured: FilePredictions | None = None, without: Collection[str] = (),
) -> ContractReport:
    """Run every check against the server at `address` ("http://127.0.0.1:8080").

    Args:
        on_progress: called before each check and at the end, with the number of checks done, of all, and its name.
        has_chat_template: of the model; to a base model what chats does not apply.
        is_encoder_decoder: what asks for structure does not apply to it.
        purpose: what it is for, which decides what it is asked.
        media: what it reads besides text.
        measured: what the measurement of the same file predicted.
        without: names of checks that are left out.

    Raises:
        httpx2.TransportError: no server answers at the address.
    """
    started = time.perf_counter()
    session = ApiSession(
        Wire(address.rstrip("/"), key), has_chat_template, is_encoder_decoder, purpose, media, measured
    )
    server = session.server
    records: list[CheckRecord] = []
    schemas: SchemaRate | None = None
    checks = [check for check in api_checks_of(purpose) if check.name not in without]
    for check in checks:
        on_progress(len(records), len(checks), check.name)
        record, found = run_contract_check(session, check)
        records.append(record)
        schemas = found or schemas
    on_progress(len(records), len(checks), "")
    return ContractReport(
        label=label, server=server, model=session.model, checks=tuple(records), schemas=schemas,
        duration_s=time.perf_counter() - started,
    )  # fmt: skip


def contract(stage: Stage, request: ContractRequest) -> StageOutcome:
    """Serve `/in/model/<model_file>` and run the checks.

    Raises:
        StageFailure: 2 if there is no such file, 3, 5 or 70 if the server does not start (see `ServedModel`) or
            ends before the last check.
    """
    model = stage.in_dir / "model" / request.model_file
    if not model.is_file():
        raise StageFailure(ExitCode.BAD_REQUEST, "no-model", f"{model} does not exist.", "Build the model again.")
    projector = _contract_projector(stage, request)
    launch = Launch(
        model.absolute(), stage.scratch_dir.absolute(), stage.environment, request.threads, request.n_ctx,
        request.parallel, request.load_timeout_s, projector,
    )  # fmt: skip
    stage.begin("the server loads the model")
    with ServedModel(launch) as served:
        kind = _kind_of_served_model(model, projector) | {"measured": _contract_measurement(stage, request)}
        stage.log(f"{served.argv[0]} is ready; {len(api_checks_of(kind.get('purpose', 'generate')))} checks")
        report = _checked_contract(stage, served, request.label, kind)
        argv = served.argv
    (stage.files_dir / REPORT_FILE).write_text(report.model_dump_json(indent=2) + "\n")
    _log_contract(stage, report)
    failed = [check.name for check in report.with_status("failed")]
    facts = {"passed": report.passed, "n_checks": len(report.checks), "failed": failed}
    return StageOutcome(facts=facts, tools={"server": report.server}, argv=(argv,))  # type: ignore[arg-type]


def _contract_projector(stage: Stage, request: ContractRequest) -> Path | None:
    """What reads pictures or sound, in 16 bit: the stage that made it may have left one of 8 bit too."""
    if not request.has_projector:
        return None
    found = sorted((stage.in_dir / "projector").glob("mmproj-*.gguf"), key=lambda path: "Q8_0" in path.name)
    if not found:
        message = "The projector is missing."
        raise StageFailure(ExitCode.BAD_REQUEST, "no-projector", message, "Build the model again.")
    return found[0].absolute()


def _contract_measurement(stage: Stage, request: ContractRequest) -> FilePredictions | None:
    """What the measurement of this file predicted; None: it was not measured, or by a version that kept no predictions.

    Raises:
        StageFailure: `measured` (2): the evaluation cannot be read.
    """
    if not request.has_measurement:
        return request.measured
    path = stage.in_dir / "measured" / "evaluation.json"
    try:
        return Evaluation.model_validate_json(path.read_bytes()).predictions
    except (OSError, ValidationError) as error:
        message, hint = f"{path} cannot be read as an evaluation.", "Measure again: make eval"
        raise StageFailure(ExitCode.BAD_REQUEST, "measured", message, hint, str(error)) from error


def _kind_of_served_model(model: Path, projector: Path | None) -> dict[str, Any]:
    """What decides which checks apply."""
    media = read_gguf_header(projector).media if projector else ()
    try:
        header = read_gguf_model(model)
    except GgufError:  # a server that reads it all the same is asked everything
        return {"media": media}
    return {
        "has_chat_template": header.chat_template is not None, "is_encoder_decoder": header.is_encoder_decoder,
        "purpose": gguf_purpose(header), "media": media,
    }  # fmt: skip


def _checked_contract(stage: Stage, served: ServedModel, label: str, kind: dict[str, Any]) -> ContractReport:
    names = [check.name for check in api_checks_of(kind.get("purpose", "generate"))]

    def progress(done: int, total: int, name: str) -> None:
        if done:
            served.check_alive(f"the check {names[done - 1]!r}")
        stage.progress(done, total, "checks", name, begins=True)

    try:
        return run_contract_checks(
            served.address, served.key, progress, label, **kind
        )
    except httpx2.TransportError as error:
        served.check_alive("the checks")
        message = f"The server no longer answers: {error}."
        raise StageFailure(ExitCode.BUG, "serve-silent", message, "Report it, with the log.") from error


def _log_contract(stage: Stage, report: ContractReport) -> None:
    for check in report.checks:
        stage.log(f"{check.status}: {check.name} in {format_elapsed(check.duration_s)}: {check.finding}")


def main() -> NoReturn:
    """Run the stage as this process."""
    run_stage(ContractRequest, contract)


if __name__ == "__main__":
    main()
