"""A folder for one run at a time.

The lock is the system's (flock and its like): it goes with the process that holds it, however that ends, and knows neither
process numbers nor clocks. Who holds it is written beside it, for people alone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mrecg_onnx.converters.errors import DataError, SettingsError
from mrecg_onnx.converters.files import require_regular, write_whole
from mrecg_onnx.converters.owners import Owner

__all__ = ["locked"]

logger = logging.getLogger(__name__)

#: Seconds in which a process that was killed is gone, and its lock with it.
WAIT_S = 1.0
LOOKS_S = 0.05
#: Bytes of what is said of an owner at most.
MOST = 4096
_LOCK, _OWNER = ".lock", ".lock.json"


@contextmanager
def locked(folder: Path, called: str, wait_s: float = WAIT_S) -> Iterator[None]:
    """Hold ``folder``, which is made where it does not exist, while the context lasts.

    Where nothing else came into it, a folder that was made here goes again.

    Args:
        folder: for one run at a time.
        called: how its user knows it.
        wait_s: seconds to wait for another run.

    Raises:
        DataError: another run has it; the message says which.
        SettingsError: it cannot be used.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        require_regular(folder / _LOCK)
        lock = FileLock(folder / _LOCK)
        try:
            lock.acquire(timeout=wait_s, poll_interval=LOOKS_S)
            if not (folder / _LOCK).exists():  # the last run removed it between our opening and locking it
                lock.release()
                lock.acquire(timeout=wait_s, poll_interval=LOOKS_S)
        except NotImplementedError:
            logger.warning("%s: its file system has no locks: let no other run use it", called)
        write_whole(folder / _OWNER, json.dumps(_this()))
    except Timeout:
        raise DataError(f"{called} is in use{_by(folder)}: wait for that run, or name another folder") from None
    except OSError as error:
        _remove(missing)
        raise SettingsError(f"{called}: cannot be used ({error.strerror or error})") from error
    try:
        yield
    finally:
        for name in (_OWNER, _LOCK):
            with contextlib.suppress(OSError):
                (folder / name).unlink()
        _remove(missing)
        lock.release()


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
        if owner.here and not owner.alive:  # left by one that was killed
            return ""
        return f" by process {owner.pid} on {str(found['host'])[:64]} since {str(found['since'])[:32]}"
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return ""
