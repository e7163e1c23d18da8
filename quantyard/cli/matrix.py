"""The command `matrix`."""

from __future__ import annotations

import argparse
import sys

from quantyard.cli.output import print_json, stderr_console, stdout_console
from quantyard.cli.render import evaluation as eval_summary
from quantyard.cli.render import matrix as say
from quantyard.cli.request import command_request
from quantyard.cli.terminal_reporter import TerminalReporter
from quantyard.formatting.columns import format_columns
from quantyard.workflows import matrix as workflow
from quantyard.workflows.matrix import Matrix


def matrix_command(args: argparse.Namespace) -> None:
    """Run the matrix; failed quants are named at the end, and the first one's exit code is the command's."""
    request = command_request(args)
    found = workflow.matrix(request, TerminalReporter())
    if request.json:
        from quantyard.cli.json_outputs.building import matrix_output

        print_json(matrix_output(found))
    else:
        _print_matrix(found, request.model)
    if failures := found.built.failures:
        stderr_console().print_lines(say.terminal_matrix_failures(failures, others=True))
        sys.exit(next(iter(failures.values())).code)


def _print_matrix(found: Matrix, model: str) -> None:
    measured = found.built.measured
    assert measured is not None, "a matrix has one"
    stderr_console().print_lines(say.terminal_matrix_head(found.built))
    out = stdout_console()
    out.print(eval_summary.terminal_measured_files(measured.report))
    if table := eval_summary.terminal_measured_domains(measured.report):
        out.print()
        out.print(table)
    if front := say.terminal_pareto_front(measured.report):
        out.print_lines(f"\n{front}")
    stderr_console().print_lines(format_columns(say.terminal_matrix_end(found, model)))
