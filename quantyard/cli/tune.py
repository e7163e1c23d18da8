"""The command `tune`."""

from __future__ import annotations

import argparse

from quantyard.cli.output import print_json, stderr_console, stdout_console
from quantyard.cli.render import tuning as say
from quantyard.cli.request import command_request
from quantyard.cli.terminal_reporter import TerminalReporter
from quantyard.workflows import tune as workflow


def tune_command(args: argparse.Namespace) -> None:
    """Search a mix of tensor types, make the file, and compare it with a stock quant."""
    request = command_request(args)
    tuned = workflow.tune(request, TerminalReporter())
    if request.json:
        from quantyard.cli.json_outputs.choosing import tune_output

        print_json(tune_output(tuned))
        return
    stderr_console().print(say.terminal_tensor_groups(tuned.sensitivities, tuned.mix))
    stdout_console().print(say.terminal_tuned_files(tuned.gain))
    stdout_console().print_lines(say.terminal_tuning_gain(tuned.gain, tuned.goal, tuned.mix), markup=False)
    again = f"make build MODEL={request.model} RECIPE={tuned.recipe_path}"
    stderr_console().print_lines(f"The recipe: {tuned.recipe_path}\nMake it again:  {again}", markup=False)
