"""Iterations that are recorded once and replayed.

An iteration of a small unit is some two hundred kernels of a few microseconds each: a GPU waits for their launches most of the
time. A CUDA graph launches all of them at once.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from torch import Tensor

from mrecg_onnx.converters.errors import first_line

__all__ = ["Batch", "Iterations", "Recording"]

logger = logging.getLogger(__name__)

#: Recordings that one object makes at most, as each keeps a batch of its own; rarer keys run as they are.
MOST = 12
#: What one iteration reads, by any names.
Batch = dict[tuple[str, str], Tensor]


class Recording:
    """A CUDA graph of one call of ``function``; what it reads is copied into the tensors of the batch it was made with.

    Args:
        function: makes a tensor of a batch, without waiting for the device.
        batch: kept, and overwritten by every replay.
        pool: memory that recordings which never run at the same time share.
        generators: random numbers that ``function`` draws on the device.

    Raises:
        RuntimeError: ``function`` does something that cannot be recorded, such as waiting for a value.
    """

    def __init__(
        self,
        function: Callable[[Batch], Tensor],
        batch: Batch,
        pool: Any,
        generators: tuple[torch.Generator, ...] = (),
    ) -> None:
        self.batch = batch
        self.graph = torch.cuda.CUDAGraph()
        for generator in generators:
            self.graph.register_generator_state(generator)
        torch.cuda.synchronize()
        self.graph.capture_begin(pool=pool)
        try:
            self.output = function(batch)
        finally:
            self.graph.capture_end()

    def replay(self, batch: Batch) -> Tensor:
        """The same on other values; the result lasts until the next replay."""
        torch._foreach_copy_([self.batch[name] for name in batch], list(batch.values()))
        self.graph.replay()
        return self.output


class Iterations:
    """Calls ``function`` on batches, again and again; with ``record`` by replaying what was recorded.

    Every key has a recording of its own, and so has every shape of a batch: nothing else that ``function`` reads from Python may
    differ among calls with one key. The first call with a key runs as it is (libraries choose their kernels then), the second is
    recorded. What cannot be recorded runs as it is.

    Args:
        function: one iteration.
        device: where it runs.
        record: use recordings; on a CUDA device only.
        generators: random numbers that ``function`` draws on the device, asked for before every recording.
        restart: called when a recording failed; replaces generators that may still belong to it.
    """

    def __init__(
        self,
        function: Callable[[Batch], Tensor],
        device: torch.device,
        *,
        record: bool,
        generators: Callable[[], tuple[torch.Generator, ...]] = tuple,
        restart: Callable[[], None] = lambda: None,
    ) -> None:
        self.function, self.device, self.record = function, device, record
        self.generators, self.restart = generators, restart
        self.seen: set[Hashable] = set()
        self.recordings: dict[Hashable, Recording] = {}
        self._pool: Any = None

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """Calls belong inside: recordings are made beside the device's default stream, and gradients stay on one stream.

        Recordings end with it, and their memory is free again for others to see.
        """
        if not self.record:
            yield
            return
        outer = torch.cuda.current_stream(self.device)
        inner = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        inner.wait_stream(outer)
        with torch.cuda.stream(inner):
            yield
        outer.wait_stream(inner)
        torch.cuda.synchronize(self.device)
        self.recordings.clear()
        torch.cuda.empty_cache()

    def __call__(self, key: Hashable, batch: Batch) -> Tensor:
        """Result of ``function`` on ``batch``; the next call may overwrite it."""
        key = key, *(tuple(value.shape) for value in batch.values())
        if key in self.recordings:
            return self.recordings[key].replay(batch)
        if self.record and key in self.seen and len(self.recordings) < MOST:
            try:
                self.recordings[key] = self._recorded(batch)
                return self.recordings[key].replay(batch)
            except RuntimeError as error:
                logger.info("iterations are not recorded, they run one kernel at a time: %s", first_line(error))
                self.record = False
                self.restart()
        self.seen.add(key)
        return self.function(batch)

    def _recorded(self, batch: Batch) -> Recording:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        return Recording(self.function, batch, self._pool, self.generators())
