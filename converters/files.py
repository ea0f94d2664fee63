"""What may be read: a path of the user's may be a pipe or a device, and reading one of those may never end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

__all__ = ["irregular", "require_regular"]

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def irregular(path: str | os.PathLike[str]) -> str | None:
    """Return what ``path`` is ("a named pipe") where it is there and neither a regular file nor a folder, else None.

    Links are followed; nothing is opened.
    """
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):  # not there, or out of reach: whoever opens it says so
        return None
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None
    return _KINDS.get(stat.S_IFMT(mode), "no regular file")


def require_regular(path: str | os.PathLike[str]) -> None:
    """Refuse, before ``path`` is opened, what is no file.

    Raises:
        OSError: It is there and neither a regular file nor a folder; ``strerror`` says what it is.
    """
    kind = irregular(path)
    if kind is not None:
        raise OSError(errno.EINVAL, f"it is {kind}, no file", os.fspath(path))
