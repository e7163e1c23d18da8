"""Images in registries, which the daemon asks with the user's logins: whether one is there, pushing and pulling it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final

from quantyard.engines.docker import DAEMON_ERRORS, connect_docker
from quantyard.engines.docker_daemon import OTHER_MACHINES_HINT, first_error_line
from quantyard.errors import EngineError, ImageRegistryUnreachable

_UNREACHABLE: Final = re.compile(
    r"dial tcp|no such host|timeout|timed out|x509|server gave HTTP response|connection re(fused|set)|unexpected EOF|"
    r"pinging container registry|toomanyrequests|received unexpected HTTP status: 5|status code 5", re.IGNORECASE,
)  # fmt: skip
_GONE: Final = re.compile(r"manifest unknown|not found|no such image|name unknown|does not exist", re.IGNORECASE)
_OTHER_PLATFORM: Final = re.compile(
    r"no matching manifest|no match for platform|no image found in .* for architecture", re.IGNORECASE
)
_SILENT_HINT: Final = "Start it, or name another: NODE_REGISTRY=host:port/path; then type the same command again."


def refuse_unreachable_registry(tag: str) -> None:
    """Ask the daemon for the image's registry before anything is built: a push tries again for more than a minute.

    Raises:
        EngineError: the registry does not answer, or not in a way that the daemon trusts.
    """
    said = _said_of_registry(tag)
    if said and _UNREACHABLE.search(said):
        hint = "Start that registry, or name another: TAG=registry.example/team/model:q4"
        raise EngineError(f"{tag} could not be pushed: its registry does not answer.", hint, said)


def registry_has_image(reference: str) -> bool:
    """Whether a registry has this image.

    Raises:
        ImageRegistryUnreachable: it does not answer.
    """
    said = _said_of_registry(reference)
    if said and _UNREACHABLE.search(said):
        raise _silent_registry(reference, said)
    return not said


def push_registry_image(tag: str, repository: str) -> str:
    """Push an image of this machine, under the tag that it has here; what the registry has of it is not sent again.

    Returns:
        Its digest there.

    Raises:
        ImageRegistryUnreachable: the registry does not answer.
        EngineError: it refuses the image.
    """
    client, version = connect_docker(), tag.rpartition(":")[2]
    reference, digest = f"{repository}:{version}", ""
    try:
        client.images.get(tag).tag(repository, version)
        for line in client.images.push(repository, tag=version, stream=True, decode=True):
            if said := str(line.get("error", "")):
                raise _refused_push(reference, said)
            digest = str((line.get("aux") or {}).get("Digest") or digest)
    except DAEMON_ERRORS as error:
        raise _refused_push(reference, str(error)) from error
    if not digest:
        raise _refused_push(reference, "the daemon did not say its digest")
    return digest


def pull_registry_image(reference: str) -> None:
    """Pull an image by its digest.

    Raises:
        ImageRegistryUnreachable: the registry does not answer.
        EngineError: it lacks the image, refuses it, or has it for other machines alone.
    """
    repository, _, digest = reference.partition("@")
    try:
        lines: Iterator[Mapping[str, Any]] = connect_docker().api.pull(
            repository, tag=digest, stream=True, decode=True
        )
        for line in lines:
            if said := str(line.get("error", "")):
                raise _refused_pull(reference, said)
    except DAEMON_ERRORS as error:
        raise _refused_pull(reference, str(error)) from error


def _said_of_registry(reference: str) -> str:
    """What is wrong with an image in a registry, in the daemon's words; "" if it is there."""
    try:
        connect_docker().images.get_registry_data(reference)
    except DAEMON_ERRORS as error:
        if getattr(error, "status_code", None) == HTTPStatus.NOT_FOUND:
            return "not found"
        return str(getattr(error, "explanation", "") or error)
    return ""


def _refused_push(reference: str, said: str) -> EngineError | ImageRegistryUnreachable:
    if _UNREACHABLE.search(said):
        return _silent_registry(reference, said)
    host = reference.partition("/")[0]
    hint = f"Log in there: docker login {host}; or name another registry: NODE_REGISTRY=host:port/path"
    return EngineError(f"{reference} could not be pushed: {first_error_line(Exception(said))}.", hint)


def _refused_pull(reference: str, said: str) -> EngineError | ImageRegistryUnreachable:
    if _OTHER_PLATFORM.search(said):
        return EngineError(f"{reference} is not for machines of this kind: {said}", OTHER_MACHINES_HINT)
    if _GONE.search(said):
        hint = "Type the same command again, which pushes the image again."
        return EngineError(f"The registry no longer has {reference}.", hint, said)
    if _UNREACHABLE.search(said):
        return _silent_registry(reference, said)
    host = reference.partition("/")[0]
    hint = f"Log in where nodes read it, in your home: docker login {host}"
    return EngineError(f"{reference} could not be pulled: {first_error_line(Exception(said))}.", hint)


def _silent_registry(reference: str, said: str) -> ImageRegistryUnreachable:
    message = f"The registry of {reference} does not answer: {first_error_line(Exception(said))}."
    return ImageRegistryUnreachable(message, _SILENT_HINT)
