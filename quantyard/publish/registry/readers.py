"""Who may pull from a repository of a registry, found out before anything is pushed: it is asked without a login, as
anybody would, and then with one. No answer of the distribution protocol says it, so it is told by what is let in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from quantyard.publish.registry.artifact import OciReference
from quantyard.publish.registry.client import Registry, TransientRegistryAnswer
from quantyard.publish.registry.errors import OciError, registry_unreachable
from quantyard.publish.registry.login import RegistryCredentials

Readers = Literal["anybody", "members", "unknown"]
_PULL: Final = "pull"
_SEEN, _NOT_THERE, _CLOSED = 200, 404, (401, 403)


@dataclass(frozen=True)
class RegistryReaders:
    """Who may pull.

    Attributes:
        who: `members`: nobody without a login.
        why: what the registry answered, as a clause: "it lists the repository without a login".
    """

    who: Readers
    why: str


@dataclass(frozen=True)
class _Look:
    """The status of an answer, and whether the registry asks for a password whatever the repository (HTTP's Basic)."""

    status: int
    needs_password: bool


def registry_readers(reference: OciReference, login: RegistryCredentials) -> RegistryReaders:
    """Who may pull from this repository.

    A repository that does not exist yet becomes what the registry's owner has set for new ones, which only a registry
    that lets everybody in, or nobody without a password, tells before the push: otherwise it is unknown.

    Raises:
        OciError: the login is refused in a way that a push would be too (a token service that is not its own).
    """
    try:
        visitor = _look(reference, None)
        member = _look(reference, login) if login and visitor.status != _SEEN else None
    except OciError as error:
        return RegistryReaders("unknown", error.message.rstrip("."))
    return _readers_by_looks(visitor, member)


def _readers_by_looks(visitor: _Look, member: _Look | None) -> RegistryReaders:
    if visitor.status == _SEEN:
        return RegistryReaders("anybody", "it lists the repository without a login")
    if visitor.needs_password and visitor.status in _CLOSED:
        return RegistryReaders("members", "it answers nothing without a password")
    if member is not None and member.status == _SEEN:
        return RegistryReaders("members", "it lists the repository with the login only")
    if visitor.status == _NOT_THERE:
        return RegistryReaders("anybody", "it lets everybody in without a login, and the repository is new")
    if visitor.status in _CLOSED:
        return RegistryReaders("unknown", "the repository is new, or hidden from this login")
    return RegistryReaders("unknown", f"it answers {visitor.status}")


def _look(reference: OciReference, login: RegistryCredentials | None) -> _Look:
    import httpx2

    with Registry(reference.registry, reference.repository, login, actions=_PULL) as registry:
        try:
            registry.settle_scheme()
            response = registry.send("GET", f"{registry.address}/{reference.repository}/tags/list?n=1")
        except (httpx2.TransportError, TransientRegistryAnswer) as error:
            raise registry_unreachable(reference.registry, error) from error
        challenges = response.headers.get_list("WWW-Authenticate")
        return _Look(response.status_code, any(one.lower().startswith("basic") for one in challenges))
