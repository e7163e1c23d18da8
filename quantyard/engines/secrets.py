"""Passes secrets to a stage in one line of its stdin. They are never in a file, an environment, a command line or the
description of a container, so nothing is left behind if the orchestrator is killed.
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


def engine_secrets_line(spec: StageSpec, environment: RunEnvironment) -> bytes:
    """The secrets that this stage may see: the token, and proxies with a password in their address."""
    given: dict[str, str] = {}
    if "HF_TOKEN" in spec.row.secrets and environment.hf_token:
        given["HF_TOKEN"] = environment.hf_token
    if spec.row.network:
        given |= {name: url for name, url in (environment.proxies or {}).items() if "@" in url}
    return json.dumps(given).encode() + b"\n"


def engine_proxies(environment: RunEnvironment) -> Mapping[str, str]:
    """The proxies without a password, which may be in the environment of a stage."""
    return {name: url for name, url in (environment.proxies or {}).items() if "@" not in url}


def remove_engine_leftovers() -> None:
    """Remove token files that an earlier version left when it was killed: folders of ours with only that file.

    Stages read the file when they start, so one that is some minutes old is not in use.
    """
    for place in {os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir(), tempfile.gettempdir()}:
        for folder in Path(place).glob(f"{_OLD_PREFIX}*"):
            with suppress(OSError):
                _clear_old_engine_secrets(folder)


def _clear_old_engine_secrets(folder: Path) -> None:
    found = folder.lstat()
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    if is_ours and [path.name for path in folder.iterdir()] == [_OLD_NAME] and time.time() - found.st_mtime > _OLD_S:
        (folder / _OLD_NAME).unlink()
        folder.rmdir()
