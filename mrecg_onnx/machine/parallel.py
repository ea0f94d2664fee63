"""Several processes at one model: each holds a share of the calibration set, gradients are averaged.

Started by torchrun; without it everything here is a no-op of one process. Source: synchronous data parallelism as in
torch.distributed, with the reconstruction unit's few variables as the only things exchanged.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, TypeVar, cast

from mrecg_onnx.converters.errors import MrecgError, SettingsError, WorkerError

if TYPE_CHECKING:  # torch takes seconds to load: only a process among several needs it here
    from torch import Tensor
    from torch._C._distributed_c10d import Store

__all__ = ["ALONE", "Workers", "is_first", "joined", "local_rank", "local_size", "world_size"]

T = TypeVar("T")

#: Keeps the random numbers of different processes apart: more than there are units.
SEED_STRIDE = 1_000_003
#: Numbers the groups of this process; all processes count alike.
_groups = count()

#: A process that is not heard of for so long counts as gone; a unit's slowest stage on large sets stays well below.
PATIENCE = timedelta(minutes=30)
#: Seconds in which all processes have to come, where the environment does not say otherwise by this name.
JOINING, JOINING_NAME = 300, "MRECG_ONNX_JOIN_SECONDS"


@dataclass(frozen=True)
class Workers:
    """This process among ``size`` of them.

    Attributes:
        rank: 0 for the one that writes, reports and decides.
        size: number of processes.
        device: where exchanged tensors have to be.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def first(self) -> bool:
        """True in the process that writes and reports."""
        return self.rank == 0

    def seed(self, seed: int) -> int:
        """The seed of this process for what each draws for itself, where all were given ``seed``: the first keeps it."""
        return seed + SEED_STRIDE * self.rank

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over all processes, in one exchange."""
        if self.size == 1 or not tensors:
            return
        import torch
        from torch import distributed as dist

        flat = torch.cat([t.reshape(-1) for t in tensors])
        with _guarded():
            dist.all_reduce(flat)
        flat /= self.size
        for tensor, part in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def total(self, values: Sequence[float]) -> list[float]:
        """Sum of each value over all processes."""
        if self.size == 1:
            return list(values)
        import torch
        from torch import distributed as dist

        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        with _guarded():
            dist.all_reduce(tensor)
        return cast("list[float]", tensor.tolist())

    def gather(self, value: T) -> list[T]:
        """``value`` of every process, by rank."""
        if self.size == 1:
            return [value]
        from torch import distributed as dist

        values: list[T | None] = [None] * self.size
        with _guarded():
            dist.all_gather_object(values, value)
        return cast("list[T]", values)

    def once(self, make: Callable[[], T]) -> T:
        """What ``make`` returns in the first process, in all of them: decisions must not differ by a rounding error.

        Raises:
            MrecgError: whatever the first process raises, raised in all.
        """
        if self.size == 1:
            return make()
        import torch
        from torch import distributed as dist

        made: tuple[T | None, MrecgError | None] = None, None
        box: list[bytes] = [b""]
        if self.first:
            try:
                made = make(), None
            except MrecgError as error:
                made = None, error
            buffer = io.BytesIO()
            torch.save(made, buffer)
            box = [buffer.getvalue()]
        with _guarded():
            dist.broadcast_object_list(box, src=0)
        if not self.first:
            # Pickled alone, tensors would stay on the first process's GPU.
            made = torch.load(io.BytesIO(box[0]), map_location=self.device, weights_only=False)
        value, failure = made
        if failure is not None:
            raise failure
        return cast("T", value)


ALONE = Workers()


@contextmanager
def _guarded() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise WorkerError(
            "another process of this job ended or cannot be reached; finished units are kept where --checkpoint was given: "
            f"start the same command again ({_said(error)})"
        ) from error


@contextmanager
def _meeting(patience: timedelta) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise WorkerError(
            f"not all of the {world_size()} processes of this job came within {round(patience.total_seconds())} seconds (this is "
            f"rank {_number('RANK', 0)}; they meet at {os.environ['MASTER_ADDR'][:64]}:{os.environ['MASTER_PORT'][:16]}): start "
            f"all, or unset RANK and WORLD_SIZE to run alone; {JOINING_NAME} sets how long is waited ({_said(error)})"
        ) from error


def _said(error: RuntimeError) -> str:
    """What torch says, without how it came to that."""
    return str(error).splitlines()[0].split(". ")[0]


def world_size() -> int:
    """Processes of this job: 1 without torchrun.

    Raises:
        SettingsError: the environment says what cannot be.
    """
    if "RANK" not in os.environ:
        return 1
    size = _number("WORLD_SIZE", 1)
    if not 0 <= _number("RANK", 0) < size:
        raise _no_job(f"RANK={os.environ['RANK']} and WORLD_SIZE={size}")
    return size


def local_size() -> int:
    """Processes of this job on this machine, which share its memory."""
    return max(1, _number("LOCAL_WORLD_SIZE", 1)) if world_size() > 1 else 1


def local_rank() -> int:
    """Number of this process among those on this machine: that of its GPU."""
    return _number("LOCAL_RANK", 0) if world_size() > 1 else 0


def is_first() -> bool:
    """True in the process that talks to the user: the only one, or torchrun's first."""
    return world_size() == 1 or _number("RANK", 0) == 0


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not re.fullmatch(r"-?[0-9]{1,9}", text):
        raise _no_job(f"{name}={text[:32]!r}")
    return int(text)


