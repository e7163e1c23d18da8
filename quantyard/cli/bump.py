"""The command `bump`."""

from __future__ import annotations

import argparse
import sys

from quantyard.cli.output import print_json, stderr_console, stdout_console
from quantyard.cli.render import bump as say
from quantyard.cli.request import command_request
from quantyard.cli.terminal_reporter import TerminalReporter
from quantyard.protocol.exit_codes import Answer
from quantyard.workflows import bump as workflow


def bump_command(args: argparse.Namespace) -> None:
    """Compare two llama.cpp; the exit code tells whether a file got worse."""
    request = command_request(args)
    found = workflow.bump(request, TerminalReporter())
    if request.json:
        from quantyard.cli.json_outputs.comparing import bump_output

        print_json(bump_output(found))
    else:
        stdout_console().print_lines(say.terminal_bump(found))
        stderr_console().print_lines(say.terminal_bump_end(found, request.model, request.engine))
    if found.is_worse:
        sys.exit(Answer.BUMP_WORSE)
