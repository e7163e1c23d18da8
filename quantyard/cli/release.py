"""The commands that judge, show and publish what was built."""

from __future__ import annotations

import argparse
import sys

from quantyard.cli.output import data, people, print_json, print_line
from quantyard.cli.render import release as say
from quantyard.cli.render.styled import escape
from quantyard.cli.request import request_of
from quantyard.cli.terminal_reporter import TerminalReporter
from quantyard.errors import GateClosed
from quantyard.protocol.gate import GateReport
from quantyard.publish.bundle import check_gate
from quantyard.requests import BuildRequest
from quantyard.workflows import release as workflow
from quantyard.workflows.release import Publication


def publish(args: argparse.Namespace) -> None:
    """Publish what was built and measured before."""
    request = request_of(args)
    _end(request, workflow.publish(request, TerminalReporter()))


def release(args: argparse.Namespace) -> None:
    """Build, measure, test, judge and publish: whatever of it is not done yet."""
    request = request_of(args)
    _end(request, workflow.release(request, TerminalReporter()))


def report(args: argparse.Namespace) -> None:
    """Write the card and the page of what was built and measured, and show the page."""
    page = workflow.report(request_of(args), TerminalReporter()).page
    print_line(page)
    if sys.stdout.isatty():
        import webbrowser

        webbrowser.open(page.as_uri())


def gate(args: argparse.Namespace) -> None:
    """Compare what was measured with the limits; publish nothing."""
    request = request_of(args)
    found = workflow.gate(request, TerminalReporter())
    if request.json:
        print_json(say.release_json(found, (), (), None))
    else:
        data().print(say.gate_text(found), soft_wrap=True)
    _exit_by(found)


def _end(request: BuildRequest, done: Publication) -> None:
    if request.json:
        print_json(say.publication_json(done))
    elif done.published:
        data().print(say.published_text(done.published), soft_wrap=True)
    else:
        data().print(say.intention_text(done), soft_wrap=True)
    if done.intended:
        assert request.publish is not None, "the command has it"
        _exit_by(done.gate, allow_fail=request.publish.allow_fail)


def _exit_by(gate: GateReport, *, allow_fail: bool = False) -> None:
    """End with the gate's exit code; what it found is on the screen already."""
    try:
        check_gate(gate, allow_fail=allow_fail)
    except GateClosed as closed:
        people().print(f"[bold red]error:[/] {escape(closed.message)} [dim]({closed.kind})[/]", soft_wrap=True)
        sys.exit(closed.code)
