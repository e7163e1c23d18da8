"""The user's defaults: quantyard.toml of the current folder, or [tool.quantyard] of its pyproject.toml.

It must not hold secrets or settings that decide whose code runs here, who sees a token or what is published: such files
are committed and shared, and the current folder may be a downloaded model's that contains a quantyard.toml.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from quantyard.cli.settings import BY_KEY, SETTINGS, Kind, Setting
from quantyard.errors import BadRequest
from quantyard.records import dataclass

NAME: Final = "quantyard.toml"
_MAX_BYTES: Final = 2**20
# By kind: the type of the value in words, and an example.
_TYPES: Final[dict[Kind, tuple[str, str]]] = {
    "text": ("text", '"…"'), "path": ("text", '"…"'), "size": ("text", '"8GiB"'), "flag": ("true or false", "true"),
    "integer": ("an integer", "8"), "decimal": ("a number", "0.05"), "list": ("text or a list of texts", '["…", "…"]'),
    "paths": ("text or a list of texts", '["…", "…"]'),
}  # fmt: skip
_CALLED: Final = {
    bool: "true or false", int: "an integer", float: "a number", str: "text", list: "a list", dict: "a table",
}  # fmt: skip


@dataclass(frozen=True)
class SettingsFile:
    """The settings of one file, as text, by the name of the setting."""

    where: str = ""  # quantyard.toml, or pyproject.toml [tool.quantyard]; empty without a file
    values: Mapping[str, str] = field(default_factory=dict)


def read_settings_file(folder: Path) -> SettingsFile:
    """The settings of this folder. If quantyard.toml exists, pyproject.toml is ignored.

    Raises:
        BadRequest: the file cannot be read, or a setting is not valid.
    """
    if (path := folder / NAME).exists():
        return _checked_settings(NAME, _read_settings_table(path, NAME))
    if (path := folder / "pyproject.toml").exists():
        tools = _read_settings_table(path, path.name).get("tool", {})
        table = tools.get("quantyard") if isinstance(tools, dict) else None
        if table is not None:
            where = "pyproject.toml [tool.quantyard]"
            if not isinstance(table, dict):
                raise BadRequest(f"{where} is not a table.", 'Write: [tool.quantyard] and below it: quant = "Q4_K_M"')
            return _checked_settings(where, table)
    return SettingsFile()


def _read_settings_table(path: Path, name: str) -> dict[str, Any]:
    import tomllib  # imported late: most folders have no such file

    from quantyard.files.own_files import read_named_file

    try:
        return tomllib.loads(read_named_file(path, _MAX_BYTES).decode())
    except OSError as error:
        raise BadRequest(f"{name} cannot be read: {error.strerror}.", f"Check it: ls -l {name}") from error
    except tomllib.TOMLDecodeError as error:
        raise BadRequest(f"{name} is not valid TOML: {error}.", 'Write one setting a line: quant = "Q4_K_M"') from error
    except ValueError as error:  # too large, not a file, or not UTF-8
        raise BadRequest(f"{name} is not a text file in UTF-8 of at most 1 MiB.", f"Check it: file {name}") from error


def _checked_settings(where: str, table: Mapping[str, Any]) -> SettingsFile:
    values = {
        _setting_of_key(where, key, value).name: setting_text(where, key, BY_KEY[key], value)
        for key, value in table.items()
    }
    return SettingsFile(where, values)


def _setting_of_key(where: str, key: str, value: object) -> Setting:
    setting = BY_KEY.get(key)
    if setting is None:
        what = "table" if isinstance(value, dict) else "key"
        hint = f"{_meant_setting_key(key)}List them with their values: quantyard config"
        raise BadRequest(f"{where}: the {what} {key[:80]!r} is unknown.", hint)
    if setting.secret or setting.private:
        message = f"{where}: {key!r} cannot be set in a file: it is or may contain a secret, and files are shared."
        hint = f"Set the variable {setting.name}" + ("; or store the token: hf auth login" if setting.secret else ".")
        raise BadRequest(message, hint)
    if setting.trusted:
        message = (
            f"{where}: {key!r} cannot be set in a file: it decides whose code runs here, who sees a token or what is "
            "published, and a downloaded folder may contain such a file."
        )
        raise BadRequest(message, f"Give the option {setting.option}, or set the variable {setting.name}.")
    return setting


def _meant_setting_key(key: str) -> str:
    plain = key.lower().replace("_", "-")
    known = [setting.key for setting in SETTINGS if setting.in_file]
    close = [plain] if plain in known else difflib.get_close_matches(plain, known, n=1)
    return f"Did you mean {close[0]!r}? " if close else ""


def setting_text(where: str, key: str, setting: Setting, value: object) -> str:
    """A value of TOML or Python as text, as a user would type it.

    Raises:
        BadRequest: the value is not of the setting's kind.
    """
    kind = setting.kind
    if isinstance(value, bool):
        text = str(int(value)) if kind == "flag" else None
    elif isinstance(value, str):
        text = value if kind in ("text", "path", "size", "list", "paths") else None
    elif isinstance(value, list):
        texts = all(isinstance(item, str) for item in value)
        text = ",".join(value) if texts and kind in ("list", "paths") else None
    elif isinstance(value, int):
        text = str(value) if kind in ("integer", "decimal") else None
    elif isinstance(value, float):
        text = _toml_decimal_as_text(value) if kind == "decimal" else None
    else:
        text = None
    if text is None:
        wanted, example = _TYPES[kind]
        called = _CALLED.get(type(value), "a date or a time")
        raise BadRequest(f"{where}: {key!r} must be {wanted}, not {called}.", f"Write: {key} = {example}")
    return text


def _toml_decimal_as_text(value: float) -> str:
    return f"{Decimal(repr(float(value))):f}"  # as it was typed: neither 5e-05 nor 0.050000000000000003
