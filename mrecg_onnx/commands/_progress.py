"""Progress of a run: a live line on a terminal, else a line for every finished stage and unit."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mrecg_onnx.commands._console import say, standard_error
from mrecg_onnx.converters.text import printable
from mrecg_onnx.machine import is_first
from mrecg_onnx.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console
    from rich.progress import Progress as Bar

    from mrecg_onnx.comparing import Cell, ComparisonProgress
    from mrecg_onnx.progress import Progress

__all__ = ["TimeLeft", "cells", "counter", "duration", "progress"]

#: Stages that take units one after the other.
LEARNING = frozenset({"probe", "finish", *(phase.stage for method in METHODS.values() for phase in method.passes)})


def duration(seconds: float) -> str:
    """``12.3 s`` below a minute, then ``2:05`` and ``1:02:05``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class TimeLeft:
    """Estimates the seconds until all units are learned.

    A stage's time is extrapolated from the share of it that is done. The probing run visits the same layers with fewer
    iterations: scaled up, it tells what the reconstruction will take, and what its own pace says counts the more the
    further it is.
    """

    def __init__(self, iters: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.iters, self.clock = iters, clock
        self.begin: dict[str, float] = {}
        self.from_probe: float | None = None

    def update(self, progress: Progress) -> float | None:
        """Seconds left; None where there is nothing to go by yet."""
        if progress.stage not in LEARNING:
            return None
        elapsed = self.clock() - self.begin.setdefault(progress.stage, self.clock())
        share = share_done(progress)
        if progress.stage == "probe":
            if share == 0:
                return None
            whole = elapsed / share
            self.from_probe = whole * self.iters / max(1, progress.iters)
            return whole - elapsed + self.from_probe
        if self.from_probe is None:
            return elapsed / share * (1 - share) if share else None
        # Weighted mean of the two estimates: share * (elapsed / share) + (1 - share) * from_probe.
        return (1 - share) * (elapsed + (1 - share) * self.from_probe)


def share_done(progress: Progress) -> float:
    """Share of the stage that is done, 0 to 1."""
    if not progress.total:
        return 0.0
    within = 0.0 if progress.result is not None or not progress.iters else progress.iteration / progress.iters
    return min(1.0, (progress.done + within) / progress.total)


@contextmanager
def progress(iters: int) -> Iterator[Callable[[Progress], None]]:
    """The ``report`` of a run of ``iters`` iterations a unit; shown on stderr until the context ends."""
    stderr = standard_error()
    if not is_first():
        yield lambda _: None
    elif stderr.is_terminal and not stderr.is_dumb_terminal:
        with _Live(stderr, iters) as live:
            yield live.report
    else:
        plain = _Plain(iters)
        yield plain.report
        plain.finish()


class _Plain:
    """Lines for logs."""

    def __init__(self, iters: int) -> None:
        self.left = TimeLeft(iters)
        self.stage, self.begin = "", 0.0

    def report(self, progress: Progress) -> None:
        if progress.stage != self.stage:
            self.finish()
            self.stage, self.begin = progress.stage, time.monotonic()
        left = self.left.update(progress)
        result = progress.result
        if result is None:
            return
        line = (
            f"{progress.stage} {progress.done}/{progress.total} {progress.unit}: loss {result.loss_nearest:.4g} -> "
            f"{result.final_loss:.4g} ({result.kept}), {result.iters} iterations in {duration(result.seconds)}"
        )
        if left is not None:
            line += f", about {duration(left)} left"
        say(line)

    def finish(self) -> None:
        if self.stage:
            say(f"{self.stage} done in {duration(time.monotonic() - self.begin)}")
        self.stage = ""


class _Live:
    """One line that changes."""

    def __init__(self, stderr: Console, iters: int) -> None:
        self.left = TimeLeft(iters)
        self.bar = _bar(stderr)
        self.task = self.bar.add_task("", total=None, detail="")

    def __enter__(self) -> _Live:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def report(self, progress: Progress) -> None:
        left = self.left.update(progress)
        detail = []
        if progress.total:
            detail.append(f"{progress.done}/{progress.total}")
        if progress.unit:
            detail += [progress.unit, f"iteration {progress.iteration}/{progress.iters}"]
        if progress.loss is not None:
            detail.append(f"loss {progress.loss:.4g}")
        if left is not None:
            detail.append(f"about {duration(left)} left")
        self.bar.update(
            self.task,
            description=progress.stage,
            total=1.0 if progress.total else None,
            completed=share_done(progress),
            detail="  ".join(detail),
        )


@contextmanager
def cells(iters: int) -> Iterator[_Cells]:
    """The ``report`` of a comparison: a line for every cell, and on a terminal one that changes below them."""
    stderr = standard_error()
    if not stderr.is_terminal or stderr.is_dumb_terminal:
        yield _Cells(iters, say, None)
        return
    with _bar(stderr) as bar:
        yield _Cells(iters, bar.console.print, bar)


class _Cells:
    """Which cell is at work, and what came of those before it."""

    def __init__(self, iters: int, write: Callable[[str], None], bar: Bar | None) -> None:
        self.iters, self.write, self.bar = iters, write, bar
        self.task = bar.add_task("", total=None, detail="") if bar is not None else None
        self.finished, self.at = 0, 0
        self.left = TimeLeft(iters)

    def __call__(self, progress: ComparisonProgress) -> None:
        """Show it."""
        if progress.stage != "latency" and progress.number != self.at:
            self.at, self.left = progress.number, TimeLeft(self.iters)
        if progress.finished is not None:
            self.finished += progress.finished.error is None
            self.write(f"cell {progress.number}/{progress.total} {progress.name}: {_outcome(progress.finished)}")
        if self.bar is None or self.task is None:
            return
        inner, detail = progress.inner, []
        share = 0.0
        if inner is not None:
            share, left = share_done(inner), self.left.update(inner)
            detail.append(f"{inner.stage} {inner.done}/{inner.total}" if inner.total else inner.stage)
            if left is not None:
                detail.append(f"about {duration(left)} left in this cell")
        else:
            detail.append(progress.stage)
        self.bar.update(
            self.task,
            description=f"cell {progress.number}/{progress.total} {progress.name}",
            total=float(progress.total),
            completed=progress.number - 1 + (share if inner is not None and inner.stage == "reconstruct" else 0.0),
            detail="  ".join(detail),
        )


def _outcome(cell: Cell) -> str:
    if cell.error is not None:
        return f"failed: {cell.error}"
    parts = []
    if cell.top1 is not None:
        parts.append(f"top-1 {cell.top1.value:.2%}")
    elif cell.agreement is not None:
        parts.append(f"agreement {cell.agreement:.2%}")
    elif cell.sqnr_db is not None:
        parts.append(f"SQNR {cell.sqnr_db:.1f} dB")
    parts.append("kept from an earlier run" if cell.kept else f"in {duration(cell.seconds or 0.0)}")
    return ", ".join(parts)


@contextmanager
def counter(what: str) -> Iterator[Callable[[int, int], None]]:
    """The ``report(done, total)`` of a run over images: a bar on a terminal, else nothing."""
    stderr = standard_error()
    if not stderr.is_terminal or stderr.is_dumb_terminal or not is_first():
        yield lambda _done, _total: None
        return
    with _bar(stderr) as bar:
        task = bar.add_task(what, total=None, detail="")
        yield lambda done, total: bar.update(task, total=total, completed=done, detail=f"{done}/{total}")


def _bar(stderr: Console) -> Bar:
    from rich.progress import BarColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    class Words(TextColumn):
        def render(self, task: Task) -> Text:
            """Write a name's control characters out before the column is measured."""
            return Text(printable(super().render(task).plain))

    return Bar(
        SpinnerColumn(),
        Words("{task.description}", markup=False),
        BarColumn(bar_width=20),
        Words("{task.fields[detail]}", markup=False),
        TimeElapsedColumn(),
        console=stderr,
        transient=True,
        refresh_per_second=4,  # drawing takes time from the cores that learn
    )
