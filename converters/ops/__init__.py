"""torch modules for ONNX operators, by family; importing this package registers their converters."""

from __future__ import annotations

from mrecg_onnx.converters.ops import (
    attention,
    elementwise,
    indexing,
    losses,
    normalization,
    pooling,
    reduce,
    resize,
    sampling,
    shape,
    signal,
    weighted,
)

__all__ = [
    "attention",
    "elementwise",
    "indexing",
    "losses",
    "normalization",
    "pooling",
    "reduce",
    "resize",
    "sampling",
    "shape",
    "signal",
    "weighted",
]
