"""The commands that judge, show and publish what was built."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from quantyard.cli.output import data, people, print_json, print_line, reporter_for
from quantyard.cli.render import release as say
from quantyard.cli.render.styled import escape
from quantyard.cli.run import built_for, plan_of, request_of, run_plan
from quantyard.errors import GateClosed
from quantyard.gate.judge import Budgets, load_budgets
from quantyard.hub.client import HubAccess
from quantyard.plan.api_tests import add_contract
from quantyard.plan.steps import BuildPlan
from quantyard.protocol.gate import GateReport
from quantyard.publish.bundle import (
    PAGE,
    Bundle,
    Destination,
    check_gate,
    compose,
    destination,
    judged,
    licence_of,
    licence_so_far,
)
from quantyard.publish.folder import write_release
from quantyard.publish.progress import UploadProgress
from quantyard.publish.release import Release, find_release, keep_gate, legal_files
from quantyard.publish.send import Sender
from quantyard.publish.split import parts_of, split_plan
from quantyard.requests import BuildRequest, MeasureRequest, PublishRequest
from quantyard.store.artifacts import HashCache, ModelStore

_SUITE = "quick"


def publish(args: argparse.Namespace) -> None:
    """Publish what was built and measured before."""
    request, asked = _asked(args)
    plan = _built_plan(request)
    _publish(request, asked, plan, _destination(request, asked, plan))


def release(args: argparse.Namespace) -> None:
    """Build, measure, test, judge and publish: whatever of it is not done yet."""
    request, asked = _asked(args)
    measure = request.measure or MeasureRequest()
    request = replace(request, measure=replace(measure, suite=measure.suite or _SUITE))
    plan = plan_of(request)
    assert plan.measuring is not None, "a suite was asked for"
    # LIMIT, TASKS and the like make another suite of it, whose name tells.
    request = replace(request, measure=replace(measure, suite=plan.measuring.suite.name))
    where = _destination(request, asked, plan)  # what can be refused is, before hours of work
    licence_of(plan.source.license, plan.source.card, asked)
    built_for(request, add_contract(plan, request.threads))
    _publish(request, asked, plan, where)


def report(args: argparse.Namespace) -> None:
    """Write the card and the page of what was built and measured, and show the page."""
    request, asked = _asked(args)
    page = write_report(request, asked)
    print_line(page)
    if sys.stdout.isatty():
        import webbrowser

        webbrowser.open(page.as_uri())


def gate(args: argparse.Namespace) -> None:
    """Hold the budgets against what was measured; publish nothing."""
    request, asked = _asked(args)
    report = _gate_of(_judged(request, asked, _built_plan(request), load_budgets(asked.gate)))
    if request.json:
        print_json(say.release_json(report, (), (), None))
    else:
        data().print(say.gate_text(report), soft_wrap=True)
    _end(report)


def _end(gate: GateReport, *, allow_fail: bool = False) -> None:
    """End with the gate's exit code; what it found is on the screen already."""
    try:
        check_gate(gate, allow_fail=allow_fail)
    except GateClosed as closed:
        people().print(f"[bold red]error:[/] {escape(closed.message)}", soft_wrap=True)
        sys.exit(closed.code)


def write_report(request: BuildRequest, asked: PublishRequest, plan: BuildPlan | None = None) -> Path:
    """The page's path; the card is beside it. Both as they would be published. `plan`: what was just built."""
    plan = plan or _built_plan(request)
    found = _judged(request, asked, plan, load_budgets(asked.gate))
    return write_release(found.folder, _composed(request, asked, plan, found).files) / PAGE


def _publish(request: BuildRequest, asked: PublishRequest, plan: BuildPlan, where: Destination) -> None:
    licence_of(plan.source.license, plan.source.card, asked)
    found = _judged(request, asked, plan, where.budgets)
    gate = _gate_of(found)
    if not asked.dry_run:
        check_gate(gate, allow_fail=asked.allow_fail)
    people().print(say.gate_text(gate), soft_wrap=True)
    bundle = _composed(request, asked, plan, found)
    write_release(found.folder, bundle.files)
    sender = Sender(where, found, bundle, _access(request), asked.docker_config, asked.cosign_key)
    if asked.dry_run:
        _show(request, where, gate, sender)
        _end(gate, allow_fail=asked.allow_fail)
    else:
        _send(request, gate, sender, len(bundle.files))


def _show(request: BuildRequest, where: Destination, gate: GateReport, sender: Sender) -> None:
    found = sender.intend()
    if request.json:
        print_json(say.release_json(gate, found.changes, found.oci, None))
    else:
        data().print(say.intention_text(where, found, request.endpoint), soft_wrap=True)


def _send(request: BuildRequest, gate: GateReport, sender: Sender, n_files: int) -> None:
    with reporter_for(people()) as reporter:
        done = sender.send(UploadProgress(reporter, n_files))
    if request.json:
        print_json(say.release_json(gate, done.hub.changes if done.hub else (), done.oci, done.hub))
    else:
        data().print(say.published_text(done), soft_wrap=True)


# ---- what they have in common ------------------------------------------------------------------------


def _asked(args: argparse.Namespace) -> tuple[BuildRequest, PublishRequest]:
    request = request_of(args)
    assert request.publish is not None
    return request, request.publish


def _access(request: BuildRequest) -> HubAccess:
    return HubAccess(request.endpoint, request.hf_token)


def _built_plan(request: BuildRequest) -> BuildPlan:
    """The plan of the build alone: which model it is, and where its files are."""
    return plan_of(replace(request, measure=None))


def _destination(request: BuildRequest, asked: PublishRequest, plan: BuildPlan) -> Destination:
    return destination(asked, _access(request), plan.source.card, len(request.quants))


def _judged(request: BuildRequest, asked: PublishRequest, plan: BuildPlan, budgets: Budgets) -> Release:
    """The release of these files, judged; the store's manifest remembers how."""
    local, store = plan.source.local, ModelStore(request.artifacts, plan.source.model)
    found = find_release(
        store.folder, local.folder if local else None, [quant.name for quant in request.quants],
        _suite_of(request), HashCache(request.artifacts / ".hashes.json"),
    )
    found = judged(found, budgets, licence_so_far(plan.source.license, plan.source.card, asked))
    with store.locked(lambda holder: people().print(f"waiting: {holder} is building this model", markup=False)):
        keep_gate(store, found.manifest)
    return found


def _suite_of(request: BuildRequest) -> str:
    """The name of the suite asked for; a file holds its own."""
    asked = request.measure.suite if request.measure else ""
    if not asked.endswith((".yaml", ".yml")):
        return asked
    from quantyard.plan.suites import find_suite  # imported late: it needs a YAML parser

    return find_suite(asked).suite.name


def _gate_of(found: Release) -> GateReport:
    assert found.manifest.gate is not None, "it was judged"
    return found.manifest.gate


def _composed(request: BuildRequest, asked: PublishRequest, plan: BuildPlan, found: Release) -> Bundle:
    """Everything that is published, models above the limit in parts."""
    splitting = split_plan(found, plan.source, asked.split_above_bytes)
    parts = parts_of(run_plan(request, splitting)[0], found) if splitting else {}
    legal = legal_files(found, plan.source)
    return compose(found, asked, licence_so_far(plan.source.license, plan.source.card, asked), legal, parts)
