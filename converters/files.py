"""The user's files: what may be read, what may be written, and writing it whole or not at all.

A path of the user's may be a pipe or a device: reading one of those may never end, and writing would put a file in its place.

What is written goes first to a temporary folder that names its process. Where that was killed, whoever next writes beside it
removes the folder.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mrecg_onnx.converters.errors import ExportError, ModelError, first_line
from mrecg_onnx.converters.kinds import require_kind
from mrecg_onnx.converters.owners import Owner

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "check_writable",
    "claimed",
    "followed",
    "irregular",
    "move_whole",
    "no_such",
    "read_small",
    "require_model",
    "require_regular",
    "sweep",
    "temporary_folder",
    "write_all_whole",
    "write_whole",
    "writing_whole",
    "written_now",
]

FOREIGN_AGE_S = 24 * 3600
"""Seconds after which a temporary folder of another machine is taken for left behind: nobody writes for so long."""

# Characters of a file's name that its temporary folder has.
_STEM = 24
_MARK = ".mrecg-"
_OURS = re.compile(r"\.(?P<stem>.{1,24})\.mrecg-(?P<place>[0-9a-f]{8})-(?P<pid>\d+)-(?P<started>\d+)-\w{8}", re.DOTALL)

# Seconds in which two processes that claim the same path see each other: clocks of file systems tick less often than they start.
_SEEN_S = 0.05

#: A file of settings is far smaller.
MOST_BYTES = 4 * 10**6
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


def no_such(path: str | os.PathLike[str], do: str, what: str = "file") -> str:
    """The sentence for a path that was given and where nothing is, the same for all: what of it, and what to do."""
    path = os.fspath(path)
    return f"{path}: {'is a link to a file that is not there' if Path(path).is_symlink() else f'no such {what}'}; {do}"


def require_model(path: str | os.PathLike[str]) -> None:
    """Refuse a path where no file of a model is, before anything that takes long: nothing is opened.

    Raises:
        ModelError: nothing is there, or a folder, or what is no regular file.
    """
    path = Path(path)
    kind = irregular(path)
    if kind is not None:
        raise ModelError(f"{path}: is {kind}, no file; give the path of the .onnx file")
    try:
        folder = stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelError(no_such(path, "check the path of the model")) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if folder:
        raise ModelError(f"{path}: is a folder; give the path of the .onnx file in it")


def require_regular(path: str | os.PathLike[str]) -> None:
    """Refuse, before ``path`` is opened, what is no file.

    Raises:
        OSError: It is there and neither a regular file nor a folder; ``strerror`` says what it is.
    """
    kind = irregular(path)
    if kind is not None:
        raise OSError(errno.EINVAL, f"it is {kind}, no file", os.fspath(path))


def read_small(path: Path, most: int = MOST_BYTES) -> str:
    """The text of a file that people write, not programs: settings of some kind.

    Raises:
        OSError: it cannot be read, or is no file.
        ValueError: it is larger than ``most`` bytes, or not UTF-8.
    """
    require_regular(path)
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it is larger than {most / 10**6:g} MB")
    return content.decode("utf-8-sig")


def followed(path: str | os.PathLike[str]) -> Path:
    """Where writing to ``path`` writes: links are followed, as by every program, also to a file that is not there yet."""
    path = Path(path)
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def check_writable(path: str | Path) -> None:
    """Check, before long work, that a file can be written at ``path``.

    Raises:
        ExportError: The folder is missing or cannot be written to, or ``path`` is a folder.
    """
    named_folder = str(path).endswith(("/", os.sep))  # which a Path forgets
    path = Path(path)
    folder = followed(path).parent
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # a name too long, links in a circle
        said = getattr(error, "strerror", None) or first_line(error)
        raise ExportError(f"{path}: cannot be written: {said}; choose another path") from error
    if path.is_dir():
        raise ExportError(f"{path}: is a folder; give the path of the file to write")
    if named_folder:
        raise ExportError(f"{path}{os.sep}: there is no such folder, and a file is written; give the path of the file")
    kind = irregular(path)
    if kind is not None:
        # A file is written beside it and takes its place: root would lose /dev/null.
        raise ExportError(f"{path}: is {kind}, no file; give the path of the file to write")
    if not folder.is_dir():
        raise ExportError(f"{path}: there is no folder {folder}; create it or choose another path")
    if path.exists() and not os.access(path, os.W_OK):
        raise ExportError(f"{path}: exists and cannot be overwritten; choose another path")
    sweep(folder)
    try:
        # The access bits do not tell it all (read-only file systems, quotas): try it.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error.strerror or error}; choose another path") from error


#: Files that threads of this process have claimed ahead.
_claims: set[tuple[int, str]] = set()


@contextmanager
def claimed(path: str | Path, *, ahead: bool = False) -> Iterator[None]:
    """Check as :func:`check_writable` does, and let no other run on this machine make the same file while the context lasts.

    Args:
        path: the file.
        ahead: for what this thread calls meanwhile, which may claim it, too.

    Raises:
        SettingsError: what is there is no model.
        ExportError: It cannot be written, or another run makes it; the message says which.
    """
    check_writable(path)
    require_kind(path, "model", "output")
    target = followed(path)
    mine_already = (threading.get_ident(), os.path.realpath(target))
    if mine_already in _claims:  # a command claims what the call behind it writes
        yield
        return
    name = f"out-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:12]}"
    try:
        held = temporary_folder(target.parent / name)
        mine = held.__enter__()
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error.strerror or error}; choose another path") from error
    with ExitStack() as leaving:
        leaving.push(held)
        # Of those that come in the same moment the first keeps it: each looks when all of them can be seen.
        time.sleep(_SEEN_S)
        for other, owner in _temporary(target.parent):
            if other != mine and other.name.startswith(f".{name}{_MARK}") and owner.alive and _age(other) <= _age(mine):
                raise ExportError(
                    f"{path}: process {owner.pid} is making this file: wait for that run, or choose another path"
                )
        if ahead:
            _claims.add(mine_already)
            leaving.callback(_claims.discard, mine_already)
        yield


def _age(folder: Path) -> tuple[int, str]:
    """Orders temporary folders; one that is gone meanwhile comes last."""
    try:
        return folder.stat().st_mtime_ns, folder.name
    except OSError:
        return sys.maxsize, folder.name


# --- temporary folders -----------------------------------------------------------------------------------------------


@contextmanager
def temporary_folder(beside: str | os.PathLike[str] | None = None) -> Iterator[Path]:
    """Yield a folder that is gone when the context ends; where the process is killed before, the next one removes it.

    Args:
        beside: a path in whose folder it is made; None for the system's temporary folder (TMPDIR).

    Raises:
        ExportError: there is no temporary folder.
        OSError: the folder of ``beside`` cannot be written.
    """
    if beside is None:
        try:
            parent, stem = Path(tempfile.gettempdir()), "tmp"
        except OSError as error:
            raise ExportError(
                f"no temporary folder can be written ({error.strerror}): set TMPDIR to one that can"
            ) from error
    else:
        parent, stem = Path(beside).parent, Path(beside).name[:_STEM]
    sweep(parent)
    owner = Owner.this()
    # Not a named temporary file: that is nobody else's to read, and so would the file be. A name may take up all of a name's
    # length: the folder has only its beginning.
    prefix = f".{stem}{_MARK}{owner.place}-{owner.pid}-{owner.started}-"
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        yield folder
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=True)
        except BaseException:  # interrupted in the middle
            shutil.rmtree(folder, ignore_errors=True)
            raise


def sweep(folder: str | os.PathLike[str]) -> None:
    """Remove the temporary folders in ``folder`` that processes left which are not there any more.

    Only folders of :func:`temporary_folder` that belong to this user; those of other machines after :data:`FOREIGN_AGE_S`. What
    cannot be removed stays.
    """
    for path, owner in _temporary(folder):
        with suppress(OSError):
            found = path.lstat()
            mine = not hasattr(os, "geteuid") or found.st_uid == os.geteuid()
            left = not owner.alive if owner.here else _clock(path.parent) - found.st_mtime > FOREIGN_AGE_S
            if mine and left and stat.S_ISDIR(found.st_mode):
                shutil.rmtree(path, ignore_errors=True)


def written_now(path: str | os.PathLike[str]) -> bool:
    """Whether somebody is writing what will be ``path``."""
    path = Path(path)
    beginning = f".{path.name[:_STEM]}{_MARK}"
    return any(
        found.name.startswith(beginning) for found, owner in _temporary(path.parent) if owner.alive or not owner.here
    )


def _temporary(folder: str | os.PathLike[str]) -> list[tuple[Path, Owner]]:
    found = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _OURS.fullmatch(entry.name) if _MARK in entry.name else None
            if match is not None:
                owner = Owner(match["place"], int(match["pid"]), int(match["started"]))
                found.append((Path(entry.path), owner))
    return found


def _clock(folder: Path) -> float:
    """What time it is for the file system of ``folder``, which may be another machine's."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime


