"""The precedence of settings: an option wins over a variable, a variable over the file."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from quantyard.cli.settings import SETTINGS, Setting
from quantyard.cli.settings_file import SettingsFile
from quantyard.paths import REPO_DIR, default_artifacts_path
from quantyard.records import dataclass

Origin = Literal["option", "variable", "file", "default"]
NO_FILE: Final = SettingsFile()
_SERVED: Final = (
    "MODEL_FILE", "MMPROJ_FILE", "PORT", "CONTEXT_SIZE", "CACHE_TYPE", "THREADS", "N_GPU_LAYERS", "MEMORY", "PARALLEL",
)  # fmt: skip


@dataclass(frozen=True)
class GivenSetting:
    """The value of a setting, as text, and its origin."""

    text: str
    origin: Origin


def resolve_settings(
    args: argparse.Namespace, environment: Mapping[str, str], file: SettingsFile = NO_FILE
) -> dict[str, GivenSetting]:
    """The value of every setting. An empty variable counts as not set."""
    return {setting.name: _given_setting(setting, args, environment, file) for setting in SETTINGS}


def _given_setting(
    setting: Setting, args: argparse.Namespace, environment: Mapping[str, str], file: SettingsFile
) -> GivenSetting:
    option = getattr(args, setting.name, None)
    if option is not None:
        return GivenSetting(str(option), "option")
    if variable := environment.get(setting.name):
        return GivenSetting(variable, "variable")
    if setting.name in file.values:
        return GivenSetting(file.values[setting.name], "file")
    default = str(default_artifacts_path(environment)) if setting.name == "ARTIFACTS" else setting.default
    return GivenSetting(default, "default")


def compose_environment_of_settings(
    artifacts: Path, given: Mapping[str, GivenSetting], environment: Mapping[str, str]
) -> dict[str, str]:
    """The environment for compose.yaml: the variables, and the serving settings from options and the settings file. Its
    folders are those of this store, not of the folder of compose.yaml.
    """
    told = {name: given[name].text for name in _SERVED if given[name].origin in ("option", "file")}
    if artifacts != REPO_DIR / "artifacts":
        told = {"MODEL_FILE": str(artifacts / "served"), "KEYS_DIR": str(artifacts / "keys"), **told}
    if given["MODEL_FILE"].text:
        told["MODEL_FILE"] = str(Path(given["MODEL_FILE"].text).absolute())
    if given["MMPROJ_FILE"].text:
        told["MMPROJ_FILE"] = str(Path(given["MMPROJ_FILE"].text).absolute())
    return {**environment, **told}
