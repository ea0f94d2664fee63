"""Progress of a run: a live line on a terminal, else a line for every stage as it begins and ends, and for every unit.

Without a terminal, silence is no longer than :data:`SILENCE`: a line says how far the stage at work is.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mrecg_onnx.commands._console import is_quiet, say, standard_error
from mrecg_onnx.commands._durations import TimeLeft, share_done
from mrecg_onnx.commands._fitting import fitted
from mrecg_onnx.converters.text import printable
from mrecg_onnx.machine import clock, duration, is_first

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console
    from rich.progress import Progress as Bar

    from mrecg_onnx.comparing import Cell, ComparisonProgress
    from mrecg_onnx.progress import Progress

__all__ = ["cells", "counter", "progress"]

#: Seconds after which a log without a terminal hears of the stage at work.
SILENCE = 15.0
#: The stage that is announced by the command's start, so that a model that cannot be read gets one line, the error.
FIRST = "load"
#: Columns of the bar, on terminals narrower than :data:`NARROW`, and on others.
SHORT_BAR, LONG_BAR, NARROW = 8, 20, 100


@dataclass(frozen=True)
class _State:
    """What a line says.

    Attributes:
        stage: in front.
        share: of the stage that is done, None where nothing tells.
        kept: what stays on a narrow terminal, behind the percentage.
        name: what is at work, shortened where it must be.
        extra: what a wide terminal has room for.
    """

    stage: str
    share: float | None = None
    kept: tuple[str, ...] = ()
    name: str = ""
    extra: tuple[str, ...] = ()


def _state_of(progress: Progress, left: float | None) -> _State:
    """What is said of a quantization."""
    kept, name, extra = [], "", []
    count = f"{progress.done}/{progress.total}" if progress.total else ""
    if progress.unit:
        kept.append(f"iter {progress.iteration}/{progress.iters}")
        name = f"{count} {progress.unit}".strip()
    elif count:
        kept.append(f"{count} {progress.of}".strip())
    if left is not None:
        kept.append(f"{clock(left)} left")
    if progress.loss is not None:
        extra.append(f"loss {progress.loss:.4g}")
    share = share_done(progress) if progress.total else None
    return _State(progress.stage, share, tuple(kept), name, tuple(extra))


@contextmanager
def progress(iters: int, names: Callable[[str], str] = str) -> Iterator[Callable[[Progress], None]]:
    """The ``report`` of a run of ``iters`` iterations a unit, shown on stderr until the context ends; units as ``names`` says."""
    left = TimeLeft(iters)
    with _shown() as view:

        def report(now: Progress) -> None:
            if now.said:
                view.say(now.said)
                return
            now = replace(now, unit=names(now.unit)) if now.unit else now
            remaining, result = left.update(now), now.result
            view.show(_state_of(now, remaining))
            if result is None:
                return
            line = (
                f"{now.stage} {now.done}/{now.total} {now.unit}: loss {result.loss_nearest:.4g} -> "
                f"{result.final_loss:.4g} ({result.kept}), "
                + (
                    "kept from an earlier run"
                    if now.earlier
                    else f"{result.iters} iterations in {duration(result.seconds)}"
                )
            )
            view.note(line + (f", about {duration(remaining)} left" if remaining else ""))

        yield report


@contextmanager
def counter(what: str) -> Iterator[Callable[[Progress], None]]:
    """The progress of a run that only counts, shown on stderr until the context ends."""
    with _shown() as view:
        view.show(_State(what))

        def report(now: Progress) -> None:
            share = now.done / now.total if now.total else None
            view.show(_State(what, share, (f"{now.done}/{now.total} {now.of}".strip(),), now.unit))

        yield report


@contextmanager
def cells(iters: int) -> Iterator[_Cells]:
    """The ``report`` of a comparison: a line for every cell, and one that changes, or is said again, below them."""
    with _shown() as view:
        yield _Cells(iters, view)


class _Cells:
    """Which cell is at work, and what came of those before it."""

    def __init__(self, iters: int, view: _View) -> None:
        self.iters, self.view = iters, view
        self.finished, self.at, self.share = 0, 0, 0.0
        self.left = TimeLeft(iters)

    def __call__(self, progress: ComparisonProgress) -> None:
        """Show it."""
        if progress.stage != "latency" and progress.number != self.at:
            self.at, self.left, self.share = progress.number, TimeLeft(self.iters), 0.0
        inner, stage, kept = progress.inner, f"cell {progress.number}/{progress.total}", [progress.stage]
        if progress.stage == "latency":  # every cell once more, when all are finished
            stage, kept, self.share = f"latency of {stage}", [], 0.0
        if inner is not None:
            found = _state_of(inner, self.left.update(inner))
            kept = [inner.stage, *found.kept[-1:]]
            if inner.stage == "reconstruct":  # what a cell takes; the stages behind it leave it where it is
                self.share = max(self.share, found.share or 0.0)
        whole = (progress.number - 1 + self.share) / max(1, progress.total)
        done = progress.finished
        if done is None:
            self.view.show(_State(stage, whole, tuple(kept), progress.name))
            return
        self.finished += done.error is None
        self.view.say(f"cell {progress.number}/{progress.total} {progress.name}: {_outcome(done)}")


def _outcome(cell: Cell) -> str:
    if cell.error is not None:
        return f"failed: {cell.error}"
    parts = []
    if cell.score is not None:
        parts.append(f"{cell.score:.4g} by the metric")
    elif cell.top1 is not None:
        parts.append(f"top-1 {cell.top1.value:.2%}")
    elif cell.agreement is not None:
        parts.append(f"agreement {cell.agreement:.2%}")
    elif cell.sqnr_db is not None:
        parts.append(f"SQNR {cell.sqnr_db:.1f} dB")
    parts.append("kept from an earlier run" if cell.kept else f"in {duration(cell.seconds or 0.0)}")
    return ", ".join(parts)


# --- where it is shown -----------------------------------------------------------------------------------------------


@contextmanager
def _shown() -> Iterator[_View]:
    """A live line on a terminal, lines without one; nothing in the other processes of a job, and with --quiet."""
    if is_quiet() or not is_first():
        yield _View()
        return
    stderr = standard_error()
    with _Live(stderr) if stderr.is_terminal and not stderr.is_dumb_terminal else _Plain() as view:
        yield view


class _View:
    """Shows nothing."""

    def show(self, state: _State) -> None:
        """Where the run is now."""

    def note(self, line: str) -> None:
        """What a log keeps and a terminal does not need."""

    def say(self, line: str) -> None:
        """What both keep."""


class _Plain(_View):
    """Lines for logs; a thread says where the run is when nothing else did for :data:`SILENCE` seconds."""

    def __init__(self) -> None:
        self.state, self.begin, self.said = _State(""), 0.0, time.monotonic()
        self._over, self._lock = threading.Event(), threading.Lock()
        self._watch = threading.Thread(target=self._break_silence, daemon=True)

    def __enter__(self) -> _Plain:
        self._watch.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._over.set()
        self._watch.join()
        if kind is None:
            self._end()

    def show(self, state: _State) -> None:
        with self._lock:
            if state.stage != self.state.stage:
                self._end()
                self.begin = time.monotonic()
                if state.stage != FIRST:
                    self._line(" ".join(filter(None, [state.stage, state.name])) + " ...")
            self.state = state

    def note(self, line: str) -> None:
        with self._lock:
            self._line(line)

    say = note

    def _line(self, line: str) -> None:
        say(line)
        self.said = time.monotonic()

    def _end(self) -> None:
        if self.state.stage and " " not in self.state.stage:  # the end of a cell has a line of its own
            self._line(f"{self.state.stage} done in {duration(time.monotonic() - self.begin)}")
        self.state = _State("")

    def _break_silence(self) -> None:
        while not self._over.wait(min(1.0, SILENCE)):
            with self._lock:
                now, state = time.monotonic(), self.state
                if state.stage and now - self.said >= SILENCE:
                    what = " ".join(filter(None, [state.stage, state.name]))
                    percent = () if state.share is None else (f"{state.share:.0%}",)
                    so_far = f"{duration(now - self.begin)} so far"
                    self._line(f"{what}: {', '.join([*percent, *state.kept, so_far])}")


class _Live(_View):
    """One line that changes."""

    def __init__(self, stderr: Console) -> None:
        self.bar = _bar(stderr)
        self.task = self.bar.add_task("starting", total=None, state=_State("starting"))

    def __enter__(self) -> _Live:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # the terminal is gone
            self.bar.stop()

    def show(self, state: _State) -> None:
        self.bar.update(
            self.task,
            description=state.stage,
            total=None if state.share is None else 1.0,
            completed=state.share or 0.0,
            state=state,
        )

    def say(self, line: str) -> None:
        self.bar.console.print(line)


def _bar(stderr: Console) -> Bar:
    from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    width = SHORT_BAR if stderr.width < NARROW else LONG_BAR

    class Words(TextColumn):
        def render(self, task: Task) -> Text:
            """Write a name's control characters out before the column is measured."""
            return Text(printable(super().render(task).plain))

    class Rest(ProgressColumn):
        def render(self, task: Task) -> Text:
            """What there is room for behind the bar."""
            state: _State = task.fields["state"]
            kept = list(state.kept) if state.share is None else [f"{state.share:4.0%}", *state.kept]
            if not any(part.endswith("left") for part in kept):
                kept.append(clock(task.elapsed or 0.0))
            # Spinner, stage and bar, with a space behind each.
            room = stderr.width - len("* ") - len(printable(state.stage)) - 1 - width - 1
            mark = "..." if stderr.options.ascii_only else "…"
            return Text(fitted(room, kept, printable(state.name), state.extra, mark), no_wrap=True, overflow="crop")

    return Bar(
        SpinnerColumn(),
        Words("{task.description}", markup=False),
        BarColumn(bar_width=width),
        Rest(),
        console=stderr,
        transient=True,
        refresh_per_second=4,  # drawing takes time from the cores that learn
    )
