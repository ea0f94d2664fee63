"""Where a quantized file is meant to run: rules as data."""

from __future__ import annotations

__all__ = ["CONTAINER_NAMES"]

#: Rows of :data:`mrecg_onnx.containers.CONTAINERS`; here, because help pages do not wait for onnx.
CONTAINER_NAMES = ("int8", "packed", "typed")
