"""The commands `doctor`, `demo` and `images`, which set up a machine and try it."""

from __future__ import annotations

import argparse
import sys

from quantyard.cli.build import print_built_files
from quantyard.cli.output import print_json, print_line, stderr_console, stdout_console
from quantyard.cli.render import build as summary
from quantyard.cli.request import command_request
from quantyard.cli.terminal_reporter import TerminalReporter
from quantyard.protocol.exit_codes import Answer


def doctor_command(args: argparse.Namespace) -> None:
    from quantyard.workflows import doctor

    request = command_request(args)
    findings = doctor.workflow_doctor(request)
    if request.json:
        from quantyard.cli.json_outputs.looking import doctor_output

        print_json(doctor_output(findings))
    else:
        stdout_console().print_lines(summary.terminal_doctor(findings))
    if any(finding.state == "missing" for finding in findings):
        sys.exit(Answer.DOCTOR_FAILED)


def demo_command(args: argparse.Namespace) -> None:
    from quantyard.workflows.demo import demo

    request = command_request(args)
    found = demo(request, TerminalReporter())
    print_built_files(request, found.built)
    stderr_console().print_lines(summary.terminal_demo_end(found))


def images_command(args: argparse.Namespace) -> None:
    from quantyard.workflows.image import workflow_prepare_tools

    described = workflow_prepare_tools(command_request(args), TerminalReporter())
    lines = (f"{name}={value}" for found in described.values() for name, value in found.items())
    for line in dict.fromkeys(lines):  # common lines once
        print_line(line)
