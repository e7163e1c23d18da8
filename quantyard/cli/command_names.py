"""How a command is called where this program runs: `make build …` in a checkout, `quantyard build …` elsewhere."""

from __future__ import annotations

import re
from typing import Final

from quantyard.paths import IN_CHECKOUT, REPO_DIR

_COMMAND: Final = re.compile(r"\bmake (?P<verb>[a-z]+(?:-[a-z]+)*)(?P<settings>(?: +[A-Z][A-Z_]*=[^\s`]*[^\s`.,;:)])*)")
_SETTING: Final = re.compile(r" ([A-Z][A-Z_]*)=")
_SCRIPTS: Final = {"base-images": REPO_DIR / "scripts" / "base-images.sh"}


def as_typed(text: str, *, in_checkout: bool = IN_CHECKOUT) -> str:
    """A text of ours, with every `make build MODEL=x` in it as one types it here."""
    return text if in_checkout else _COMMAND.sub(_without_make, text)


def _without_make(match: re.Match[str]) -> str:
    from quantyard.cli.commands import COMMANDS

    verb, settings = match["verb"], match["settings"]
    if verb in _SCRIPTS:
        return f"{_SCRIPTS[verb]}{settings}"
    if verb not in {command.name for command in COMMANDS}:
        return match[0]
    return f"quantyard {verb}" + _SETTING.sub(lambda s: f" --{s[1].lower().replace('_', '-')} ", settings)
