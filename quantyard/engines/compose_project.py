"""The name that compose gives the project of a checkout; images are tagged with it, so that two clones share none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_NAME: Final = "COMPOSE_PROJECT_NAME"
COMPOSE_IMAGES: Final = ("server", "builder")  # which compose.yaml and compose.encoder-decoder.yaml start


def compose_project_name(folder: Path, environment: Mapping[str, str]) -> str:
    """The variable, its line in the folder's .env, or the folder's name in compose's letters: a-z, 0-9, - and _.

    Source: https://docs.docker.com/compose/how-tos/project-name/
    """
    given = environment.get(_NAME) or _in_env_file(folder / ".env")
    return given or re.sub(r"[^a-z0-9_-]", "", folder.resolve().name.lower()).lstrip("_-")


def compose_image_name(image: str, folder: Path, environment: Mapping[str, str]) -> str:
    """The name under which the folder's compose.yaml starts the image `server` or `builder`."""
    return f"quantyard/{image}:{compose_project_name(folder, environment) or 'latest'}"


def _in_env_file(path: Path) -> str:
    """What the file sets; "" if it does not, or is not there."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    found = [line.partition("=")[2] for line in lines if line.partition("=")[0].strip() == _NAME]
    return found[-1].partition(" #")[0].strip().strip("\"'") if found else ""
