"""Where the project's own files are, in a checkout and installed alike, and its pinned versions.

A wheel carries the sources of the stages and all that images are made of in `quantyard/_project`, laid out as in a
checkout, so that no name of theirs (`builder`, `eval`, `server`) is a package of the user's environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

_PACKAGE_DIR: Final = Path(__file__).resolve().parent
_CARRIED: Final = _PACKAGE_DIR / "_project"
IN_CHECKOUT: Final = not _CARRIED.is_dir()
REPO_DIR: Final = _PACKAGE_DIR.parent if IN_CHECKOUT else _CARRIED


def read_pins(path: Path) -> dict[str, str]:
    """The pins of versions.env."""
    lines = (line.strip() for line in path.read_text().splitlines())
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def default_artifacts_path(environment: Mapping[str, str]) -> Path:
    """Where results go unless the user says otherwise: below $QUANTYARD_HOME, or the current folder."""
    home = environment.get("QUANTYARD_HOME")
    return Path(home) / "artifacts" if home else Path("artifacts")


def local_venv_path(environment: Mapping[str, str], group: str = "local") -> Path:
    """A virtual environment of ENGINE=local: in a checkout its own, else in the user's data folder.

    Args:
        group: `local`, or `openvino`.
    """
    if IN_CHECKOUT:
        return REPO_DIR / f".venv-{group}"
    if home := environment.get("QUANTYARD_HOME"):
        return Path(home).absolute() / f"venv-{group}"
    return default_data_path(environment) / "quantyard" / f"venv-{group}"


def default_data_path(environment: Mapping[str, str]) -> Path:
    """The user's data folder; below the current folder for a user without a home, as in a container."""
    if data := environment.get("XDG_DATA_HOME"):
        return Path(data)
    try:
        home = Path(environment.get("HOME") or Path.home())
    except RuntimeError:  # neither HOME nor a name of the user
        home = Path()
    return home / ".local" / "share"
