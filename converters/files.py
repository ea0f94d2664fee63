"""The user's files: what may be read, what may be written, and writing it whole or not at all.

A path of the user's may be a pipe or a device: reading one of those may never end, and writing would put a file in its place.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mrecg_onnx.converters.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check_writable", "irregular", "require_regular", "write_whole", "writing_whole"]

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


def check_writable(path: str | Path) -> None:
    """Check, before long work, that a file can be written at ``path``.

    Raises:
        ExportError: The folder is missing or cannot be written to, or ``path`` is a folder.
    """
    path = Path(path)
    folder = path.parent
    if path.is_dir():
        raise ExportError(f"{path}: is a folder; give the path of the file to write")
    kind = irregular(path)
    if kind is not None:
        # A file is written beside it and takes its place: root would lose /dev/null.
        raise ExportError(f"{path}: is {kind}, no file; give the path of the file to write")
    if not folder.is_dir():
        raise ExportError(f"{path}: there is no folder {folder}; create it or choose another path")
    if path.exists() and not os.access(path, os.W_OK):
        raise ExportError(f"{path}: exists and cannot be overwritten; choose another path")
    try:
        # The access bits do not tell it all (read-only file systems, quotas): try it.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error.strerror or error}; choose another path") from error


@contextmanager
def writing_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield where to write what becomes ``path`` when the context ends: the whole file, or whatever was there before.

    The file yielded has the name of ``path``, in a folder of its own beside it that is gone afterwards, also where the disk is
    full or the run is interrupted. It gets the permissions that any new file would get. What is written beside it takes its
    place beside ``path``, before ``path`` itself does.

    Raises:
        OSError: ``path`` cannot be written, or is a folder, a pipe or a device.
    """
    path = Path(path)
    require_regular(path)
    if path.is_dir():  # before the work, not after it
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    # Not a named temporary file: that is nobody else's to read, and so would the file be. A name may take up all of a name's
    # length: the folder has only its beginning.
    with tempfile.TemporaryDirectory(prefix=f".{path.name[:32]}.", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        yield temporary
        for other in sorted(set(Path(folder).iterdir()) - {temporary}):
            other.replace(path.parent / other.name)
        temporary.replace(path)


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write ``content``, text in UTF-8, to ``path``: the whole file is there afterwards, or whatever was there before.

    Raises:
        OSError: ``path`` cannot be written, or is a folder, a pipe or a device.
    """
    with writing_whole(path) as temporary:
        if isinstance(content, str):
            temporary.write_text(content, encoding="utf-8")
        else:
            temporary.write_bytes(content)
