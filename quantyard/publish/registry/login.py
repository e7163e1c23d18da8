"""The login for a registry: from docker's config.json, or from the credential helper that it names."""

from __future__ import annotations

import base64
import binascii
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantyard.errors import BadRequest
from quantyard.publish.registry.errors import LoginNeeded, plain_registry_text

DOCKER_HUB = "docker.io"
_DOCKER_HUB_KEY = "https://index.docker.io/v1/"  # docker's own key for Docker Hub
_IDENTITY_TOKEN_USER = "<token>"  # noqa: S105  (a helper's user name for an identity token)
_HELPER_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class RegistryCredentials:
    """A name with its secret, or an identity token."""

    username: str = ""
    secret: str = ""
    identity_token: str = ""

    def __repr__(self) -> str:
        """Without the secret, so that no log or traceback can show it."""
        return f"Credentials(username={self.username!r})"


def registry_docker_login(registry: str, config: Path) -> RegistryCredentials | None:
    """The login that docker keeps for a registry; None without one.

    Args:
        config: docker's config.json; it need not exist.

    Raises:
        BadRequest: the file cannot be read.
        LoginNeeded: its credential helper is missing or broken.
    """
    settings = _settings(config)
    keys = _keys(registry)
    helpers = [settings.get("credHelpers", {}).get(key) for key in keys] + [settings.get("credsStore")]
    helper = next((str(name) for name in helpers if name), None)
    found = (_from_helper(helper, key, registry) for key in keys if helper)
    kept = (_from_file(settings.get("auths", {}).get(key), registry) for key in keys)
    return next((login for logins in (found, kept) for login in logins if login), None)


def _settings(config: Path) -> Mapping[str, Any]:
    hint = f"Repair the file, or type: mv {config} {config}.bak, and log in again."
    try:
        settings = json.loads(config.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BadRequest(f"Docker's {config} cannot be read: {plain_registry_text(str(error))}.", hint) from error
    tables = (settings.get(key, {}) for key in ("auths", "credHelpers")) if isinstance(settings, dict) else (None,)
    if not all(isinstance(table, dict) for table in tables):
        raise BadRequest(f"Docker's {config} is not a valid docker configuration.", hint)
    return dict(settings)


def _keys(registry: str) -> list[str]:
    """The keys that a login may be stored under."""
    return [_DOCKER_HUB_KEY] if registry == DOCKER_HUB else [registry, f"https://{registry}", f"https://{registry}/"]


def _from_file(entry: object, registry: str) -> RegistryCredentials | None:
    if not isinstance(entry, dict):
        return None
    if entry.get("identitytoken"):
        return RegistryCredentials(identity_token=str(entry["identitytoken"]))
    try:
        name, _, secret = base64.b64decode(entry.get("auth") or "").decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, TypeError) as error:
        message = f"What docker keeps as the login of {registry} cannot be read."
        raise LoginNeeded(message, f"Type: docker login {registry}") from error
    return RegistryCredentials(name, secret) if name else None


def _from_helper(helper: str, key: str, registry: str) -> RegistryCredentials | None:
    """Ask `docker-credential-<helper>`. It fails if it has no login; then we continue without one."""
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(
            [program, "get"], input=key, capture_output=True, text=True, check=False, timeout=_HELPER_TIMEOUT_S
        )
        answer = json.loads(done.stdout) if done.returncode == 0 else None
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        message = f"Docker's credential helper {program} does not answer: {plain_registry_text(str(error))}."
        raise LoginNeeded(message, f"Install it, or log in without it: docker login {registry}") from error
    if answer is None:
        return None
    name, secret = str(answer.get("Username", "")), str(answer.get("Secret", ""))
    return (
        RegistryCredentials(identity_token=secret)
        if name == _IDENTITY_TOKEN_USER
        else RegistryCredentials(name, secret)
    )
