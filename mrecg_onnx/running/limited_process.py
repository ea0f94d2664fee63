"""A process that may crash, hang or take too much: it ends, with all that it started, and what became of it is said."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from mrecg_onnx.machine import byte_size

__all__ = ["Ended", "run_limited"]

#: Seconds between two looks at a process.
LOOKS = 0.05
#: Bytes that a process may print: a loop of messages must not fill the disk.
MOST_PRINTED = 64 * 10**6
#: Bytes of it that are kept, from the end.
TAIL = 64 * 2**10


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: its exit code, negative where a signal ended it.
        stopped: why it was stopped from here; empty where it ended on its own.
        printed: the end of what it wrote to stdout and stderr.
    """

    code: int
    stopped: str
    printed: str

    @property
    def cause(self) -> str:
        """What ended it, empty where it came to its end in order."""
        if self.stopped or self.code == 0:
            return self.stopped
        if self.code > 0:
            return f"ended with exit code {self.code}"
        try:
            return f"crashed with {signal.Signals(-self.code).name}"
        except ValueError:
            return f"crashed with signal {-self.code}"


def run_limited(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], timeout_s: float, memory_bytes: int
) -> Ended:
    """Run ``command`` in ``folder`` without input, for ``timeout_s`` seconds and in ``memory_bytes`` at most.

    Memory is what it and all it started have resident, together.

    Raises:
        OSError: it cannot be started.
    """
    printed = folder / "printed"
    with printed.open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - a Python or node that the caller names, and a file of this package
            list(command), cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            stopped = _watch(process, printed, time.monotonic() + timeout_s, memory_bytes)
            if stopped == _LATE:
                stopped = f"stopped after {timeout_s:g} s"
        finally:
            _end(process)
    with printed.open("rb") as file:
        file.seek(max(0, printed.stat().st_size - TAIL))
        text = file.read(TAIL).decode("utf-8", "replace")
    return Ended(process.returncode, stopped, text)


_LATE = "late"


def _watch(process: subprocess.Popen[bytes], printed: Path, until: float, memory_bytes: int) -> str:
    """Wait for its end; why it may not go on, empty where it ended."""
    while process.poll() is None:
        if time.monotonic() > until:
            return _LATE
        if _resident(process.pid) > memory_bytes:
            return f"stopped at {byte_size(memory_bytes)} of memory"
        if printed.stat().st_size > MOST_PRINTED:
            return f"stopped after printing {byte_size(MOST_PRINTED)}"
        time.sleep(LOOKS)
    return ""


def _family(pid: int) -> list[psutil.Process]:
    try:
        own = psutil.Process(pid)
        return [own, *own.children(recursive=True)]
    except psutil.Error:
        return []


def _resident(pid: int) -> int:
    total = 0
    for one in _family(pid):
        try:
            total += one.memory_info().rss
        except psutil.Error:  # ended meanwhile
            continue
    return total


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of it, children first named while their parent lives."""
    for one in _family(process.pid) if process.poll() is None else []:
        try:
            one.kill()
        except psutil.Error:
            continue
    process.wait()
