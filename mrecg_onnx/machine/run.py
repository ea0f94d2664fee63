"""What every stage of a job shares: its processes, its clock, its memory, and the folder where finished work is kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import psutil

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.data import Dataset
from mrecg_onnx.machine.cache import default_memory, give_back, keep_freed
from mrecg_onnx.machine.device import pick_device
from mrecg_onnx.machine.lock import locked
from mrecg_onnx.machine.needs import Needs, refuse_file
from mrecg_onnx.machine.parallel import ALONE, Workers, joined, local_size
from mrecg_onnx.machine.waiting import Pace
from mrecg_onnx.progress import Clock, Progress, Report

__all__ = ["Run", "open_run"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Kept free of the memory budget for the loop itself, a batch on its way through a unit and back: a share of the budget, and
#: of small budgets up to half, as long as that is less than a gigabyte.
WORKING_SHARE, SMALL_SHARE, SMALL = 0.3, 0.5, 10**9


@dataclass(frozen=True)
class Run:
    """One job on its way.

    Attributes:
        workers: the processes that share it.
        clock: wall time by stage; tells the user where the job is.
        memory: bytes that this process should stay within.
        folder: where finished units are kept, None if they are not.
        asked: somebody asked for that ``memory``: what cannot be done in it is refused.
    """

    workers: Workers = ALONE
    clock: Clock = field(default_factory=Clock)
    memory: int = 0
    folder: Path | None = None
    asked: bool = False

    @property
    def report(self) -> Report | None:
        """Called as the work proceeds."""
        return self.clock.report

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of a block under ``name``, and say that it begins; what the one before freed is given back."""
        give_back()
        with self.clock.stage(name):
            yield

    def once(self, make: Callable[[], T]) -> T:
        """What ``make`` returns in the first process, in all of them (:meth:`Workers.once`)."""
        return self.workers.once(make)

    def part(self, name: str) -> Run:
        """The same run with a folder of its own for what ``name`` finishes."""
        return self if self.folder is None else replace(self, folder=self.folder / name)

    def settle(self, needs: Needs, dataset: Dataset | None = None) -> None:
        """Refuse a memory that was asked for and does not do; with ``dataset`` the reading of images gets its part.

        Raises:
            SettingsError: the least that works is named.
        """
        needs.settle(self.memory, dataset, asked=self.asked)

    def require_same(self, dataset: Dataset) -> None:
        """Refuse data that are not the same in all processes, each of which reads a share of them.

        Raises:
            DataError: they differ, as those of a shuffled loader do whose generator is not seeded.
        """
        if self.workers.size > 1 and len(set(self.workers.gather(dataset.fingerprint()))) > 1:
            raise DataError(
                "the processes of this job read other samples, or in another order: hand over the same ones in each (seed what "
                "shuffles them)"
            )

    def require_file(self, model: object) -> None:
        """Refuse a memory that was asked for and does not hold ``model``, where that is a file, before it is read.

        Raises:
            SettingsError: the least that works is named.
        """
        if self.asked and isinstance(model, str | Path) and Path(model).is_file():
            refuse_file(self.memory, Path(model).stat().st_size)

    def cache_budget(self) -> int:
        """Bytes that are left for cached activations beside what the process holds and the loop needs."""
        give_back()
        held = psutil.Process().memory_info().rss
        working = max(WORKING_SHARE * self.memory, min(SMALL_SHARE * self.memory, SMALL))
        return max(0, int(self.memory - working) - held)


@contextmanager
def open_run(
    device: str, memory: int | None, folder: str | Path | None = None, report: Report | None = None
) -> Iterator[Run]:
    """Join the other processes of the job, if there are any, and start the clock.

    Args:
        device: "auto", "cpu" or "cuda".
        memory: bytes to stay within, None for half of what is free on this machine, shared among its processes.
        folder: where finished units are kept, None if they are not.
        report: called as the work proceeds, in the first process.

    Raises:
        SettingsError: there is no such device, or the folder cannot be used.
        DataError: another run uses the folder.
        WorkerError: the other processes cannot be reached.
    """
    asked = memory is not None
    memory = memory or default_memory() // local_size()
    keep_freed(memory)
    with joined(pick_device(device).type) as workers, ExitStack() as held:
        if folder is not None:
            workers.once(lambda: held.enter_context(locked(Path(folder), f"--checkpoint {folder}")))
        clock = Clock(_watched(report) if workers.first else None)
        yield Run(workers, clock, memory, Path(folder) if folder is not None else None, asked)


def _watched(report: Report | None) -> Report:
    """``report``, and a warning where others hold the run up."""
    pace = Pace()

    def hear(progress: Progress) -> None:
        slow = pace.update(progress)
        if slow is not None:
            logger.warning("%s", slow)
        if report is not None:
            report(progress)

    return hear
