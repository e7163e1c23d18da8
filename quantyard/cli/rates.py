"""The command `rates`."""

from __future__ import annotations

import argparse

from quantyard.cli.output import print_json, stderr_console
from quantyard.cli.render import build as summary
from quantyard.cli.request import command_request
from quantyard.cli.terminal_reporter import TerminalReporter
from quantyard.workflows.rates import workflow_rates


def rates_command(args: argparse.Namespace) -> None:
    request = command_request(args)
    timed = workflow_rates(request, TerminalReporter())
    if request.json:
        from quantyard.cli.json_outputs.building import rates_output

        print_json(rates_output(timed))
    else:
        stderr_console().print_lines(summary.terminal_rates(timed.samples, timed.seconds), markup=False)
