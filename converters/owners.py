"""Who made a temporary folder or holds a lock: a process of a machine, told from one that later has its number.

A process is its number and when it started, in ticks since the machine did: setting the clock changes neither. Another machine,
or another container, that writes into the same folder has numbers of its own: of its processes nothing can be said here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["Owner"]

_PROC = Path("/proc")


@dataclass(frozen=True)
class Owner:
    """A process.

    Attributes:
        place: tells the machine since it was started, and the container, from others.
        pid: its number there.
        started: when it started, in a unit of the machine's own.
    """

    place: str
    pid: int
    started: int

    @classmethod
    def this(cls) -> Owner:
        """Return this process."""
        pid = os.getpid()
        return cls(_place(), pid, _started(pid) or 0)

    @property
    def here(self) -> bool:
        """Whether it is, or was, a process of this machine: of others :attr:`alive` knows nothing."""
        return self.place == _place()

    @property
    def alive(self) -> bool:
        """Whether it is still there; one that ended and was not yet waited for is not."""
        return self.here and _started(self.pid) == self.started


def _place() -> str:
    parts = [platform.node()]
    with contextlib.suppress(OSError):  # Linux
        parts.append((_PROC / "sys/kernel/random/boot_id").read_text().strip())
        parts.append(str((_PROC / "self/ns/pid").stat().st_ino))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _started(pid: int) -> int | None:
    """When a process started, None where there is none."""
    if (_PROC / "self/stat").exists():  # psutil counts from 1970: it would change with the clock
        try:
            state, *fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except (OSError, ValueError):
            return None
        return int(fields[18]) if state not in {"Z", "X"} else None
    try:
        process = psutil.Process(pid)
        return int(process.create_time() * 100) if process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None
