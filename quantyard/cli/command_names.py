"""Rewrites commands in messages for this installation: `make build …` in a checkout, `quantyard build …` elsewhere."""

from __future__ import annotations

import re
from typing import Final

from quantyard.cli.settings import BY_NAME
from quantyard.paths import IN_CHECKOUT, REPO_DIR

_COMMAND: Final = re.compile(r"\bmake (?P<verb>[a-z]+(?:-[a-z]+)*)(?P<settings>(?: +[A-Z][A-Z_]*=[^\s`]*[^\s`.,;:)])*)")
_COMPOSE: Final = re.compile(r"(?:MODEL_FILE=(?P<file>\S+) )?docker compose up")
_SETTING: Final = re.compile(r" +([A-Z][A-Z_]*)=(\S*)")
_SCRIPTS: Final = {"base-images": REPO_DIR / "scripts" / "base-images.sh"}


def as_typed_command(text: str, *, in_checkout: bool = IN_CHECKOUT) -> str:
    """The text with every `make build MODEL=x` in the form to type in this installation."""
    return text if in_checkout else _COMPOSE.sub(_command_without_compose, _COMMAND.sub(_command_without_make, text))


def _command_without_make(match: re.Match[str]) -> str:
    from quantyard.cli.commands import COMMANDS  # imported late: only errors and help outside a checkout need it

    verb, settings = match["verb"], match["settings"]
    if verb in _SCRIPTS:
        return f"{_SCRIPTS[verb]}{settings}"
    names = {command.name for command in COMMANDS}
    if verb.removesuffix("-help") in names and verb not in names:
        return f"quantyard {verb.removesuffix('-help')} --help"
    if verb not in names:
        return match[0]
    return f"quantyard {verb}" + _SETTING.sub(_make_variable_as_option, settings)


def _command_without_compose(match: re.Match[str]) -> str:
    file = match["file"]
    return "quantyard serve" + (f" --model-file {file}" if file else "")


def _make_variable_as_option(match: re.Match[str]) -> str:
    name, value = match[1], match[2]
    option = f" --{name.lower().replace('_', '-')}"
    return option if name in BY_NAME and BY_NAME[name].flag else f"{option} {value}"
