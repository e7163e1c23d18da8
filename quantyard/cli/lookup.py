"""The commands `quants` and `models`, which list what can be chosen."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from quantyard.cli.output import print_json, stderr_console, stdout_console
from quantyard.cli.render import build as summary
from quantyard.cli.request import command_request
from quantyard.errors import BadRequest
from quantyard.requests import BuildRequest

if TYPE_CHECKING:
    from quantyard.sources.presets import Preset

_WIDE: Final = 100  # characters of a line


def quants_command(args: argparse.Namespace) -> None:
    """List the quantization types; with FIND, those that hold the text."""
    from quantyard.quants.catalog import QUANTS

    request = command_request(args)
    found = [quant for quant in QUANTS if _lookup_row_holds(request.find, quant.name, quant.use)]
    _refuse_empty_lookup(found, "quantization type", request)
    if request.json:
        from quantyard.cli.json_outputs.looking import quants_output

        print_json(quants_output(found))
    else:
        stdout_console().print(summary.terminal_quants(found))


def models_command(args: argparse.Namespace) -> None:
    """List the models with a short name, one line each; with FIND, those that hold the text, with their notes."""
    from quantyard.sources.presets import shipped_presets

    request = command_request(args)
    found = [preset for preset in shipped_presets() if _lookup_row_holds(request.find, preset.name, preset.repo)]
    _refuse_empty_lookup(found, "model with a short name", request)
    if request.json:
        from quantyard.cli.json_outputs.looking import models_output

        print_json(models_output(found))
    else:
        _print_presets(found, searched=bool(request.find))


def _print_presets(found: Sequence[Preset], *, searched: bool) -> None:
    out = stdout_console()
    shown = summary.terminal_presets(found, searched=searched, wide=out.width >= _WIDE)
    if isinstance(shown, str):
        out.print_lines(shown)
    else:
        out.print(shown)
    if not searched or len(found) > summary.MOST_PRESETS_WHOLE:
        stderr_console().print_lines(f"\nRepo, quants and notes of one: make models FIND={found[-1].name}")


def _lookup_row_holds(text: str, *fields: str) -> bool:
    return any(text.lower() in field.lower() for field in fields)


def _refuse_empty_lookup(found: Sequence[object], what: str, request: BuildRequest) -> None:
    """Refuse a FIND that no row holds.

    Raises:
        BadRequest: nothing was found.
    """
    if not found:
        raise BadRequest(f"No {what} holds {request.find[:80]!r}.", f"List all: make {request.command}")
