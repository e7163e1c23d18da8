"""`renameat2(2)`: a rename that spares what is there, or exchanges two names. Linux; not every file system has it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

NOREPLACE: Final = 1
EXCHANGE: Final = 2
_AT_FDCWD: Final = -100


def rename_with_flags(source: Path, target: Path, flags: int) -> None:
    """Rename with NOREPLACE or EXCHANGE.

    Raises:
        OSError: EEXIST if the target is there (NOREPLACE); ENOSYS or EINVAL where it cannot be done.
    """
    import ctypes  # imported late: a build with nothing to do renames nothing

    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(target))
    if function(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(target))


def replace_folder(new: Path, target: Path, old: Path) -> None:
    """Have the folder `new` under the name `target`; what was there, if anything, is `old` then.

    Any number of processes may do so at once. A reader finds one of them at any time, but for a moment where the file
    system cannot exchange names.
    """
    while True:
        try:
            rename_with_flags(new, target, EXCHANGE)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM):
                raise
            if target.exists():
                target.rename(old)
        else:
            new.rename(old)
            return
        try:
            new.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return
