"""The answer of `compare`. Sizes are bytes, divergences nats, speeds tokens per second."""

from __future__ import annotations

from quantyard.cli.json_outputs.base import JsonOutput
from quantyard.protocol.measurements import EvalReport
from quantyard.store.comparison import ComparedFile, NotCompared
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
