"""The command `lora`."""

from __future__ import annotations

import argparse

from quantyard.cli.output import print_json, print_line, stderr_console
from quantyard.cli.request import command_request
from quantyard.cli.terminal_reporter import TerminalReporter
from quantyard.workflows.lora import workflow_make_lora


def lora_command(args: argparse.Namespace) -> None:
    request = command_request(args)
    adapter = workflow_make_lora(request, TerminalReporter())
    if request.json:
        from quantyard.cli.json_outputs.building import lora_output

        print_json(lora_output(adapter))
        return
    print_line(adapter.path)
    what = f"Serve its base model with it:  LORA_FILE={adapter.path} docker compose up"
    stderr_console().print_lines(what, markup=False)
