"""Hands a stage its secrets: one line of its stdin. They are in no file, environment, command line or container's
description, so nothing of them stays however the orchestrator ends.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from quantyard.plan.steps import StageSpec
from quantyard.requests import RunEnvironment

SECRETS_ON_STDIN = "--secrets-on-stdin"  # the option that lets a stage read them
_OLD_PREFIX, _OLD_NAME, _OLD_S = "quantyard-", "HF_TOKEN", 600.0


def secrets_line(spec: StageSpec, environment: RunEnvironment) -> bytes:
    """The secrets this stage may see, and no others: the token, and proxies whose address holds a password."""
    given: dict[str, str] = {}
    if "HF_TOKEN" in spec.row.secrets and environment.hf_token:
        given["HF_TOKEN"] = environment.hf_token
    if spec.row.network:
        given |= {name: url for name, url in (environment.proxies or {}).items() if "@" in url}
    return json.dumps(given).encode() + b"\n"


def open_proxies(environment: RunEnvironment) -> Mapping[str, str]:
    """The proxies that anybody may know: these may stand in a stage's environment."""
    return {name: url for name, url in (environment.proxies or {}).items() if "@" not in url}


def clear_leftovers() -> None:
    """Remove the token's file that an earlier version left when it was killed: our own folder, with that file alone.

    Stages read it as they start, so one that is some minutes old serves nobody.
    """
    for place in {os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir(), tempfile.gettempdir()}:
        for folder in Path(place).glob(f"{_OLD_PREFIX}*"):
            with suppress(OSError):
                _clear(folder)


def _clear(folder: Path) -> None:
    found = folder.lstat()
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    if is_ours and [path.name for path in folder.iterdir()] == [_OLD_NAME] and time.time() - found.st_mtime > _OLD_S:
        (folder / _OLD_NAME).unlink()
        folder.rmdir()
