"""The commands `publish`, `release`, `report` and `gate`."""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from quantyard.cli.output import print_json, print_line, stderr_console, stdout_console
from quantyard.cli.render import release as say
from quantyard.cli.render.styled import escape_rich_markup
from quantyard.cli.request import command_request
from quantyard.cli.terminal_reporter import TerminalReporter
from quantyard.errors import BadRequest, GateClosed
from quantyard.protocol.gate import GateReport
from quantyard.publish.bundle import check_release_gate
from quantyard.publish.objections import NeedsAgreement
from quantyard.requests import BuildRequest
from quantyard.workflows import release as workflow
from quantyard.workflows.release import Consent, Proposal, Publication

_HOW_TO_CONSENT: Final = "Publish without being asked: YES=1. See what would go where: DRY_RUN=1"


def publish_command(args: argparse.Namespace) -> None:
    """Publish built and measured files."""
    request = command_request(args)
    _print_publication(request, workflow.publish(request, TerminalReporter(), **_release_consent(request)))


def release_command(args: argparse.Namespace) -> None:
    """Build, measure, test, compare with the budgets and publish; skip finished stages."""
    request = command_request(args)
    _print_publication(request, workflow.release(request, TerminalReporter(), **_release_consent(request)))


def report_command(args: argparse.Namespace) -> None:
    """Write the model card and the report page, and show the page."""
    request = command_request(args)
    written = workflow.report(request, TerminalReporter())
    if request.json:
        from quantyard.cli.json_outputs.publishing import report_output

        print_json(report_output(written))
        return
    print_line(written.page)
    if sys.stdout.isatty():
        _show_page_in_browser(written.page)


def _show_page_in_browser(page: Path) -> None:
    """Open the page in a browser with a window. One that takes over the terminal, such as lynx, is not started."""
    import webbrowser

    with suppress(webbrowser.Error):  # there is none
        browser = webbrowser.get()
        if type(browser) is not webbrowser.GenericBrowser:
            browser.open(page.as_uri())


def gate_command(args: argparse.Namespace) -> None:
    """Compare what was measured with the budgets; publish nothing."""
    request = command_request(args)
    found = workflow.gate(request, TerminalReporter())
    if request.json:
        from quantyard.cli.json_outputs.publishing import gate_output

        print_json(gate_output(found))
    else:
        stdout_console().print_lines(say.terminal_gate(found))
    _exit_by_gate(found)


def _print_publication(request: BuildRequest, done: Publication) -> None:
    if request.json:
        from quantyard.cli.json_outputs.publishing import publication_output

        print_json(publication_output(done))
    elif done.published:
        stdout_console().print_lines(say.terminal_published_files(done.published))
    else:
        stdout_console().print_lines(say.terminal_publish_intention(done))
    if done.objections:  # of a dry run
        sys.exit(NeedsAgreement.exit_code)


def _release_consent(request: BuildRequest) -> dict[str, Consent]:
    """How the user is asked; empty if there is nothing to ask.

    Raises:
        BadRequest: there is no terminal to ask on.
    """
    assert request.publish is not None, "the command has it"
    if request.publish.yes or request.publish.dry_run:
        return {}
    if not _can_terminal_ask():
        raise BadRequest("Publishing needs a yes, and there is no terminal to ask on.", _HOW_TO_CONSENT)
    return {"consent": _ask_before_release}


def _can_terminal_ask() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _ask_before_release(proposal: Proposal) -> None:
    """Show what would be published where, and ask.

    Raises:
        BadRequest: the answer is not yes.
    """
    console = stderr_console()
    console.print_lines(say.terminal_proposal(proposal))
    console.print("[bold]Publish this?[/] Type yes, or anything else to stop: ", end="")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise BadRequest("Nothing was published: the answer was not yes.", _HOW_TO_CONSENT)


def _exit_by_gate(gate: GateReport) -> None:
    """Exit with the gate's code; the report is printed already."""
    try:
        check_release_gate(gate, allow_fail=False)
    except GateClosed as closed:
        stderr_console().print_lines(
            f"[bold red]error:[/] {escape_rich_markup(closed.message)} [dim]({closed.kind})[/]")
        sys.exit(closed.code)
