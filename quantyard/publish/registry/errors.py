"""The errors of a registry. The registry's own message is quoted too, shortened and with plain characters.

OciError                      exit code 4: the registry refused, or did not answer
├── RegistryUnreachable
├── LoginNeeded               no login, or one that the registry does not accept
├── PushDenied                logged in, and not allowed to push there
├── RegistryRefused           it does not accept the artifact
└── ArtifactChanged           exit code 2: the file has changed since it was hashed
"""

from __future__ import annotations

import base64
import ssl
from typing import TYPE_CHECKING

from quantyard.errors import QuantyardError
from quantyard.formats.strict_json import JsonProblem, load_json
from quantyard.formatting.printable import printable_words
from quantyard.protocol.base import ExitCode

if TYPE_CHECKING:
    import httpx2

    from quantyard.network.bounded_http import BadAnswer

TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})
_LONGEST_WORDS = 300  # characters
_LONGEST_ERROR_BYTES = 256 * 1024
_ERRORS_READ = 10


class OciError(QuantyardError):
    """A registry refused a request."""

    kind = "registry-error"
    exit_code = ExitCode.NETWORK


class RegistryUnreachable(OciError):
    """The registry does not answer, or only with server errors."""

    kind = "registry-unreachable"


class LoginNeeded(OciError):
    """The registry asks for a login, or does not accept the one it was given."""

    kind = "login-needed"


class PushDenied(OciError):
    """The account that is logged in may not push there."""

    kind = "push-denied"


class RegistryRefused(OciError):
    """The registry does not accept the artifact."""

    kind = "registry-refused"


class ArtifactChanged(OciError):
    """A file has changed since its hash was taken."""

    kind = "artifact-changed"
    exit_code = ExitCode.BAD_REQUEST


def registry_unreachable(registry: str, error: Exception) -> RegistryUnreachable:
    """The connection failed: no such registry, an untrusted certificate, or broken again and again."""
    words = plain_registry_text(str(error)) or type(error).__name__
    message = f"The registry {registry} cannot be reached: {words}."
    reason: BaseException | None = error
    while reason is not None and not isinstance(reason, ssl.SSLError):
        reason = reason.__cause__ or reason.__context__
    if isinstance(reason, ssl.SSLCertVerificationError):
        hint = "Name the CA of the registry, or of a network that inspects TLS: EXTRA_CA=file.pem"
        return RegistryUnreachable(message, hint)
    if reason is not None:
        hint = "Give the registry a certificate: plain HTTP is used for registries on this machine only."
        return RegistryUnreachable(message, hint)
    return RegistryUnreachable(message, f"Check its name and your network: curl -I https://{registry}/v2/")


def registry_unusable_proxy(registry: str, error: Exception) -> Exception:
    """The error for a proxy that no client can be made for; any other error as it is."""
    from quantyard.network.bounded_http import UNUSABLE_PROXY, is_unusable_proxy

    if not is_unusable_proxy(error):
        return error
    fact, hint = UNUSABLE_PROXY
    return RegistryUnreachable(f"{fact}; {registry} was not asked.", hint)


def registry_bad_answer(registry: str, error: BadAnswer) -> RegistryRefused:
    """The error for a refused answer: too large, too slow, or malformed."""
    message = f"The registry {registry} gives an answer that is not valid: {plain_registry_text(str(error))}."
    return RegistryRefused(message, "Check that no proxy or login page answers in its place, or ask its owner.")


def registry_kept_too_much(registry: str, kept_bytes: int, sent_bytes: int) -> RegistryRefused:
    """The error for a registry that reports more of a file than was sent."""
    message = f"The registry {registry} reports {kept_bytes:,} bytes kept, but only {sent_bytes:,} were sent."
    return RegistryRefused(message, "Check that no proxy answers in its place, and try again.")


def registry_refusal(
    response: httpx2.Response, registry: str, repository: str, *, logged_in: bool, note: str = ""
) -> OciError:
    """The error that a failure status means. `note`: why docker's credential helper gave no login."""
    status, words = response.status_code, registry_words(response)
    login = f"Type: docker login {registry}"
    if status == 401:
        how = "does not accept the login that docker keeps for it" if logged_in else "asks for a login"
        return LoginNeeded(f"The registry {registry} {how}{words}.{_registry_said(note)}", login)
    if status == 403:
        message = f"The registry {registry} does not let you push to {repository}{words}.{_registry_said(note)}"
        return PushDenied(message, f"Ask its owner for the right to push, or change account: docker login {registry}")
    if status in TRANSIENT_STATUS:
        return RegistryUnreachable(f"The registry {registry} answers {status} again and again{words}.", "Try later.")
    if status == 404:
        hint = "Check name and tag; some registries want a repository made in their web page before its first push."
        return RegistryRefused(f"The registry {registry} does not know {repository}{words}.", hint)
    if status == 413:
        hint = "Ask its owner to raise the limit, or choose a smaller quant."
        return RegistryRefused(f"The registry {registry}, or a proxy before it, refuses so large a file{words}.", hint)
    hint = "Ask its owner whether it takes OCI artifacts of any media type, and files of this size."
    return RegistryRefused(f"The registry {registry} refuses what is pushed to {repository} ({status}){words}.", hint)


def _registry_said(note: str) -> str:
    return f" {note}, so it was asked without a login." if note else ""


def registry_artifact_changed(path: str, what: str) -> ArtifactChanged:
    """A file on disk has changed since it was measured; no tag was set."""
    message = f"{path} has changed since it was measured: {what}; it is not published."
    return ArtifactChanged(message, "Type the command again: it makes and measures such a file anew.")


def registry_words(response: httpx2.Response) -> str:
    """The registry's own message, as ": CODE: message"; "" without one."""
    try:
        found = load_json(response.read(), _LONGEST_ERROR_BYTES)
    except JsonProblem:
        return ""
    errors = found.get("errors") if isinstance(found, dict) else None
    kept = [each for each in errors[:_ERRORS_READ] if isinstance(each, dict)] if isinstance(errors, list) else []
    words = "; ".join(f"{each.get('code', '')}: {each.get('message', '')}" for each in kept)
    for secret in _secrets_of_registry_login(response.request.headers.get("Authorization", "")):
        words = words.replace(secret, "(the login)")
    return f": {plain_registry_text(words)}" if words else ""


def _secrets_of_registry_login(authorization: str) -> list[str]:
    """The secrets of a login, as sent and as the user knows them."""
    scheme, _, given = authorization.partition(" ")
    secrets = [given]
    if scheme == "Basic":
        secrets.append(base64.b64decode(given).decode("utf-8", "replace").partition(":")[2])
    return [secret for secret in secrets if secret]


def plain_registry_text(text: str) -> str:
    """One short line without control characters and without a full stop at its end."""
    return printable_words(text)[:_LONGEST_WORDS].rstrip(". ")
