"""The command `compare`."""

from __future__ import annotations

import argparse
import sys

from quantyard.cli.output import print_json, stderr_console, stdout_console
from quantyard.cli.render import comparison as say
from quantyard.cli.render import evaluation as eval_summary
from quantyard.cli.request import command_request
from quantyard.cli.terminal_reporter import TerminalReporter
from quantyard.workflows import compare as workflow
from quantyard.workflows.compare import ComparedFiles


def compare_command(args: argparse.Namespace) -> None:
    """Compare; what could not be measured is named at the end, and the first one's exit code is the command's."""
    request = command_request(args)
    found = workflow.compare(request, TerminalReporter())
    if request.json:
        from quantyard.cli.json_outputs.comparing import compare_output

        print_json(compare_output(found))
    else:
        _print_comparison(found)
    if out := found.record.not_compared:
        stderr_console().print_lines(say.terminal_not_compared(out))
        sys.exit(out[0].exit_code)


def _print_comparison(found: ComparedFiles) -> None:
    stderr_console().print_lines(say.terminal_comparison_head(found.record))
    out = stdout_console()
    out.print(eval_summary.terminal_measured_files(found.report))
    if findings := say.terminal_comparison_findings(found.record):
        out.print_lines(f"\n{findings}")
    out.print_lines(f"\n{say.terminal_comparison_front(found.record)}")
    stderr_console().print_lines(say.terminal_comparison_paths(found.page))
