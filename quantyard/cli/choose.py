"""The command `choose`."""

from __future__ import annotations

import argparse

from quantyard.cli.output import print_json, stderr_console, stdout_console
from quantyard.cli.render import choice as say
from quantyard.cli.request import command_request
from quantyard.workflows.choose import choose


def choose_command(args: argparse.Namespace) -> None:
    """Name the best of the built and measured files, with the reason and the runner-up."""
    request = command_request(args)
    found = choose(request)
    choices, budget, choice = found.choices, found.budget, found.choice
    if choice is None:
        stderr_console().print(say.terminal_choice_table(choices, budget, None))
        stderr_console().print_lines(say.terminal_choice_conditions(choices, budget))
        raise found.refusal(request.model)
    if request.json:
        from quantyard.cli.json_outputs.choosing import choose_output

        print_json(choose_output(choices, budget, choice, say.choice_reason(choices, choice)))
        return
    stdout_console().print(say.terminal_choice_table(choices, budget, choice))
    stdout_console().print()
    stdout_console().print_lines(say.terminal_choice(choices, budget, choice, request.model))
