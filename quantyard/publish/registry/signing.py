"""Signs pushed artifacts with cosign: the digest, never a tag. The signature is stored beside the artifact.

Nothing is written to a public transparency log, which would reveal the names of private repositories.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from quantyard.errors import BadRequest, EngineError
from quantyard.publish.registry.artifact import OciModel, OciReference, RegistryCredentials, push_oci_model
from quantyard.publish.registry.errors import plain_registry_text

TIMEOUT_S = 300.0
# Newer releases use another format and the log by default; the flags against both are unknown to older ones.
_NOT_WANTED = ("--use-signing-config", "--new-bundle-format")


def push_signed_oci_model(
    reference: OciReference, model: OciModel, credentials: RegistryCredentials | None, key: Path | None,
    on_progress: Callable[[str, int, int], None],
) -> str:
    """Push, and sign if a key is given; an unusable key stops it before a byte is sent.

    Returns:
        The manifest's digest.

    Raises:
        OciError: as `push_oci_model` does.
        BadRequest, EngineError: as `check_signing_key` and `sign_oci_artifact` do.
    """
    if key is not None:
        check_signing_key(key)
    digest = push_oci_model(reference, model, credentials, on_progress)
    if key is not None:
        sign_oci_artifact(reference, digest, key)
    return digest


def check_signing_key(key: Path) -> None:
    """Check that cosign is installed and can open the key, before anything is pushed. It reads COSIGN_PASSWORD itself.

    Raises:
        EngineError: cosign is not installed.
        BadRequest: the key or its password is wrong.
    """
    try:
        key.read_bytes()
    except OSError as error:
        hint = "Make a pair with cosign generate-key-pair, and name the private key: COSIGN_KEY=cosign.key"
        raise BadRequest(f"The key {key} cannot be read: {error.strerror}.", hint) from error
    done = _run_registry_cosign("public-key", "--key", str(key))
    if done.returncode != 0:
        message = f"cosign cannot open the key {key}: {_last_words_of_cosign(done)}."
        raise BadRequest(message, "Set its password: export COSIGN_PASSWORD=… (empty for a key without one)")


def sign_oci_artifact(reference: OciReference, digest: str, key: Path) -> str:
    """Sign registry/repository@digest.

    Returns:
        What was signed.

    Raises:
        EngineError: cosign is not installed, or could not sign.
    """
    signed = reference.at(digest)
    known = _run_registry_cosign("sign", "--help").stdout
    off = [f"{flag}=false" for flag in _NOT_WANTED if flag in known]
    done = _run_registry_cosign("sign", "--yes", "--key", str(key), "--tlog-upload=false", *off, signed)
    if done.returncode != 0:
        message = f"{signed} is published, but not signed: {_last_words_of_cosign(done)}."
        again = f"Try it by hand: cosign sign --key {key} --tlog-upload=false {signed}"
        raise EngineError(message, again, detail=done.stderr[-2000:])
    return signed


def _run_registry_cosign(*argv: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["cosign", *argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
    except FileNotFoundError as error:
        hint = "Install it (apt-get install cosign, brew install cosign), or leave COSIGN_KEY out."
        raise EngineError("COSIGN_KEY is given, but cosign is not installed.", hint) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(
            f"cosign does not answer: {plain_registry_text(str(error))}.", "Type: cosign version"
        ) from error


def _last_words_of_cosign(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of its output; it prints errors twice, the second time with a prefix."""
    lines = [line for line in done.stderr.splitlines() if "rror" in line] or done.stderr.splitlines() or ["no word"]
    return plain_registry_text(lines[-1].removeprefix("error during command execution: "))
