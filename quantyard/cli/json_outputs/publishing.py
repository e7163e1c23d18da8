"""The answers of `gate`, `publish`, `release`, `report` and `verify`. Sizes are bytes."""

from __future__ import annotations

from collections.abc import Sequence

from quantyard.cli.json_outputs.base import JsonOutput, JsonRow
from quantyard.protocol.gate import BudgetResult, GateReport, Outcome
from quantyard.publish.hub.commit import FileChange, HubPublication
from quantyard.publish.hub.target import State
from quantyard.publish.objections import Objection
from quantyard.publish.send import OciPublication
from quantyard.publish.verify import ReleaseCheck
from quantyard.publish.verify import State as CheckState
from quantyard.workflows.release import Publication, WrittenReport
from quantyard.workflows.verify import Verification


class GateRow(JsonRow):
    """What the gate found."""

    outcome: Outcome  # the worst of the results
    version: int
    budgets: str  # "default", or the name of the user's file
    sha256: str  # of the text of the budgets
    suite: str
    backend: str  # what computed perplexities and divergences, with its build; "" where nothing says it
    results: list[BudgetResult]


class HubRow(JsonRow):
    """What was published on the Hub."""

    url: str
    commit: str
    pull_request: str  # its address; "" without one
    created: bool  # whether the repo is new


class FileRow(JsonRow):
    """What publishing does to one file of the repo."""

    path: str
    size_bytes: int
    state: State


class OciRow(JsonRow):
    """One quant in a registry."""

    reference: str  # registry/repository:tag
    digest: str
    signed: bool


class ObjectionRow(JsonRow):
    """One thing to agree to before it is published."""

    kind: str  # what AGREE takes
    fact: str
    hint: str  # another way than to agree


class PublicationOutput(JsonOutput):
    """The answer of `publish` and `release`, and with the gate alone of `gate`."""

    gate: GateRow
    hub: HubRow | None  # null: not sent to the Hub; after DRY_RUN=1 too
    files: list[FileRow]
    oci: list[OciRow]
    objections: list[ObjectionRow]  # of DRY_RUN=1, which ends with exit code 2 where there are any


def gate_output(gate: GateReport) -> PublicationOutput:
    """The gate's report alone."""
    return _publication_json(gate, None, (), ())


def publication_output(done: Publication) -> PublicationOutput:
    """The publication, or the intended one."""
    if done.published:
        hub = done.published.hub
        return _publication_json(done.gate, hub, hub.changes if hub else (), done.published.oci)
    assert done.intended is not None, "it is one of the two"
    return _publication_json(done.gate, None, done.intended.changes, done.intended.oci, done.objections)


def _publication_json(
    gate: GateReport, hub: HubPublication | None, changes: Sequence[FileChange], oci: Sequence[OciPublication],
    objections: Sequence[Objection] = (),
) -> PublicationOutput:
    return PublicationOutput(
        gate=GateRow(
            outcome=gate.outcome, version=gate.version, budgets=gate.budgets, sha256=gate.sha256, suite=gate.suite,
            backend=gate.backend, results=list(gate.results),
        ),
        hub=_hub_publication_json(hub) if hub else None,
        files=[FileRow(**change.__dict__) for change in changes], oci=[OciRow(**one.__dict__) for one in oci],
        objections=[ObjectionRow(**one.__dict__) for one in objections],
    )


def _hub_publication_json(hub: HubPublication) -> HubRow:
    return HubRow(url=hub.url, commit=hub.commit, pull_request=hub.pull_request, created=hub.created)


class ReportOutput(JsonOutput):
    """The answer of `report`."""

    page: str  # path of the report page, HTML
    card: str  # path of the model card, Markdown
    folder: str  # of the release, with every file that would be published


def report_output(written: WrittenReport) -> ReportOutput:
    """The files that were written."""
    return ReportOutput(page=str(written.page), card=str(written.card), folder=str(written.page.parent))


class CheckRow(JsonRow):
    """One check of a release."""

    what: str
    state: CheckState
    finding: str


class VerifyOutput(JsonOutput):
    """The answer of `verify`."""

    checks: list[CheckRow]
    state: CheckState  # of all: ok only if at least one check could run


def verify_output(found: Verification) -> VerifyOutput:
    """The checks."""
    return VerifyOutput(checks=[_release_check_json(check) for check in found.checks], state=found.state)


def _release_check_json(check: ReleaseCheck) -> CheckRow:
    return CheckRow(what=check.what, state=check.state, finding=check.finding)
