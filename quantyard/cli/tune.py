"""The command that searches the best mix of tensor types for a size, or for a divergence."""

from __future__ import annotations

import argparse

from quantyard.cli.output import data, people, print_json
from quantyard.cli.render import tuning as say
from quantyard.cli.request import request_of
from quantyard.cli.terminal_reporter import TerminalReporter
from quantyard.workflows import tune as workflow


def tune(args: argparse.Namespace) -> None:
    """Measure how much each group of tensors matters, choose types, make the file, compare it with a stock quant."""
    request = request_of(args)
    tuned = workflow.tune(request, TerminalReporter())
    if request.json:
        print_json(say.tuned_json(tuned))
        return
    people().print(say.groups_table(tuned.sensitivities, tuned.mix))
    data().print(say.files_table(tuned.gain))
    data().print(say.gain_text(tuned.gain, tuned.goal, tuned.mix), markup=False, soft_wrap=True)
    again = f"make build MODEL={request.model} RECIPE={tuned.recipe_path}"
    people().print(f"The recipe: {tuned.recipe_path}\nMake it again:  {again}", markup=False, soft_wrap=True)
