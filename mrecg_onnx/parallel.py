"""Several processes at one model: each holds a share of the calibration set, gradients are averaged.

Started by torchrun; without it everything here is a no-op of one process. Source: synchronous data parallelism as in
torch.distributed, with the reconstruction unit's few variables as the only things exchanged.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar, cast

from mrecg_onnx.converters.errors import MrecgError, WorkerError

if TYPE_CHECKING:  # torch takes seconds to load: only a process among several needs it here
    from torch import Tensor

__all__ = ["ALONE", "Workers", "is_first", "joined"]

T = TypeVar("T")

#: A process that is not heard of for so long counts as gone; a unit's slowest stage on large sets stays well below.
PATIENCE = timedelta(minutes=30)


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

        box: list[object] = [None, None]
        if self.first:
            try:
                box[0] = make()
            except MrecgError as error:
                box[1] = error
        with _guarded():
            dist.broadcast_object_list(box, src=0, device=torch.device(self.device))
        if box[1] is not None:
            raise cast("MrecgError", box[1])
        return cast("T", box[0])


ALONE = Workers()


@contextmanager
def _guarded() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise WorkerError(
            "another process of this job ended or cannot be reached; finished units are kept where --checkpoint was given: "
            f"start the same command again ({str(error).splitlines()[0]})"
        ) from error


def _size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def is_first() -> bool:
    """True in the process that talks to the user: the only one, or torchrun's first."""
    return _size() == 1 or os.environ["RANK"] == "0"


@contextmanager
def joined(device: str) -> Iterator[Workers]:
    """Join the other processes that torchrun started; alone without it.

    Args:
        device: type of the device that each process works on, "cpu" or "cuda"; with CUDA every process of a machine takes
            its own.

    Raises:
        WorkerError: the others cannot be reached.
    """
    if _size() == 1:
        yield ALONE
        return
    import torch
    from torch import distributed as dist

    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    ours = not dist.is_initialized()
    if ours:
        with _guarded():
            dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Workers(dist.get_rank(), dist.get_world_size(), device)
    finally:
        if ours:
            dist.destroy_process_group()
