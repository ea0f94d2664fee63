"""The device that torch works on, and how exactly it multiplies there."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import torch

from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.machine.amounts import cores

__all__ = ["full_precision", "pick_device", "use_threads"]

logger = logging.getLogger(__name__)


def pick_device(name: str) -> torch.device:
    """The torch device for "auto", "cpu" or "cuda".

    Raises:
        SettingsError: CUDA is asked for and torch sees no device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise SettingsError("--device cuda: torch finds no CUDA device here; use --device cpu or auto")
    return torch.device(name)


def use_threads(threads: int | None) -> None:
    """Let torch work with so many CPU threads, its own choice with None, and say where they are more than the cores."""
    if threads is None:
        return
    if threads > cores():
        logger.warning(
            "--threads %d is more than the %d cores here: threads wait for each other; use at most %d",
            threads,
            cores(),
            cores(),
        )
    torch.set_num_threads(threads)


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Convolutions on a GPU in float32, not in its 10-bit TF32: codes behind 8 bits would fall the other way, and checks fail."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
