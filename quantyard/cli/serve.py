"""The commands `serve`, `contract` and `image`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from quantyard.cli.output import print_json, print_line, stdout_console
from quantyard.cli.precedence import compose_environment, resolve_settings
from quantyard.cli.render import build as summary
from quantyard.cli.request import command_request
from quantyard.cli.settings_file import read_settings_file
from quantyard.cli.terminal_reporter import TerminalReporter
from quantyard.protocol.exit_codes import Answer


def serve_command(args: argparse.Namespace) -> None:
    from quantyard.workflows.serve import serve

    request, given = command_request(args), resolve_settings(args, os.environ, read_settings_file(Path.cwd()))
    sys.exit(serve(request, compose_environment(request.artifacts, given, os.environ), TerminalReporter()))


def contract_command(args: argparse.Namespace) -> None:
    from quantyard.workflows.build import workflow_check_api

    request = command_request(args)
    reports = workflow_check_api(request, TerminalReporter()).contracts
    if request.json:
        print_json({"contracts": [report.model_dump(mode="json") for report in reports]})
    else:
        stdout_console().print(summary.terminal_contract(reports), markup=False, soft_wrap=True)
    if not all(report.passed for report in reports):
        sys.exit(Answer.API_TEST_FAILED)


def image_command(args: argparse.Namespace) -> None:
    from quantyard.workflows.image import workflow_pack_image

    for tag in workflow_pack_image(command_request(args), TerminalReporter()):
        print_line(tag)
