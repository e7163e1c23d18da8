"""The commands that list what there is to choose from."""

from __future__ import annotations

import argparse

from quantyard.cli.output import data, print_json
from quantyard.cli.render import build as summary
from quantyard.cli.request import request_of


def quants(args: argparse.Namespace) -> None:
    from quantyard.quants.catalog import QUANTS

    if request_of(args).json:
        print_json({"quants": [summary.quant_json(quant) for quant in QUANTS]})
    else:
        data().print(summary.quants_table(QUANTS))


def models(args: argparse.Namespace) -> None:
    from quantyard.sources.presets import presets

    if request_of(args).json:
        print_json({"models": [summary.preset_json(preset) for preset in presets()]})
    else:
        data().print(summary.presets_text(presets()), soft_wrap=True)
