"""The commands `quants` and `models`, which list what can be chosen."""

from __future__ import annotations

import argparse

from quantyard.cli.output import print_json, stdout_console
from quantyard.cli.render import build as summary
from quantyard.cli.request import command_request


def quants_command(args: argparse.Namespace) -> None:
    from quantyard.quants.catalog import QUANTS

    if command_request(args).json:
        print_json({"quants": [summary.quant_json(quant) for quant in QUANTS]})
    else:
        stdout_console().print(summary.terminal_quants(QUANTS))


def models_command(args: argparse.Namespace) -> None:
    from quantyard.sources.presets import shipped_presets

    if command_request(args).json:
        print_json({"models": [summary.preset_json(preset) for preset in shipped_presets()]})
    else:
        stdout_console().print(summary.terminal_presets(shipped_presets()), soft_wrap=True)
