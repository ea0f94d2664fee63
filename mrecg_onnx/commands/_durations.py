"""How long a run will still take, and how long it took so far."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import psutil

from mrecg_onnx.machine import LEARNING

if TYPE_CHECKING:
    from collections.abc import Callable

    from mrecg_onnx.progress import Progress

__all__ = ["TimeLeft", "share_done", "so_far"]


class TimeLeft:
    """Estimates the seconds until all units are learned.

    A stage's time is extrapolated from the share of it that is done. The probing run visits the same layers with fewer
    iterations: scaled up, it tells what the reconstruction will take, and what its own pace says counts the more the
    further it is. Units that an earlier run finished took no time, and say nothing of it.
    """

    def __init__(self, iters: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.iters, self.clock = iters, clock
        self.begin: dict[str, float] = {}
        self.given: dict[str, float] = {}
        self.from_probe: float | None = None

    def update(self, progress: Progress) -> float | None:
        """Seconds left; None where there is nothing to go by yet."""
        if progress.stage not in LEARNING:
            return None
        share = share_done(progress)
        if progress.earlier:
            self.begin[progress.stage], self.given[progress.stage] = self.clock(), share
        elapsed = self.clock() - self.begin.setdefault(progress.stage, self.clock())
        given = self.given.get(progress.stage, 0.0)
        whole = elapsed / (share - given) if share > given else None
        if progress.stage == "probe":
            if whole is None:
                return None
            self.from_probe = whole * self.iters / max(1, progress.iters)
            return whole * (1 - share) + self.from_probe
        if self.from_probe is None:
            return whole * (1 - share) if whole is not None else None
        # Weighted mean of the two estimates, by the share of what this run has to do.
        trust = (share - given) / (1 - given) if given < 1 else 1.0
        return (1 - share) * (trust * (whole or 0.0) + (1 - trust) * self.from_probe)


def so_far() -> tuple[float, float]:
    """Seconds that this process has taken: on the clock, and of the processor."""
    return max(0.0, time.time() - psutil.Process().create_time()), time.process_time()


def share_done(progress: Progress) -> float:
    """Share of the stage that is done, 0 to 1."""
    if not progress.total:
        return 0.0
    within = 0.0 if progress.result is not None or not progress.iters else progress.iteration / progress.iters
    return min(1.0, (progress.done + within) / progress.total)
