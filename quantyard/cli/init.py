"""The command `init`, which writes quantyard.toml."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Final

from quantyard.cli.commands import KEPT
from quantyard.cli.output import print_json, print_line, stderr_console
from quantyard.cli.precedence import resolve_settings
from quantyard.cli.render.styled import escape_rich_markup
from quantyard.cli.request import command_request
from quantyard.cli.settings import BY_NAME, SETTINGS
from quantyard.cli.settings_file import NAME, SettingsFile, read_settings_file
from quantyard.cli.settings_text import settings_file_text
from quantyard.errors import BadRequest
from quantyard.files.atomic import write_file_atomically
from quantyard.requests import BuildRequest
from quantyard.workflows.init import Detected, FoundSetting, detect_settings

_HOW_TO_CONSENT: Final = "Write it anyway: YES=1"


def init_command(args: argparse.Namespace) -> None:
    """Write a settings file with what was given and what was found; an existing one only after a yes."""
    request, folder = command_request(args), Path.cwd()
    before = read_settings_file(folder)
    _ask_before_settings_file(request, folder, before)
    detected = detect_settings(request, folder)
    settings = _settings_to_write(args, before, detected)
    text = settings_file_text(settings, detected.title, detected.not_looked_up)
    write_file_atomically(folder / NAME, text.encode())
    if request.json:
        from quantyard.cli.json_outputs.looking import init_output

        print_json(init_output(folder / NAME, settings, detected.not_looked_up))
        return
    _print_settings_written(folder / NAME, settings, detected)


def _settings_to_write(args: argparse.Namespace, before: SettingsFile, detected: Detected) -> list[FoundSetting]:
    """What was given, in this call or in the file before, and what was found of the rest; in the order of `--help`."""
    found = {one.name: one for one in detected.settings}
    for name, given in resolve_settings(args, os.environ, before).items():
        if given.text and given.origin != "default" and name in KEPT:
            whys = {"option": "given as an option", "variable": "given as a variable", "file": f"as in {before.where}"}
            found[name] = FoundSetting(name, given.text, whys[given.origin])
    return [found[setting.name] for setting in SETTINGS if setting.name in found]


def _ask_before_settings_file(request: BuildRequest, folder: Path, before: SettingsFile) -> None:
    """Ask before a file is replaced, or one of pyproject.toml no longer counts.

    Raises:
        BadRequest: the answer is not yes, or there is no terminal to ask on.
    """
    path = folder / NAME
    if path.exists() or path.is_symlink():
        fact = f"{NAME} exists already."
    elif before.where:
        fact = f"The settings are in {before.where}, which no longer counts beside a {NAME}."
    else:
        return
    if request.publish and request.publish.yes:
        return
    if not is_terminal_here():
        raise BadRequest(fact, _HOW_TO_CONSENT)
    console = stderr_console()
    console.print(fact, markup=False)
    console.print("[bold]Write a new one?[/] Its settings are kept. Type yes, or anything else to stop: ", end="")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise BadRequest("Nothing was written: the answer was not yes.", _HOW_TO_CONSENT)


def is_terminal_here() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def _print_settings_written(path: Path, settings: list[FoundSetting], detected: Detected) -> None:
    console = stderr_console()
    for one in settings:
        value = escape_rich_markup(one.value)
        console.print(f"  {BY_NAME[one.name].key:<10} {value}  [dim]{escape_rich_markup(one.why)}[/]", soft_wrap=True)
    for what in detected.not_looked_up:
        console.print(f"Not looked up: {what}", markup=False, soft_wrap=True)
    after = "Change it as you like; then type: make plan. What counts, and from where: make config"
    console.print(after, markup=False, soft_wrap=True)
    print_line(path)
