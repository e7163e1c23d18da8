"""Gate, report and publishing of built and measured files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from quantyard.gate.judge import GateBudgets, load_gate_budgets
from quantyard.plan.api_tests import add_contract_steps
from quantyard.plan.steps import BuildPlan
from quantyard.protocol.gate import GateReport
from quantyard.publish.bundle import (
    CARD,
    PAGE,
    ReleaseBundle,
    ReleaseDestination,
    check_release_gate,
    compose_release,
    judged_release,
    preview_release_licence,
    release_destination,
    release_licence,
)
from quantyard.publish.folder import write_release
from quantyard.publish.progress import UploadProgress
from quantyard.publish.release import Release, find_release, keep_release_gate, release_legal_files
from quantyard.publish.send import Intention, Published, Sender
from quantyard.publish.split import split_release_parts, split_release_plan
from quantyard.requests import BuildRequest, PublishRequest
from quantyard.store.stages import ModelStore
from quantyard.workflows.planning import (
    workflow_files_plan,
    workflow_hashes,
    workflow_hub_access,
    workflow_of_built,
    workflow_plan,
    workflow_with_suite,
)
from quantyard.workflows.reporter import GateJudged, Waiting, WorkflowReporter
from quantyard.workflows.run import run_build_plan, run_plan


@dataclass(frozen=True)
class Publication:
    """The result of publishing: `published`, or after a dry run `intended`.

    Attributes:
        gate: the gate's report.
        where: the Hub's repo, the registry, or both.
        intended: what would be sent; None unless it was a dry run.
        published: what was sent and read back; None after a dry run.
        folder: the local folder with every file of the release.
        endpoint: the Hub's address; None: the default one.
    """

    gate: GateReport
    where: ReleaseDestination
    intended: Intention | None
    published: Published | None
    folder: Path
    endpoint: str | None = None


@dataclass(frozen=True)
class Proposal:
    """What is about to be published.

    Attributes:
        quants: the names of the files' types.
        gate: the gate's report; None for a release that is not built yet.
        intended: every file and its state there; None for a release that is not built yet.
    """

    where: ReleaseDestination
    quants: tuple[str, ...]
    gate: GateReport | None
    intended: Intention | None
    endpoint: str | None


Consent = Callable[[Proposal], None]  # returns if it may be published, and raises if not


def _consent_given(_proposal: Proposal) -> None:
    """For callers to whom the call itself is the consent."""


@dataclass(frozen=True)
class WrittenReport:
    """The paths of the report page (HTML) and the model card (Markdown), as they would be published."""

    page: Path
    card: Path


def publish(
    request: BuildRequest, reporter: WorkflowReporter, consent: Consent = _consent_given
) -> Publication:
    """Publish built and measured files.

    Args:
        consent: asked after every check, before anything is sent; not for a dry run.

    Raises:
        BadRequest: nothing was built or measured, or the destination is not valid.
        GateClosed: a budget is exceeded, undecided or not measured; never for a dry run.
        HubError, EngineError: see errors.py.
    """
    request, source = workflow_of_built(request)
    asked, plan = _asked(request), workflow_files_plan(request, source)
    return _publish(request, asked, plan, _destination(request, asked, plan), reporter, consent)


def release(
    request: BuildRequest, reporter: WorkflowReporter, consent: Consent = _consent_given
) -> Publication:
    """Build, measure, test, compare with the budgets and publish; skip finished stages.

    Args:
        consent: asked before anything runs, since nobody may be there at the end; not for a dry run.

    Raises:
        QuantyardError: as `publish`, and as a build.
    """
    request, source = workflow_of_built(workflow_with_suite(request))
    asked, plan = _asked(request), workflow_plan(request, source)
    assert plan.measuring is not None, "a suite was asked for"
    assert request.measure is not None, "likewise"
    # LIMIT, TASKS and similar settings change the name of the suite.
    request = replace(request, measure=replace(request.measure, suite=plan.measuring.suite.name))
    where = _destination(request, asked, plan)  # an invalid destination is refused before hours of work
    release_licence(plan.source.license, plan.source.card, asked)
    if not asked.dry_run:
        consent(Proposal(where, tuple(quant.name for quant in request.quants), None, None, request.endpoint))
    run_build_plan(request, add_contract_steps(plan, request.threads), reporter)
    return _publish(request, asked, plan, where, reporter, _consent_given)


def gate(request: BuildRequest, reporter: WorkflowReporter) -> GateReport:
    """Compare what was measured with the budgets; publish nothing. An exceeded budget is a finding, not an error.

    Raises:
        BadRequest: nothing was built or measured, or the budgets cannot be read.
    """
    request, source = workflow_of_built(request)
    asked, plan = _asked(request), workflow_files_plan(request, source)
    return _gate_of(_judged(request, asked, plan, load_gate_budgets(asked.gate), reporter))


def report(request: BuildRequest, reporter: WorkflowReporter) -> WrittenReport:
    """Write the model card and the report page.

    Raises:
        BadRequest: nothing was built or measured.
    """
    page = write_release_report(request, _asked(request), reporter)
    return WrittenReport(page, page.with_name(CARD))


def write_release_report(
    request: BuildRequest, asked: PublishRequest, reporter: WorkflowReporter, plan: BuildPlan | None = None
) -> Path:
    """Write card and page; returns the page's path.

    Args:
        plan: the plan that was just built; default: the request's.
    """
    if plan is None:
        request, source = workflow_of_built(request)
        plan = workflow_files_plan(request, source)
    found = _judged(request, asked, plan, load_gate_budgets(asked.gate), reporter)
    return write_release(found.folder, _composed(request, asked, plan, found, reporter).files) / PAGE


# ---- shared parts ------------------------------------------------------------------------------------


def _asked(request: BuildRequest) -> PublishRequest:
    return request.publish or PublishRequest()


def _publish(
    request: BuildRequest, asked: PublishRequest, plan: BuildPlan, where: ReleaseDestination,
    reporter: WorkflowReporter, consent: Consent,
) -> Publication:
    release_licence(plan.source.license, plan.source.card, asked)
    found = _judged(request, asked, plan, where.budgets, reporter)
    gate = _gate_of(found)
    if not asked.dry_run:
        check_release_gate(gate, allow_fail=asked.allow_fail)
    reporter.tell(GateJudged(gate))
    bundle = _composed(request, asked, plan, found, reporter)
    folder = write_release(found.folder, bundle.files)
    sender = Sender(where, found, bundle, workflow_hub_access(request), asked.docker_config, asked.cosign_key)
    if asked.dry_run:
        return Publication(gate, where, sender.intend(), None, folder, request.endpoint)
    if consent is not _consent_given:  # to intend asks the Hub
        consent(Proposal(where, found.quants, gate, sender.intend(), request.endpoint))
    with reporter.steps() as steps:
        sent = sender.send(UploadProgress(steps, len(bundle.files)))
    return Publication(gate, where, None, sent, folder, request.endpoint)


def _destination(request: BuildRequest, asked: PublishRequest, plan: BuildPlan) -> ReleaseDestination:
    return release_destination(asked, workflow_hub_access(request), plan.source.card, len(request.quants))


def _judged(
    request: BuildRequest, asked: PublishRequest, plan: BuildPlan, budgets: GateBudgets, reporter: WorkflowReporter
) -> Release:
    """The release of these files, judged by the gate; the store's manifest records the outcome."""
    local, store = plan.source.local, ModelStore(request.artifacts, plan.source.model)
    found = find_release(
        store.folder, local.folder if local else None, [quant.name for quant in request.quants],
        _suite_of(request), workflow_hashes(request),
    )
    found = judged_release(found, budgets, preview_release_licence(plan.source.license, plan.source.card, asked))
    with store.locked(lambda holder: reporter.tell(Waiting(holder))):
        keep_release_gate(store, found.manifest)
    return found


def _suite_of(request: BuildRequest) -> str:
    """The name of the requested suite; a suite file contains its name."""
    asked = request.measure.suite if request.measure else ""
    if not asked.endswith((".yaml", ".yml")):
        return asked
    from quantyard.plan.suites import find_suite  # imported late: it needs a YAML parser

    return find_suite(asked).suite.name


def _gate_of(found: Release) -> GateReport:
    assert found.manifest.gate is not None, "it was judged"
    return found.manifest.gate


def _composed(
    request: BuildRequest, asked: PublishRequest, plan: BuildPlan, found: Release, reporter: WorkflowReporter
) -> ReleaseBundle:
    """Everything that is published; models above the size limit in parts."""
    splitting = split_release_plan(found, plan.source, asked.split_above_bytes)
    parts = split_release_parts(run_plan(request, splitting, reporter)[0], found) if splitting else {}
    legal = release_legal_files(found, plan.source)
    return compose_release(
        found, asked, preview_release_licence(plan.source.license, plan.source.card, asked), legal, parts
    )
