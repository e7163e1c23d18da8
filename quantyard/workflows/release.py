"""Gate, report and publishing of built and measured files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quantyard.gate.judge import GateBudgets, load_gate_budgets
from quantyard.hub.files import HubPlace
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
    release_place,
)
from quantyard.publish.files import PublishedFile
from quantyard.publish.folder import write_release
from quantyard.publish.hub.there import HubThere, look_there
from quantyard.publish.objections import (
    Objection,
    card_objections,
    file_objections,
    named_objections,
    refuse_objections,
    source_objections,
    without_agreed,
)
from quantyard.publish.progress import UploadProgress
from quantyard.publish.registry.login import registry_docker_login
from quantyard.publish.registry.readers import registry_readers
from quantyard.publish.release import (
    Release,
    find_release,
    keep_release_gate,
    quants_in_release_folder,
    release_legal_files,
)
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
from quantyard.workflows.reporter import GateJudged, MoreInRelease, Waiting, WorkflowReporter
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
        objections: what has to be agreed to first; empty once it is published.
    """

    gate: GateReport
    where: ReleaseDestination
    intended: Intention | None
    published: Published | None
    folder: Path
    endpoint: str | None = None
    objections: tuple[Objection, ...] = ()


@dataclass(frozen=True)
class Proposal:
    """What is about to be published.

    Attributes:
        quants: the names of the files' types.
        gate: the gate's report; None for a release that is not built yet.
        intended: every file and its state there; None for a release that is not built yet.
        objections: what a yes agrees to.
    """

    where: ReleaseDestination
    quants: tuple[str, ...]
    gate: GateReport | None
    intended: Intention | None
    endpoint: str | None
    objections: tuple[Objection, ...] = ()


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
        NeedsAgreement: it would do what AGREE does not name; never for a dry run, or where `consent` is asked.
        HubError, EngineError: see errors.py.
    """
    request, source = workflow_of_built(request)
    asked, plan = _publish_request(request), workflow_files_plan(request, source)
    return _publish_release(request, asked, plan, _release_destination(request, asked, plan), reporter, consent)


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
    asked, plan = _publish_request(request), workflow_plan(request, source)
    assert plan.measuring is not None, "a suite was asked for"
    assert request.measure is not None, "likewise"
    # LIMIT, TASKS and similar settings change the name of the suite.
    request = replace(request, measure=replace(request.measure, suite=plan.measuring.suite.name))
    where = _release_destination(request, asked, plan)  # an invalid destination is refused before hours of work
    release_licence(plan.source.license, plan.source.card, asked)
    if not asked.dry_run:
        asked = _agreed_before_building(request, asked, plan, where, consent)
    run_build_plan(request, add_contract_steps(plan, request.threads), reporter)
    return _publish_release(request, asked, plan, where, reporter, _consent_given)


def gate(request: BuildRequest, reporter: WorkflowReporter) -> GateReport:
    """Compare what was measured with the budgets; publish nothing. An exceeded budget is a finding, not an error.

    Raises:
        BadRequest: nothing was built or measured, or the budgets cannot be read.
    """
    request, source = workflow_of_built(request)
    asked, plan = _publish_request(request), workflow_files_plan(request, source)
    return _gate_of_release(_judged_release(request, asked, plan, load_gate_budgets(asked.gate), reporter))


def report(request: BuildRequest, reporter: WorkflowReporter) -> WrittenReport:
    """Write the model card and the report page.

    Raises:
        BadRequest: nothing was built or measured.
    """
    page = write_release_report(request, _publish_request(request), reporter)
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
    folder = ModelStore(request.artifacts, plan.source.model).folder
    also = () if asked.only else quants_in_release_folder(folder)
    found = _judged_release(request, asked, plan, load_gate_budgets(asked.gate), reporter, also)
    place = release_place(None, asked, "private" if not asked.public else "gated" if plan.source.card.gated else "")
    files = _composed_release_bundle(request, asked, plan, found, reporter, place, {}).files
    page = write_release(found.folder, files, keep=not asked.only) / PAGE
    _tell_of_other_release_files(request, page.parent, found.quants, files, reporter)
    return page


# ---- shared parts ------------------------------------------------------------------------------------


def _publish_request(request: BuildRequest) -> PublishRequest:
    return request.publish or PublishRequest()


def _publish_release(
    request: BuildRequest, asked: PublishRequest, plan: BuildPlan, where: ReleaseDestination,
    reporter: WorkflowReporter, consent: Consent,
) -> Publication:
    release_licence(plan.source.license, plan.source.card, asked)
    found = _judged_release(request, asked, plan, where.budgets, reporter)
    gate = _gate_of_release(found)
    if not asked.dry_run:
        check_release_gate(gate, allow_fail=asked.allow_fail)
    reporter.tell(GateJudged(gate))
    there = look_there(workflow_hub_access(request), where.hub)
    bundle = _composed_release_bundle(
        request, asked, plan, found, reporter, _release_place(asked, where, there), there.published
    )
    folder = write_release(found.folder, bundle.files)
    _tell_of_other_release_files(request, folder, found.quants, bundle.files, reporter)
    sender = Sender(where, found, bundle, workflow_hub_access(request), asked.docker_config, asked.cosign_key, there)
    objections = without_agreed(
        (*_objections_before_building(asked, plan, where, there), *file_objections(where, there, bundle)), asked.agree
    )
    if asked.dry_run:
        return Publication(gate, where, sender.intend(), None, folder, request.endpoint, objections)
    if consent is _consent_given:
        refuse_objections(objections)
    else:  # to intend asks the Hub
        consent(Proposal(where, found.quants, gate, sender.intend(), request.endpoint, objections))
    with reporter.steps() as steps:
        sent = sender.send(UploadProgress(steps, len(bundle.files)))
    return Publication(gate, where, None, sent, folder, request.endpoint)


def _agreed_before_building(
    request: BuildRequest, asked: PublishRequest, plan: BuildPlan, where: ReleaseDestination, consent: Consent
) -> PublishRequest:
    """The request with what the user has agreed to, asked before hours of work: nobody may be there at their end."""
    there = look_there(workflow_hub_access(request), where.hub)
    stems = {quant.name: f"{plan.source.model.name}-{quant.name}" for quant in request.quants}
    early = (*_objections_before_building(asked, plan, where, there), *named_objections(where, there, stems))
    objections = without_agreed(early, asked.agree)
    if consent is _consent_given:
        refuse_objections(objections)
    consent(
        Proposal(where, tuple(quant.name for quant in request.quants), None, None, request.endpoint, objections)
    )
    return replace(asked, agree=(*asked.agree, *(one.kind for one in objections)))


def _objections_before_building(
    asked: PublishRequest, plan: BuildPlan, where: ReleaseDestination, there: HubThere
) -> Iterator[Objection]:
    """Those that can be told without the files. A registry is asked only where its answer counts."""
    card, readers = plan.source.card, None
    if where.oci and card.gated and "open-registry" not in asked.agree:
        readers = registry_readers(where.oci, registry_docker_login(where.oci.registry, asked.docker_config))
    yield from source_objections(where, there, plan.source.repo_id, card, readers)
    yield from card_objections(where, there)


def _release_place(asked: PublishRequest, where: ReleaseDestination | None, there: HubThere) -> HubPlace:
    return release_place(where, asked, there.closed(where.hub) if where and where.hub else "")


def _release_destination(request: BuildRequest, asked: PublishRequest, plan: BuildPlan) -> ReleaseDestination:
    return release_destination(asked, workflow_hub_access(request), plan.source.card, len(request.quants))


def _judged_release(
    request: BuildRequest, asked: PublishRequest, plan: BuildPlan, budgets: GateBudgets, reporter: WorkflowReporter,
    also: Sequence[str] = (),
) -> Release:
    """The release of these files, judged by the gate; the store's manifest records the outcome.

    Args:
        also: further quants, as far as they can stand in one report with those of the request.
    """
    local, store = plan.source.local, ModelStore(request.artifacts, plan.source.model)
    found = find_release(
        store.folder, local.folder if local else None, [quant.name for quant in request.quants],
        _suite_of_release(request), workflow_hashes(request), also,
    )
    found = judged_release(found, budgets, preview_release_licence(plan.source.license, plan.source.card, asked))
    with store.locked(lambda holder: reporter.tell(Waiting(holder))):
        keep_release_gate(store, found.manifest)
    return found


def _tell_of_other_release_files(
    request: BuildRequest, folder: Path, quants: Sequence[str], files: Sequence[PublishedFile],
    reporter: WorkflowReporter,
) -> None:
    """Tell what the folder `release` holds beside the files that were asked for."""
    names = {file.path for file in files}
    others = sorted(path.name for path in folder.glob("*.gguf") if path.name not in names)
    asked = [quant.name for quant in request.quants]
    if others or set(quants) != set(asked):
        reporter.tell(MoreInRelease(folder, quants, others, request.model, asked))


def _suite_of_release(request: BuildRequest) -> str:
    """The name of the requested suite; a suite file contains its name."""
    asked = request.measure.suite if request.measure else ""
    if not asked.endswith((".yaml", ".yml")):
        return asked
    from quantyard.plan.suites import find_suite  # imported late: it needs a YAML parser

    return find_suite(asked).suite.name


def _gate_of_release(found: Release) -> GateReport:
    assert found.manifest.gate is not None, "it was judged"
    return found.manifest.gate


def _composed_release_bundle(
    request: BuildRequest, asked: PublishRequest, plan: BuildPlan, found: Release, reporter: WorkflowReporter,
    place: HubPlace, before: Mapping[str, str],
) -> ReleaseBundle:
    """Everything that is published; models above the size limit in parts."""
    splitting = split_release_plan(found, plan.source, asked.split_above_bytes)
    parts = split_release_parts(run_plan(request, splitting, reporter)[0], found) if splitting else {}
    legal = release_legal_files(found, plan.source)
    return compose_release(
        found, asked, preview_release_licence(plan.source.license, plan.source.card, asked), legal, parts, place, before
    )
