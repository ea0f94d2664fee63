"""The device that torch works on, and how exactly it multiplies there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from mrecg_onnx.converters.errors import SettingsError

__all__ = ["full_precision", "pick_device"]


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


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Convolutions on a GPU in float32, not in its 10-bit TF32: codes behind 8 bits would fall the other way, and checks fail."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
