"""How long work says where it is, and how long each stage took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["Clock", "Progress", "Report", "UnitResult", "tell", "told"]

T = TypeVar("T")


@dataclass(frozen=True)
class UnitResult:
    """Outcome of one unit.

    Attributes:
        name: the unit.
        layers: its weighted layers.
        iters: iterations made.
        loss_nearest: loss with nearest rounding, on the samples that decided.
        loss: loss with learned rounding after the hard decision, on the same samples.
        kept: "learned" or "nearest"; what the units were left with where the network is learned after them ("units").
        unsettled: share of rounding variables between 0.05 and 0.95 at the end.
        seconds: wall time.
    """

    name: str
    layers: tuple[str, ...]
    iters: int
    loss_nearest: float
    loss: float
    kept: str
    unsettled: float
    seconds: float

    @property
    def final_loss(self) -> float:
        """Loss of what was kept."""
        return self.loss if self.kept == "learned" else self.loss_nearest


@dataclass(frozen=True)
class Progress:
    """Where a run is.

    Attributes:
        stage: "load", "zeroq", "plan", "equalize", "allocate", "calibrate", "sensitivity", "lapq", "read", "probe",
            "reconstruct", "finish", "export" or "verify"; "validate", "benchmark" or "runtimes" of the calls of that name.
        unit: name of the unit (or the runtime) at work, "" in other stages.
        done: units (or other steps) finished.
        total: how many there are.
        of: what is counted, where it is not units: "images", "tensors", ...; "" where nothing says it.
        iteration: iteration within the unit.
        iters: iterations a unit.
        loss: last training loss, None where there is none yet.
        result: outcome of a unit that has just been finished.
        earlier: whether an earlier run finished it, whose checkpoint had it.
        said: a line about something else that has just been finished, such as a trial of ``max_drop``.
    """

    stage: str
    unit: str = ""
    done: int = 0
    total: int = 0
    iteration: int = 0
    iters: int = 0
    loss: float | None = None
    result: UnitResult | None = None
    of: str = ""
    earlier: bool = False
    said: str = ""

    def __str__(self) -> str:
        """One line, so that ``progress=print`` says where a run is."""
        if self.said:
            return self.said
        count = f" {self.done}/{self.total}" if self.total else ""
        said = f"{self.stage}{count}{f' {self.of}' if count and self.of else ''}{f' {self.unit}' if self.unit else ''}"
        if self.iters:
            said += f", iteration {self.iteration}/{self.iters}"
        if self.loss is not None:
            said += f", loss {self.loss:.4g}"
        if self.result is not None:
            said += f": loss {self.result.loss_nearest:.4g} -> {self.result.final_loss:.4g} ({self.result.kept})"
        if self.earlier:
            said += ", kept from an earlier run"
        return said


Report = Callable[[Progress], None]

#: Who hears of the stage at work; set by the clock, so that loops far inside need not hand it down.
_LISTENER: ContextVar[Callable[[int, int, str], None] | None] = ContextVar("listener", default=None)


def tell(done: int, total: int, of: str = "") -> None:
    """Say how far the stage at work is: ``done`` of ``total`` things called ``of``. Nothing where nobody listens."""
    listener = _LISTENER.get()
    if listener is not None:
        listener(done, total, of)


def told(items: Sequence[T], of: str) -> Iterator[T]:
    """``items`` one by one; the stage at work says after each how many are done, and what is counted inside is not told."""
    listener = _LISTENER.get()
    _LISTENER.set(None)
    try:
        for i, item in enumerate(items):
            yield item
            if listener is not None:
                listener(i + 1, len(items), of)
    finally:
        _LISTENER.set(listener)


class Clock:
    """Wall time by stage; each stage is reported as it begins."""

    def __init__(self, report: Report | None = None) -> None:
        self.report = report
        self.seconds: dict[str, float] = {}
        self._at = ""

    def say(self, line: str) -> None:
        """Say a line that stays, about what has just been finished in the stage at work."""
        if self.report is not None:
            self.report(Progress(self._at, said=line))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of the block under ``name``."""
        report, self._at = self.report, name
        if report is not None:
            report(Progress(name))

        def hear(done: int, total: int, of: str) -> None:
            if report is not None:
                report(Progress(name, done=done, total=total, of=of))

        token = _LISTENER.set(hear)
        start = time.perf_counter()
        try:
            yield
        finally:
            _LISTENER.reset(token)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
