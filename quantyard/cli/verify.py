"""The command `verify`."""

from __future__ import annotations

import argparse
import sys

from quantyard.cli.output import print_json, stdout_console
from quantyard.cli.render import release as say
from quantyard.cli.request import command_request
from quantyard.cli.terminal_reporter import TerminalReporter
from quantyard.protocol.exit_codes import Answer
from quantyard.workflows import verify as workflow


def verify_command(args: argparse.Namespace) -> None:
    """Check a file, a folder or a repo against its manifest."""
    request = command_request(args)
    found = workflow.verify(request, TerminalReporter())
    if request.json:
        from quantyard.cli.json_outputs.publishing import verify_output

        print_json(verify_output(found))
    else:
        stdout_console().print_lines(say.terminal_verify_checks(found.checks))
    if found.state != "ok":
        sys.exit(Answer.VERIFY_FAILED)
