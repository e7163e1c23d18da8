"""The answers of `compare` and `bump`. Sizes are bytes, divergences nats, speeds tokens per second."""

from __future__ import annotations

from quantyard.cli.json_outputs.base import ErrorFacts, JsonOutput
from quantyard.metrics.regression import MetricChange
from quantyard.protocol.estimates import Estimate
from quantyard.protocol.measurements import EvalReport
from quantyard.store.comparison import ComparedFile, NotCompared
from quantyard.workflows.bump import Bumped
from quantyard.workflows.compare import ComparedFiles


class CompareOutput(JsonOutput):
    """The answer of `compare`."""

    model: str
    commit: str  # of the Hub, or the digest of a local source
    suite: str
    baseline: str
    ran: list[str]  # labels of the stages that this call ran
    files: list[ComparedFile]  # ours first; the baseline is in the report alone
    not_compared: list[NotCompared]  # files and places that could not be measured
    report: EvalReport
    page: str  # path
    record: str  # path of comparison.json


def compare_output(found: ComparedFiles) -> CompareOutput:
    """The comparison."""
    record = found.record
    return CompareOutput(
        model=record.model, commit=record.commit, suite=record.report.suite.name, baseline=record.baseline,
        ran=list(found.built.ran), files=list(record.files), not_compared=list(record.not_compared),
        report=record.report, page=str(found.page), record=str(found.record_path),
    )


class BumpOutput(JsonOutput):
    """The answer of `bump`."""

    model: str
    llama_cpp: str  # as it was named; "" for the configured one
    worse: bool  # then the exit code is 46
    recorded_tools: dict[str, str]
    tools: dict[str, str]
    same_conversion: bool | None  # null: the source is a GGUF
    conversion_kld: Estimate | None  # of the new conversion from the recorded one, nats; null: not measured
    files: list[MetricChange]
    failed: dict[str, ErrorFacts]  # by the step's label
    store: str  # the folder of the new files
    report: EvalReport | None  # on changed files and the recorded ones; null: no file changed


def bump_output(found: Bumped) -> BumpOutput:
    """What changed."""
    failed = {
        label: ErrorFacts(
            kind=error.kind, message=error.message, hint=error.hint, detail=error.detail, exit_code=error.code,
        )
        for label, error in found.failures.items()
    }
    return BumpOutput(
        model=found.model, llama_cpp=found.llama_cpp, worse=found.is_worse, recorded_tools=dict(found.recorded_tools),
        tools=dict(found.tools), same_conversion=found.same_conversion, conversion_kld=found.conversion_kld,
        files=list(found.changes), failed=failed,
        store=str(found.store), report=found.report,
    )
