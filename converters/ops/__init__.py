"""torch modules for ONNX operators, by family; importing this package registers their converters."""

from __future__ import annotations

from mrecg_onnx.converters.ops import elementwise, indexing, normalization, pooling, reduce, resize, shape, weighted

__all__ = ["elementwise", "indexing", "normalization", "pooling", "reduce", "resize", "shape", "weighted"]
