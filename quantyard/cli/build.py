"""The commands that plan, build and measure."""

from __future__ import annotations

import argparse

from quantyard.cli.output import print_json, print_line, stderr_console, stdout_console
from quantyard.cli.render import build as summary
from quantyard.cli.request import command_request
from quantyard.cli.terminal_reporter import TerminalReporter
from quantyard.execution.manifest_writer import Measured
from quantyard.requests import BuildRequest
from quantyard.workflows import build as workflow
from quantyard.workflows.planning import plan as plan_workflow
from quantyard.workflows.results import Built


def plan_command(args: argparse.Namespace) -> None:
    request = command_request(args)
    planned = plan_workflow(request)
    if request.json:
        from quantyard.cli.json_outputs.building import plan_output

        print_json(plan_output(planned))
        return
    stdout_console().print_lines(summary.terminal_plan(planned))
    planned.check_disk()


def build_command(args: argparse.Namespace) -> None:
    request = command_request(args)
    print_built_files(request, workflow.build(request, TerminalReporter()))


def eval_command(args: argparse.Namespace) -> None:
    request = command_request(args)
    print_built_files(request, workflow.evaluate(request, TerminalReporter()))


def print_built_files(request: BuildRequest, built: Built) -> None:
    """Print the result of a build or an evaluation."""
    if request.json:
        from quantyard.cli.json_outputs.building import build_output

        print_json(build_output(built))
        return
    stderr_console().print_lines(summary.terminal_built(built))
    if built.measured:
        _print_measured(built.measured)
        return
    for file in built.files:
        print_line(file.path)


def _print_measured(measured: Measured) -> None:
    from quantyard.cli.render import evaluation as eval_summary  # imported late: a build without measuring needs none
    from quantyard.cli.render.cache_table import terminal_cache_types
    from quantyard.cli.render.openvino_table import terminal_openvino_files
    from quantyard.cli.render.speed_table import terminal_speed_tests

    stderr_console().print_lines(eval_summary.terminal_report_paths(measured))
    out = stdout_console()
    out.print(eval_summary.terminal_measured_files(measured.report))
    measured_tables = (
        terminal_speed_tests, terminal_cache_types, terminal_openvino_files, eval_summary.terminal_measured_domains,
        eval_summary.terminal_measured_tasks, eval_summary.terminal_measured_behaviours,
    )  # fmt: skip
    for table in filter(None, (table_of(measured.report) for table_of in measured_tables)):
        out.print()
        out.print(table)
