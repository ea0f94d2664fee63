"""A folder for one run at a time.

The lock is the system's (flock and its like): it goes with the process that holds it, however that ends, and knows neither
process numbers nor clocks. Who holds it is written beside it, for people alone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mrecg_onnx.converters.errors import DataError, SettingsError
from mrecg_onnx.converters.files import require_regular, sweep, write_whole
from mrecg_onnx.converters.owners import Owner

__all__ = ["locked"]

logger = logging.getLogger(__name__)

#: Seconds in which a process that was killed is gone, and its lock with it.
WAIT_S = 1.0
LOOKS_S = 0.05
#: Times that a folder is made which others remove.
TRIES = 20
#: Bytes of what is said of an owner at most.
MOST = 4096
#: No system has larger numbers of processes.
LARGEST_PID = 2**31
_LOCK, _OWNER = ".lock", ".lock.json"


@contextmanager
def locked(folder: Path, called: str, wait_s: float = WAIT_S) -> Iterator[None]:
    """Hold ``folder``, which is made where it does not exist, while the context lasts.

    What killed runs left in it and in its folders is removed. Where nothing else came into it, a folder that was made here goes
    again.

    Args:
        folder: for one run at a time.
        called: how its user knows it.
        wait_s: seconds to wait for another run.

    Raises:
        DataError: another run has it; the message says which.
        SettingsError: it cannot be used.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    with contextlib.ExitStack() as held:
        try:
            held.callback(_remove, missing)
            for tries in range(TRIES, 0, -1):
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                    held.enter_context(_lock(folder, called, wait_s))
                    break
                except (FileNotFoundError, FileExistsError):
                    # A run that ended removed the folder that it had made for nothing: behind mkdir, or behind mkdir's finding
                    # that it is there, before mkdir's look at what it is.
                    if tries == 1:
                        raise
            for place, _, _ in os.walk(folder):
                sweep(place)
            write_whole(folder / _OWNER, json.dumps(_this()))
            held.callback(_unlink, folder / _OWNER)
        except Timeout:
            raise DataError(f"{called} is in use{_by(folder)}: wait for that run, or name another folder") from None
        except OSError as error:
            raise SettingsError(f"{called}: cannot be used ({error.strerror or error})") from error
        yield


@contextmanager
def _lock(folder: Path, called: str, wait_s: float) -> Iterator[None]:
    """Hold the lock; its file goes with it, so that nothing of it stays.

    Raises:
        Timeout: another run has it.
        OSError: it cannot be made.
    """
    path = folder / _LOCK
    require_regular(path)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=wait_s, poll_interval=LOOKS_S)
        if not path.exists():  # the last run removed it between our opening and locking it
            lock.release()
            lock.acquire(timeout=wait_s, poll_interval=LOOKS_S)
    except NotImplementedError:
        logger.warning("%s: its file system has no locks: let no other run use it", called)
    try:
        yield
    finally:
        _unlink(path)
        lock.release()


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _remove(made: list[Path]) -> None:
    """Remove folders that were made for nothing."""
    with contextlib.suppress(OSError):  # something is in them
        for path in made:
            path.rmdir()


def _this() -> dict[str, str | int]:
    owner = Owner.this()
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"host": platform.node(), "pid": owner.pid, "since": since, "place": owner.place, "started": owner.started}


def _by(folder: Path) -> str:
    """Who holds ``folder``; nothing where that is not known, as in the moment before it is written."""
    try:
        path = folder / _OWNER
        require_regular(path)
        if path.stat().st_size > MOST:
            return ""
        found = json.loads(path.read_text(encoding="utf-8"))
        owner = Owner(str(found["place"]), int(found["pid"]), int(found["started"]))
        if owner.pid > LARGEST_PID or (owner.here and not owner.alive):  # left by one that was killed
            return ""
        return f" by process {owner.pid} on {str(found['host'])[:64]} since {str(found['since'])[:32]}"
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return ""
