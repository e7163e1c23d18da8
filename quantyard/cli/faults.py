"""Translates unexpected errors into ours: exhausted resources, unusable files, and, for the rest, a bug."""

from __future__ import annotations

import errno
import traceback
from typing import Final

from quantyard.errors import BadRequest, OutOfResources, QuantyardError
from quantyard.formatting.printable import printable_line
from quantyard.protocol.runner import stage_error_causes

_LONGEST: Final = 200  # characters of a path that are shown
_AGAIN: Final = "Free some space, then type the same command again; finished stages are kept."
# To add a fault of the machine: add its errno, the fact, and the remedy.
_EXHAUSTED: Final = {
    errno.ENOSPC: ("The disk is full", _AGAIN),
    errno.EDQUOT: ("The disk quota is used up", _AGAIN),
    errno.EFBIG: ("A file would exceed the limit of this file system or of the shell", "See: ulimit -f"),
    errno.ENOMEM: ("Memory ran out", "Close other programs, then type the same command again."),
    errno.EMFILE: ("Too many files are open", "Raise the limit: ulimit -n 4096"),
    errno.ENFILE: ("Too many files are open on this machine", "Close other programs."),
    errno.EAGAIN: ("No further process or thread can be started", "Close other programs, or raise ulimit -u."),
    errno.EIO: ("The disk or the terminal does not work", "See the system's log: dmesg"),
}
_OF_PATHS: Final = {
    errno.EACCES: "may not be used by you", errno.EPERM: "may not be used by you",
    errno.EROFS: "is on a read-only file system", errno.ENOTDIR: "is not a folder, or is below a file",
    errno.EISDIR: "is a folder", errno.ELOOP: "is a link that leads to itself",
    errno.ENAMETOOLONG: "has a name that is too long", errno.ENOENT: "does not exist",
    errno.EEXIST: "exists already and is not of the expected kind", errno.ENOTEMPTY: "is not empty",
    errno.ENXIO: "cannot be opened", errno.ENODEV: "cannot be opened", errno.ETXTBSY: "is being run",
    errno.EINVAL: "cannot be used", errno.ESTALE: "no longer exists on its server", errno.EBUSY: "is in use",
}  # fmt: skip


def quantyard_error_of(error: Exception) -> QuantyardError:
    """Our error for this one: exhausted resources, an unusable file, or, with a traceback, a bug of ours."""
    for cause in stage_error_causes(error):
        if isinstance(cause, MemoryError):
            return OutOfResources("Memory ran out.", _EXHAUSTED[errno.ENOMEM][1])
        if isinstance(cause, OSError) and (found := _fault_of_system(cause)):
            return found
    hint = "This should never happen: please report it, with the traceback."
    return QuantyardError(f"{type(error).__name__}: {error}", hint, traceback.format_exc())


def _fault_of_system(error: OSError) -> QuantyardError | None:
    number = error.errno or 0
    if number in _EXHAUSTED:
        fact, hint = _EXHAUSTED[number]
        where = f" ({_path_of_os_error(error)})" if error.filename else ""
        return OutOfResources(f"{fact}{where}.", hint)
    if number == errno.ENOENT and not error.filename:  # only the working directory has no name here
        return BadRequest("The current folder does not exist any more.", "Change to another one: cd")
    if number in _OF_PATHS and error.filename:
        message = f"{_path_of_os_error(error)} {_OF_PATHS[number]} ({error.strerror})."
        return BadRequest(message, "Check it and its parent folders: ls -ld; to use another store: ARTIFACTS=/path")
    return None


def _path_of_os_error(error: OSError) -> str:
    text = error.filename.decode(errors="replace") if isinstance(error.filename, bytes) else str(error.filename)
    return printable_line(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")