# --- whole files -----------------------------------------------------------------------------------------------------


@contextmanager
def writing_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield where to write what becomes ``path`` when the context ends: the whole file, or whatever was there before.

    The file yielded has the name of ``path``, in a folder of its own beside it that is gone afterwards, also where the disk is
    full or the run is interrupted. It gets the permissions that any new file would get. What is written beside it takes its
    place beside ``path``, before ``path`` itself does. All of it is on the disk before.

    Raises:
        OSError: ``path`` cannot be written, or is a folder, a pipe or a device.
    """
    path = Path(path)
    require_regular(path)
    if path.is_dir():  # before the work, not after it
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    with temporary_folder(path) as folder:
        temporary = folder / path.name
        yield temporary
        others = sorted(set(folder.iterdir()) - {temporary})
        for file in (*others, temporary):
            _to_disk(file)
        for other in others:
            other.replace(path.parent / other.name)
        if others:
            _to_disk(path.parent)
        temporary.replace(path)
        _to_disk(path.parent)


def _to_disk(path: Path) -> None:
    """Have the system write what it still holds of a file, or of the names in a folder."""
    if path.is_dir():
        if os.name == "nt":
            return
        with suppress(OSError):  # not every file system does this for folders
            _sync(path, os.O_RDONLY)
    else:
        _sync(path, os.O_RDWR)


def _sync(path: Path, flags: int) -> None:
    opened = os.open(path, flags)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write ``content``, text in UTF-8, to ``path``: the whole file is there afterwards, or whatever was there before.

    Raises:
        OSError: ``path`` cannot be written, or is a folder, a pipe or a device.
    """
    write_all_whole({path: content})


def write_all_whole(contents: Mapping[str | os.PathLike[str], str | bytes]) -> None:
    """Write several files, each as :func:`write_whole` does, none before all of them could be written.

    Raises:
        OSError: one of them cannot be written.
    """
    with ExitStack() as together:
        for path, content in reversed(list(contents.items())):  # the last that is entered takes its place first
            temporary = together.enter_context(writing_whole(path))
            # A name of the file system need be no text: its bytes are written out.
            temporary.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


def move_whole(source: Path, path: Path) -> None:
    """Move a file or folder, also from another disk, to ``path``, where nothing is: whole and on the disk, or not at all.

    Raises:
        OSError: it cannot be moved.
    """
    with temporary_folder(path) as folder:
        made = folder / path.name
        shutil.move(source, made)
        for part in (*made.rglob("*"), made):  # of a file there is nothing but itself
            _to_disk(part)
        made.rename(path)
        _to_disk(path.parent)
