"""Graphs of any number of nodes, for the growth of ``inspect``: small layers, as only the number of nodes is in question."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CHAINS"]

CHANNELS = 4


class _Graph:
    """Nodes one after the other, and their constants."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.tensors: list[TensorProto] = []

    def node(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name, **attributes))
        return f"{name}_out"

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def conv(self, value: str) -> str:
        rng = np.random.default_rng(len(self.tensors))
        weight = self.constant(rng.standard_normal((CHANNELS, CHANNELS, 1, 1)))
        return self.node("Conv", value, weight, self.constant(np.zeros(CHANNELS)))

    def model(self, value: str) -> ModelProto:
        shape = ["N", CHANNELS, 8, 8]
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", value))
        graph = helper.make_graph(self.nodes, "chain", [x], [y], self.tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _relus(count: int) -> ModelProto:
    graph = _Graph()
    value = graph.conv("x")
    while len(graph.nodes) < count - 1:
        value = graph.node("Relu", value)
    return graph.model(graph.conv(value))


def _adds(count: int) -> ModelProto:
    """Each Add joins what the one in front made and what the first layer made: one tensor with as many readers as nodes."""
    graph = _Graph()
    first = value = graph.conv("x")
    while len(graph.nodes) < count - 1:
        value = graph.node("Add", value, first)
    return graph.model(graph.conv(value))


def _convs(count: int) -> ModelProto:
    graph, value = _Graph(), "x"
    while len(graph.nodes) < count:
        value = graph.conv(value)
    return graph.model(value)


def _residual(count: int) -> ModelProto:
    graph = _Graph()
    value = graph.conv("x")
    while len(graph.nodes) < count - 4:
        inner = graph.conv(graph.node("Relu", graph.conv(value)))
        value = graph.node("Relu", graph.node("Add", value, inner))
    return graph.model(value)


def _branches(count: int) -> ModelProto:
    """Branches of a layer and a Relu beside each other, summed up at once."""
    graph = _Graph()
    value, ends = graph.conv("x"), []
    while len(graph.nodes) < count - 2:
        ends.append(graph.node("Relu", graph.conv(value)))
    return graph.model(graph.conv(graph.node("Sum", *ends)))


def _skips(count: int) -> ModelProto:
    """Skip paths around each other, as in a U-Net: half of all tensors are alive in the middle."""
    graph, value, open_ends = _Graph(), "x", []
    while len(graph.nodes) < count // 2:
        value = graph.node("Relu", graph.conv(value))
        open_ends.append(value)
    while open_ends and len(graph.nodes) < count - 1:
        value = graph.node("Add", graph.conv(value), open_ends.pop())
    return graph.model(value)


#: What a row is called, and what makes the graph of so many nodes, or a few less.
CHAINS: dict[str, Callable[[int], ModelProto]] = {
    "a chain of Relus": _relus,
    "a chain of Adds with one tensor": _adds,
    "a chain of convolutions": _convs,
    "residual blocks": _residual,
    "parallel branches": _branches,
    "nested skip paths": _skips,
}
