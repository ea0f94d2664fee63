"""How torch's idle threads wait for the next piece of work, and runs that others hold up."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import psutil

from mrecg_onnx.converters.text import with_arguments
from mrecg_onnx.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Callable

    from mrecg_onnx.progress import Progress

__all__ = ["LEARNING", "Pace"]

#: Stages that take units one after the other.
LEARNING = frozenset({"probe", "finish", *(phase.stage for method in METHODS.values() for phase in method.passes)})
#: Seconds of learning after which a run's pace is looked at.
WATCHED_S = 20.0
#: The share of a core below which a run is held up, whatever by.
HELD_UP = 0.4
#: Cores that others use, where hardly any is idle, from which on threads that wait long are in their own way.
OTHERS, IDLE = 0.4, 0.1


def waits_long() -> bool:
    """Whether idle threads of torch keep their cores: nobody said otherwise before it was loaded, which is when it is read."""
    from mrecg_onnx import WAITS_LONG  # noqa: PLC0415 - the package itself knows, and is not whole while this is imported

    return WAITS_LONG


def _machine() -> tuple[float, float]:
    """Seconds that all cores together were busy, and idle, for whomever."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # Guests' time is in user's, too.
    busy = sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))
    return busy, idle


class Pace:
    """Notices once that a run which learns is held up: it hardly computes, or its waiting threads and other programs share cores.

    Args:
        clock: seconds of the wall clock.
        computed: seconds that this process computed.
        machine: seconds that all cores were busy, and idle.
        long: idle threads keep their cores.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        computed: Callable[[], float] = time.process_time,
        machine: Callable[[], tuple[float, float]] = _machine,
        long: Callable[[], bool] = waits_long,
    ) -> None:
        self.clock, self.computed, self.machine, self.long = clock, computed, machine, long
        self.begin: tuple[float, ...] | None = None
        self.over = False

    def update(self, progress: Progress) -> str | None:
        """What to say of it, None where there is nothing, or it is said."""
        if self.over or progress.stage not in LEARNING:
            return None
        if self.begin is None:
            self.begin = (self.clock(), self.computed(), *self.machine())
            return None
        if self.clock() - self.begin[0] < WATCHED_S:
            return None
        self.over = True
        now = (self.clock(), self.computed(), *self.machine())
        passed, own, busy, idle = (after - before for after, before in zip(now, self.begin, strict=True))
        if own < HELD_UP * passed:
            return with_arguments(
                f"this run computed for {own / passed:.0%} of the last {passed:.0f} s: other programs, or a slow disk, hold it "
                "up; where cores are shared, --threads 1 waits least"
            )
        if self.long() and busy - own > OTHERS * passed and idle < IDLE * (busy + idle):
            return with_arguments(
                "other programs use the cores, too, and torch's idle threads keep theirs, which can take many times as long: "
                "import mrecg_onnx before torch, set GOMP_SPINCOUNT=3000 before that, or take --threads 1"
            )
        return None
