"""Writes quantyard.toml: each setting with what it means, valid as it stands."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from quantyard.cli.command_names import as_typed_command
from quantyard.cli.settings import BY_NAME, Setting
from quantyard.formatting.printable import printable_line
from quantyard.workflows.init import FoundSetting

_WIDTH: Final = 100
_HEAD: Final = """\
# Settings of Quantyard for {title}: every command that is typed in this folder takes them.
# A variable (QUANT=Q8_0) or an option (--quant Q8_0) wins over this file. What a command would take, and
# from where: make config
# Every setting can stand here but secrets and permissions, which are variables: a file is shared.
"""
# The settings that the file shows although nothing is known of them, as comments, each with an example.
_EXAMPLES: Final[Mapping[str, str]] = {
    "MODEL": "org/name", "QUANT": "Q4_K_M,Q8_0", "IMATRIX": "auto", "SUITE": "standard", "GATE": "gate.yaml",
    "REPO": "me/name-GGUF", "LICENSE": "apache-2.0", "ENGINE": "local", "ARTIFACTS": "../artifacts",
}  # fmt: skip


def settings_file_text(found: Sequence[FoundSetting], title: str, not_looked_up: Sequence[str]) -> str:
    """The text of a settings file with these settings, in the order of `--help`."""
    values = {one.name: one for one in found}
    parts = [as_typed_command(_HEAD.format(title=printable_line(title) or "one model"))]
    if not_looked_up:
        parts.append("\n".join(_toml_comment(f"Not looked up: {what}") for what in not_looked_up) + "\n")
    for name, setting in BY_NAME.items():
        if name in values:
            parts.append(
                "\n".join([*_toml_comments(setting, values[name].why), _toml_line(setting, values[name].value)]) + "\n"
            )
        elif name in _EXAMPLES:
            parts.append("\n".join([*_toml_comments(setting), f"# {_toml_line(setting, _EXAMPLES[name])}"]) + "\n")
    return "\n".join(parts)


def _toml_comments(setting: Setting, why: str = "") -> Iterator[str]:
    yield _toml_comment(as_typed_command(setting.help))
    if why:
        yield _toml_comment(f"Here: {why}")


def _toml_comment(text: str) -> str:
    return textwrap.fill(" ".join(printable_line(text).split()), _WIDTH, initial_indent="# ", subsequent_indent="# ")


def _toml_line(setting: Setting, value: str) -> str:
    return f"{setting.key} = {_setting_as_toml(setting, value)}"


def _setting_as_toml(setting: Setting, value: str) -> str:
    """A value as TOML writes its kind; JSON's strings are TOML's."""
    if setting.kind == "flag":
        return "true" if value.lower() in ("1", "true", "yes", "on") else "false"
    if setting.kind in ("integer", "decimal"):
        return value if not value.startswith(".") else f"0{value}"
    parts = [part.strip() for part in value.split(",") if part.strip()]
    if setting.kind in ("list", "paths") and len(parts) > 1:
        return f"[{', '.join(_toml_string(part) for part in parts)}]"
    return _toml_string(value)


def _toml_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
