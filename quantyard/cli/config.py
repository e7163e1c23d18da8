"""`quantyard config`: the value of each setting, and its origin."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

from quantyard.cli.network_request import command_hub_token
from quantyard.cli.output import print_json, stdout_console
from quantyard.cli.precedence import GivenSetting, resolve_settings
from quantyard.cli.render.config import terminal_config
from quantyard.cli.settings import SETTINGS, Setting
from quantyard.cli.settings_file import read_settings_file


def config_command(args: argparse.Namespace) -> None:
    file = read_settings_file(Path.cwd())
    given = resolve_settings(args, os.environ, file)
    rows = [(setting, *_shown_setting(setting, given[setting.name], file.where, os.environ)) for setting in SETTINGS]
    if given["JSON"].text.lower() in ("1", "true", "yes", "on"):
        from quantyard.cli.json_outputs.looking import ConfigOutput, SettingRow

        told = [
            SettingRow(name=setting.name, option=setting.option or None, value=value, source=source)
            for setting, value, source in rows
        ]
        print_json(ConfigOutput(file=file.where or None, settings=told))
    else:
        stdout_console().print(terminal_config(rows))


def _shown_setting(setting: Setting, given: GivenSetting, file: str, environment: Mapping[str, str]) -> tuple[str, str]:
    """The value and its origin; a secret is shown as "(set)"."""
    sources = {"option": f"option {setting.option}", "variable": f"variable {setting.name}", "file": file}
    source = sources.get(given.origin, "default")
    if setting.secret and not given.text and command_hub_token(environment):
        return "(set)", "hf auth login"
    if setting.name == "ARTIFACTS" and given.origin == "default" and environment.get("QUANTYARD_HOME"):
        source = "variable QUANTYARD_HOME"
    return ("(set)" if setting.secret or setting.private else given.text) if given.text else "", source
