"""The commands that set a machine up, and try it."""

from __future__ import annotations

import argparse
import sys

from quantyard.cli.build import print_built
from quantyard.cli.output import data, people, print_json, print_line
from quantyard.cli.render import build as summary
from quantyard.cli.request import request_of
from quantyard.cli.terminal_reporter import TerminalReporter
from quantyard.protocol.exit_codes import Answer


def doctor(args: argparse.Namespace) -> None:
    from quantyard.workflows import doctor

    request = request_of(args)
    findings = doctor.examine(request)
    if request.json:
        print_json({"findings": [finding.__dict__ for finding in findings]})
    else:
        data().print(summary.doctor_text(findings), soft_wrap=True)
    if any(finding.state == "missing" for finding in findings):
        sys.exit(Answer.DOCTOR_FAILED)


def demo(args: argparse.Namespace) -> None:
    from quantyard.workflows.demo import demo

    request = request_of(args)
    found = demo(request, TerminalReporter())
    print_built(request, found.built)
    people().print(summary.demo_end(found), soft_wrap=True)


def images(args: argparse.Namespace) -> None:
    from quantyard.workflows.image import prepare_tools

    described = prepare_tools(request_of(args), TerminalReporter())
    lines = (f"{name}={value}" for found in described.values() for name, value in found.items())
    for line in dict.fromkeys(lines):  # what they have in common once
        print_line(line)
