"""What is done where a GPU's memory does not hold a unit: less is kept there, and fewer images go through at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from mrecg_onnx.converters.errors import DataError, first_line
from mrecg_onnx.learning.prefix import Prefix
from mrecg_onnx.machine import Workers
from mrecg_onnx.planning import UnitPlan

__all__ = ["relieved"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


def relieved(prefix: Prefix, unit: UnitPlan, batch_size: int, workers: Workers, make: Callable[[], T]) -> T:
    """What ``make`` returns, called again after each relief where the GPU runs out of memory in it.

    Of several processes the others would wait at another place than the one that begins again: there it is an error.

    Args:
        prefix: what is relieved, for ``unit`` and all behind it.
        unit: the unit at work; what was changed in the simulation is put back before ``make`` is called again.
        batch_size: images of an iteration, which is taken apart to single ones at most.
        workers: the processes of the job.
        make: the work.

    Raises:
        DataError: the GPU has no room for the least that works.
    """
    before = prefix.simulation.state()
    while True:
        try:
            return make()
        except torch.OutOfMemoryError as error:  # its traceback holds tensors: what is done about it comes after it
            said = first_line(error).split(". ")[0]
        prefix.simulation.restore(before)
        if workers.size == 1 and prefix.pool.leave_device():
            logger.warning("unit '%s': the GPU ran out of memory (%s); cached activations leave it", unit.name, said)
        elif workers.size == 1 and prefix.parts < batch_size:
            prefix.parts *= 2
            images = -(-batch_size // prefix.parts)
            logger.warning("unit '%s': the GPU ran out of memory (%s); %d images go at a time", unit.name, said, images)
        else:
            raise DataError(
                f"unit '{unit.name}': the GPU ran out of memory ({said}); free it, use a smaller --batch-size, or --device cpu"
            )
