"""The commands `serve`, `contract` and `image`."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from quantyard.cli.output import print_json, print_line, stderr_console, stdout_console
from quantyard.cli.precedence import compose_environment_of_settings, resolve_settings
from quantyard.cli.render import build as summary
from quantyard.cli.request import command_request
from quantyard.cli.settings_file import read_settings_file
from quantyard.cli.terminal_reporter import TerminalReporter
from quantyard.errors import BadRequest
from quantyard.protocol.exit_codes import Answer


def serve_command(args: argparse.Namespace) -> None:
    from quantyard.workflows.serve import serve

    request, given = command_request(args), resolve_settings(args, os.environ, read_settings_file(Path.cwd()))
    typed = {name for name, one in given.items() if one.text and one.origin in ("option", "variable")}
    if {"MODEL", "MODEL_FILE"} <= typed:
        message = "MODEL and MODEL_FILE are both given: the first is served from now on, the second this time."
        raise BadRequest(message, "Give one of them.")
    if "QUANT" in typed and not request.model:
        hint = "Give the model too: make serve MODEL=org/name QUANT=Q4_K_M, or a file: make serve MODEL_FILE=a.gguf"
        raise BadRequest("QUANT is given without MODEL.", hint)
    if request.serve and request.serve.model_file:
        request = replace(request, model="")
    sys.exit(serve(request, compose_environment_of_settings(request.artifacts, given, os.environ), TerminalReporter()))


def contract_command(args: argparse.Namespace) -> None:
    from quantyard.workflows.build import workflow_check_api

    request = command_request(args)
    reports = workflow_check_api(request, TerminalReporter()).contracts
    if request.json:
        from quantyard.cli.json_outputs.building import contract_output

        print_json(contract_output(reports))
    else:
        stdout_console().print_lines(summary.terminal_contract(reports), markup=False)
    if not all(report.passed for report in reports):
        sys.exit(Answer.API_TEST_FAILED)


def image_command(args: argparse.Namespace) -> None:
    from quantyard.workflows.image import workflow_pack_image

    request = command_request(args)
    images = workflow_pack_image(request, TerminalReporter())
    if request.json:
        from quantyard.cli.json_outputs.building import image_output

        print_json(image_output(images))
        return
    for image in images:
        print_line(image.tag)
    stderr_console().print_lines(summary.terminal_images(images), markup=False)
