"""Settings as options of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from quantyard.cli.settings import SETTINGS


def add_options(parser: argparse.ArgumentParser, names: Sequence[str] | None = None) -> None:
    """Give a parser the options of these settings (all of them by default)."""
    for setting in SETTINGS:
        if setting.secret or (names is not None and setting.name not in names):
            continue
        option = "--" + setting.name.lower().replace("_", "-")
        text = f"{setting.help} [{setting.name}={setting.default}]".replace("%", "%%")
        if setting.flag:
            parser.add_argument(option, dest=setting.name, action="store_const", const="1", help=text)
        else:
            parser.add_argument(option, dest=setting.name, metavar="X", help=text)
