"""The least memory that a run works in, known before it begins: a budget below that is refused, not broken.

What a process holds once the model is loaded is measured; what comes on top follows from shapes. The factors are those at which
every method on every network of ``benchmarks/memory_limits.py`` stays below what is said here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import psutil

from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.data import Dataset
from mrecg_onnx.machine.amounts import byte_size
from mrecg_onnx.machine.cache import give_back
from mrecg_onnx.planning import Footprint

__all__ = ["Needs", "refuse_file"]

#: What libraries take when they are first used (kernels of oneDNN, ONNX Runtime's threads and sessions) and what is fragmented.
FIRST_USE = 85 * 10**6
#: Copies of the weights: as loaded, planned, in torch, as codes with their scales, learned, written, and in sessions.
COPIES = 12
#: Inputs held at a time: those for what comes before reconstruction, the batch that is read, and both as they are passed on.
INPUTS = 112
#: Images whose every tensor is held at a time where the written file is checked, with what ONNX Runtime's arena rounds up.
CHECKED = 10
#: The least decoding may take where no budget says less.
DECODING = 256 << 20
#: Steps in which the least is said, in bytes.
STEP = 50 * 10**6
#: A model's file when it is read: its bytes, as a message, and as a graph.
READING = 3


@dataclass(frozen=True)
class Needs:
    """What a run needs beside what is held when it begins.

    Attributes:
        always: bytes at any time.
        most: bytes for tensors at the worst time.
    """

    always: int
    most: int

    @classmethod
    def of(cls, network: Footprint, learning: int = 0) -> Needs:
        """Of a network, and of ``learning`` in so many bytes."""
        return cls(
            FIRST_USE + COPIES * network.weights + INPUTS * network.inputs, max(CHECKED * network.tensors, learning)
        )

    def settle(self, memory: int, dataset: Dataset | None, *, asked: bool) -> None:
        """Give the reading of images its part of ``memory``, or refuse a budget that was ``asked`` for and cannot be kept.

        Raises:
            SettingsError: it cannot; the least that works is named.
        """
        give_back()
        held = psutil.Process().memory_info().rss
        free = memory - held - self.always
        largest, name = 0, ""
        if dataset is not None:
            largest, name = dataset.decode_within(max(0, free) if asked else max(free, DECODING))
        if not asked or max(self.most, largest) <= free:
            return
        least = held + self.always + max(self.most, largest)
        why = f"{byte_size(held)} are held already, {byte_size(least - held)} come on top, rounded up"
        if largest > self.most:
            why = f"{name} takes {byte_size(largest)} while it is read"
        raise SettingsError(
            f"--memory {byte_size(memory)} cannot be kept: the least that works is {_rounded(least)} ({why})"
        )


def refuse_file(memory: int, size: int) -> None:
    """Refuse a budget that was asked for before a model's file of ``size`` bytes is read.

    Raises:
        SettingsError: ``memory`` does not hold it.
    """
    held = psutil.Process().memory_info().rss
    least = held + FIRST_USE + READING * size
    if least > memory and READING * size > FIRST_USE:  # a small one is read: then the least that works is known
        raise SettingsError(
            f"--memory {byte_size(memory)} cannot be kept: Python, its libraries and the model alone take "
            f"{_rounded(least)}"
        )


def _rounded(size: int) -> str:
    """Rounded up, with room for what differs from run to run."""
    return byte_size(math.ceil((size + STEP / 5) / STEP) * STEP, up=True)
