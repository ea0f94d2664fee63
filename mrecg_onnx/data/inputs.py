"""What a model wants to be fed: name, shape and type of one input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mrecg_onnx.converters.text import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["InputSpec", "is_one_for_all", "shape_text", "uneven_rows"]


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


def is_one_for_all(shape: Sequence[int], spec: InputSpec) -> bool:
    """Whether an array of ``shape`` is all that the input takes in a run, of one sample: it can be the same in all runs."""
    return len(shape) == len(spec.shape) > 0 and shape[0] == spec.shape[0] == 1


def uneven_rows(counts: Mapping[str, int]) -> str:
    """What is wrong with inputs of so many rows, for messages."""
    told = ", ".join(f"{quoted(name)} {count}" for name, count in counts.items())
    return f"different numbers of rows: {told}; one row stands for all where the model takes one in a run (its first size is 1)"


def shape_text(shape: Sequence[int | None]) -> str:
    """``(?, 3, 32, 32)``; a free size is a question mark."""
    return f"({', '.join('?' if size is None else str(size) for size in shape)})"
