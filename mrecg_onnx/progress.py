"""How long work says where it is, and how long each stage took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mrecg_onnx.learning.reconstruction import UnitResult

__all__ = ["Clock", "Progress", "Report"]


@dataclass(frozen=True)
class Progress:
    """Where a run is.

    Attributes:
        stage: "load", "zeroq", "plan", "equalize", "allocate", "calibrate", "sensitivity", "lapq", "read", "probe",
            "reconstruct", "export" or "verify".
        unit: name of the unit at work, "" in other stages.
        done: units (or other steps) finished.
        total: how many there are.
        iteration: iteration within the unit.
        iters: iterations a unit.
        loss: last training loss, None where there is none yet.
        result: outcome of a unit that has just been finished.
    """

    stage: str
    unit: str = ""
    done: int = 0
    total: int = 0
    iteration: int = 0
    iters: int = 0
    loss: float | None = None
    result: UnitResult | None = None


Report = Callable[[Progress], None]


class Clock:
    """Wall time by stage; each stage is reported as it begins."""

    def __init__(self, report: Report | None = None) -> None:
        self.report = report
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of the block under ``name``."""
        if self.report is not None:
            self.report(Progress(name))
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