def _no_job(found: str) -> SettingsError:
    return SettingsError(
        f"{found} in the environment is no job of torchrun: unset RANK and WORLD_SIZE, or start with torchrun"
    )


def _patience(group: int) -> timedelta:
    """How long to wait for the others: they start together, and may have had other work before a later group."""
    text = os.environ.get(JOINING_NAME, str(JOINING))
    if not re.fullmatch(r"0*[1-9][0-9]{0,5}", text):
        raise SettingsError(
            f"{JOINING_NAME}={text[:32]!r} in the environment: it must be a number of seconds, 1 to 999999"
        )
    return PATIENCE if group else timedelta(seconds=int(text))


@cache
def _meeting_place() -> Store:
    """The store of torchrun, kept while the process lives: one group after the other may meet there."""
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", timeout=_patience(0)))
    return cast("Store", store)


def _met(group: int) -> Store:
    """A store for the processes of the job, which are all there.

    Raises:
        WorkerError: they are not.
    """
    from torch import distributed as dist

    patience = _patience(group)
    with _meeting(patience):
        # A name of its own: the store still has the addresses of a group that was there before.
        store = dist.PrefixStore(f"mrecg_onnx/{group}", _meeting_place())  # type: ignore[attr-defined]
        here = [f"here/{rank}" for rank in range(world_size())]
        store.set(here[_number("RANK", 0)], "")
        store.wait(here, patience)
    return cast("Store", store)


@contextmanager
def joined(device: str) -> Iterator[Workers]:
    """Join the other processes that torchrun started; alone without it.

    Args:
        device: type of the device that each process works on, "cpu" or "cuda"; with CUDA every process of a machine takes
            its own.

    Raises:
        WorkerError: the others cannot be reached.
    """
    if world_size() == 1:
        yield ALONE
        return
    if not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise _no_job("RANK and WORLD_SIZE without MASTER_ADDR and MASTER_PORT")
    import torch
    from torch import distributed as dist

    if device == "cuda":
        torch.cuda.set_device(local_rank())
    ours = not dist.is_initialized()
    if ours:
        # Imported later, its functions take the group as their default argument and keep it: threads of gloo are then still
        # there when the interpreter ends, and what they hold aborts the process (torch 2.13).
        import torch.distributed.nn

        store = _met(next(_groups))
        with _guarded():
            dist.init_process_group(
                "nccl" if device == "cuda" else "gloo",
                timeout=PATIENCE,
                store=store,
                rank=_number("RANK", 0),
                world_size=world_size(),
            )
    try:
        yield Workers(dist.get_rank(), dist.get_world_size(), device)
    finally:
        if ours:
            dist.destroy_process_group()
