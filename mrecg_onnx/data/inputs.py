"""What a model wants to be fed: name, shape and type of one input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["InputSpec", "shape_text"]


@dataclass(frozen=True)
class InputSpec:
    """One input of the model.

    Attributes:
        name: the graph input's name.
        shape: its shape, batch first; None where a size is free.
        dtype: its element type.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "dtype", np.dtype(self.dtype))

    def __str__(self) -> str:
        return f"input '{self.name}' {shape_text(self.shape)} {self.dtype}"


def shape_text(shape: Sequence[int | None]) -> str:
    """``(?, 3, 32, 32)``; a free size is a question mark."""
    return f"({', '.join('?' if size is None else str(size) for size in shape)})"
