# ruff: noqa: INP001 (a helper of scripts, not a package)
"""The pages on commands and settings."""

from __future__ import annotations

import re
from collections.abc import Iterator

from reference.markdown import REPO_DIR, code_text, table_text

from quantyard.cli import COMMANDS
from quantyard.cli.settings import GROUPS, SETTINGS


def _targets() -> list[tuple[str, str]]:
    return re.findall(r"^([a-z0-9-]+):.*?## (.*)$", (REPO_DIR / "Makefile").read_text(), re.MULTILINE)


def commands_page() -> Iterator[str]:
    """Targets of make, and commands with their settings."""
    yield (
        "`make` and the program behind it, `quantyard`, have the same commands; the variables of one are the options "
        "of the other."
    )
    yield "## Targets of make"
    yield table_text(("target", "what it does"), ((code_text(f"make {name}"), text) for name, text in _targets()))
    yield "## Commands of the program"
    yield "[Settings](settings.md) says what each setting means. `quantyard COMMAND --help` shows a command's own."
    for command in COMMANDS:
        yield f"### {command.name}"
        yield command.help
        names = [s.name for s in SETTINGS] if command.settings is None else list(dict.fromkeys(command.settings))
        others = [name for name in names if name not in command.typical]
        if command.typical:
            yield "Settings: " + ", ".join(map(code_text, command.typical)) + "."
        if others:
            yield ("Also: " if command.typical else "Settings: ") + ", ".join(map(code_text, others)) + "."


def settings_page() -> Iterator[str]:
    """Every setting with its default and the commands that take it."""
    yield (
        "Each setting is a variable (`make build HF_ENDPOINT=…`, or in the environment) and an option of the program "
        "(`quantyard build --hf-endpoint …`). An option wins over a variable, and that over a file."
    )
    yield (
        "`quantyard.toml` may hold a setting too ([Set defaults](../how-to/configure.md)), except those marked with *: "
        "they are secret, or decide whose code runs here, who sees a token or what is published."
    )
    for group in GROUPS:
        yield f"## {group.capitalize()}"
        rows = (
            (code_text(s.name) + ("" if s.in_file else " *"), code_text(s.default), s.help, _takers(s.name))
            for s in SETTINGS if s.group == group
        )
        yield table_text(("variable", "default", "meaning", "commands"), rows)
    yield "## Serving with compose"
    yield "What `docker compose up` reads, from the environment or from `.env`:"
    yield table_text(("variable", "default", "meaning"), _compose_variables())


def _takers(setting: str) -> str:
    """The commands that it changes, or those that it does not, whichever is shorter."""
    using = [command for command in COMMANDS if command.settings and command.name != "init"]  # it writes them down
    takers = [command.name for command in using if setting in command.settings]
    others = [command.name for command in using if setting not in command.settings]
    return "all but " + ", ".join(others) if len(others) < len(takers) // 3 else ", ".join(takers)


def _compose_variables() -> Iterator[tuple[str, str, str]]:
    """The assignments of .env.example, each with the comment above it."""
    said: list[str] = []
    for line in (REPO_DIR / ".env.example").read_text().splitlines():
        if found := re.fullmatch(r"#?([A-Z_]+)=(.*)", line):
            yield code_text(found[1]), code_text(found[2]), " ".join(said)
            said = []
        elif line.startswith("# ") and not line.startswith("# ----"):
            said.append(line[2:])
        else:
            said = []
