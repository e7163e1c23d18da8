"""The command that names the best file for a memory and a speed."""

from __future__ import annotations

import argparse

from quantyard.cli.output import data, people, print_json
from quantyard.cli.render import choice as say
from quantyard.cli.request import request_of
from quantyard.workflows.choose import choose


def choose_file(args: argparse.Namespace) -> None:
    """Name the best file among those that were built and measured, with the reason and the runner-up."""
    request = request_of(args)
    found = choose(request)
    choices, budget, choice = found.choices, found.budget, found.choice
    if choice is None:
        people().print(say.files_table(choices, budget, None))
        people().print(say.conditions_text(choices, budget), soft_wrap=True)
        raise found.refusal(request.model)
    if request.json:
        print_json(say.choice_json(choices, budget, choice))
        return
    data().print(say.files_table(choices, budget, choice))
    data().print()
    data().print(say.choice_text(choices, budget, choice, request.model), soft_wrap=True)
