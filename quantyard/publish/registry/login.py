"""The login for a registry: from docker's config.json, or from the credential helper that it names."""

from __future__ import annotations

import base64
import binascii
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantyard.errors import BadRequest
from quantyard.publish.registry.errors import LoginNeeded, plain_registry_text

DOCKER_HUB = "docker.io"
_DOCKER_HUB_KEY = "https://index.docker.io/v1/"  # docker's own key for Docker Hub
_IDENTITY_TOKEN_USER = "<token>"  # noqa: S105  (a helper's user name for an identity token)
_HELPER_TIMEOUT_S = 30.0  # a keychain may ask the user first
_AROUND = "\r\n\0"  # what `echo` and docker leave around a secret


@dataclass(frozen=True)
class RegistryCredentials:
    """A name with its secret, or an identity token; neither for a visitor."""

    username: str = ""
    secret: str = ""
    identity_token: str = ""
    note: str = ""  # why docker's credential helper gave no login

    def __bool__(self) -> bool:
        """Whether there is a login."""
        return bool(self.username or self.identity_token)

    def __repr__(self) -> str:
        """Without the secret, so that no log or traceback can show it."""
        return f"Credentials(username={self.username!r})"


def registry_docker_login(registry: str, config: Path) -> RegistryCredentials:
    """The login that docker keeps for a registry; an empty one for a visitor.

    A credential helper that is missing or broken is passed over, as docker does: for the login in the file itself, or
    for none. The reason is kept in `note`, for the error of a registry that asks for a login.

    Args:
        config: docker's config.json; it need not exist.

    Raises:
        BadRequest: the file cannot be read.
        LoginNeeded: the login in it cannot be read.
    """
    settings = _docker_login_settings(config)
    keys = _registry_login_keys(registry)
    helpers = [settings.get("credHelpers", {}).get(key) for key in keys] + [settings.get("credsStore")]
    helper = next((str(name) for name in helpers if name), "")
    found, note = _registry_login_from_helper(helper, keys) if helper else (None, "")
    kept = (_registry_login_from_file(settings.get("auths", {}).get(key), registry) for key in keys)
    login = found or next((login for login in kept if login), None)
    return login or RegistryCredentials(note=note)


def _docker_login_settings(config: Path) -> Mapping[str, Any]:
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


def _registry_login_keys(registry: str) -> list[str]:
    """The keys that a login may be stored under."""
    return [_DOCKER_HUB_KEY] if registry == DOCKER_HUB else [registry, f"https://{registry}", f"https://{registry}/"]


def _registry_login_from_file(entry: object, registry: str) -> RegistryCredentials | None:
    if not isinstance(entry, dict):
        return None
    if entry.get("identitytoken"):
        return RegistryCredentials(identity_token=str(entry["identitytoken"]).strip())
    try:
        name, _, secret = base64.b64decode(entry.get("auth") or "").decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, TypeError) as error:
        message = f"What docker keeps as the login of {registry} cannot be read."
        raise LoginNeeded(message, f"Type: docker login {registry}") from error
    return RegistryCredentials(name.strip(), secret.strip(_AROUND)) if name.strip() else None


def _registry_login_from_helper(helper: str, keys: Sequence[str]) -> tuple[RegistryCredentials | None, str]:
    """Ask `docker-credential-<helper>` under each key; the login, and why there is none if the helper is at fault.

    It fails if it has no login. One that is missing or hangs is not asked again.
    """
    program = f"docker-credential-{helper}"
    try:
        found = (_login_helper_answer(program, key) for key in keys)
        return next((login for login in found if login), None), ""
    except FileNotFoundError:
        return None, f"{program}, which docker's configuration names, is not installed"
    except subprocess.TimeoutExpired:
        return None, f"{program} did not answer within {_HELPER_TIMEOUT_S:g} s"
    except (OSError, ValueError, AttributeError) as error:
        return None, f"{program} does not work: {plain_registry_text(str(error))}"


def _login_helper_answer(program: str, key: str) -> RegistryCredentials | None:
    done = subprocess.run(
        [program, "get"], input=key, capture_output=True, text=True, check=False, timeout=_HELPER_TIMEOUT_S
    )
    if done.returncode != 0:
        return None
    answer = json.loads(done.stdout)
    name, secret = str(answer.get("Username", "")).strip(), str(answer.get("Secret", "")).strip(_AROUND)
    return RegistryCredentials(identity_token=secret) if name == _IDENTITY_TOKEN_USER else \
        RegistryCredentials(name, secret)
