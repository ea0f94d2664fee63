"""Chains of equal residual blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helpers.architectures import Graph

if TYPE_CHECKING:
    import onnx

__all__ = ["blocks"]


def blocks(count: int) -> onnx.ModelProto:
    """A stem, ``count`` blocks of two convolutions with a shortcut, and a classifier."""
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 8, "stem"), "stem_relu")
    for i in range(count):
        y = g.conv(g.relu(g.conv(x, 8, 8, f"a{i}"), f"a{i}_relu"), 8, 8, f"b{i}")
        x = g.relu(g.op("Add", [x, y], f"add{i}"), f"add{i}_relu")
    g.classifier(x, 8)
    return g.model()
