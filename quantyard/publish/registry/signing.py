"""Signs what was pushed, by cosign: the digest, never a tag. The signature lies beside the artifact, in its registry.

Nothing is written to a public transparency log: it would tell the world the name of a private repository.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from quantyard.errors import BadRequest, EngineError
from quantyard.publish.registry.artifact import OciModel, OciReference, RegistryCredentials, push_oci_model
from quantyard.publish.registry.errors import plain_registry_text

TIMEOUT_S = 300.0
# Newer releases choose another form and the log by default, each by a flag that older ones do not know.
_NOT_WANTED = ("--use-signing-config", "--new-bundle-format")


def push_signed_oci_model(
    reference: OciReference, model: OciModel, credentials: RegistryCredentials | None, key: Path | None,
    on_progress: Callable[[str, int, int], None],
) -> str:
    """Push, and sign if there is a key; a key that cannot be used stops it before a byte is sent.

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
    """See that cosign is there and can open the key, before anything is pushed. COSIGN_PASSWORD is its own to read.

    Raises:
        EngineError: there is no cosign.
        BadRequest: the key, or its password, is not right.
    """
    try:
        key.read_bytes()
    except OSError as error:
        hint = "Make a pair: cosign generate-key-pair, and name the private half: COSIGN_KEY=cosign.key"
        raise BadRequest(f"The key {key} cannot be read: {error.strerror}.", hint) from error
    done = _cosign("public-key", "--key", str(key))
    if done.returncode != 0:
        message = f"cosign cannot open the key {key}: {_last_words(done)}."
        raise BadRequest(message, "Set its password: export COSIGN_PASSWORD=… (empty, if it has none)")


def sign_oci_artifact(reference: OciReference, digest: str, key: Path) -> str:
    """Sign registry/repository@digest.

    Returns:
        What was signed.

    Raises:
        EngineError: there is no cosign, or it could not sign.
    """
    signed = reference.at(digest)
    known = _cosign("sign", "--help").stdout
    off = [f"{flag}=false" for flag in _NOT_WANTED if flag in known]
    done = _cosign("sign", "--yes", "--key", str(key), "--tlog-upload=false", *off, signed)
    if done.returncode != 0:
        message = f"{signed} is published, but not signed: {_last_words(done)}."
        again = f"Try it by hand: cosign sign --key {key} --tlog-upload=false {signed}"
        raise EngineError(message, again, detail=done.stderr[-2000:])
    return signed


def _cosign(*argv: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["cosign", *argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
    except FileNotFoundError as error:
        hint = "Install it (apt-get install cosign, brew install cosign), or leave COSIGN_KEY out."
        raise EngineError("COSIGN_KEY is given, but there is no cosign here.", hint) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(
            f"cosign does not answer: {plain_registry_text(str(error))}.", "Type: cosign version"
        ) from error


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    """The last of what it says; errors come twice, the second time with a prefix."""
    lines = [line for line in done.stderr.splitlines() if "rror" in line] or done.stderr.splitlines() or ["no word"]
    return plain_registry_text(lines[-1].removeprefix("error during command execution: "))
