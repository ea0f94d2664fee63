"""Streams: tensors of the float graph whose channels can be rescaled together, exactly.

Ops between the layers of a stream must be positively homogeneous, channel by channel (Nagel et al. 2019, eq. 8-11); for
residual streams all tensors that meet in the same Adds share one vector of scales (docs/method.md 5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mrecg_onnx.planning import (
    activation_inputs,
    activation_outputs,
    clamp_bounds,
    constant,
    is_activation,
    is_preserving,
    is_weighted,
    weight_index,
)

__all__ = ["Stream", "find_streams", "usable_weight"]

_HOMOGENEOUS = frozenset({"AveragePool", "GlobalAveragePool", "LeakyRelu", "MaxPool", "PRelu", "Relu"})
_VIEWS = frozenset({"Flatten", "Reshape", "Squeeze"})


@dataclass(frozen=True)
class Stream:
    """Tensors that must share one scale vector.

    Attributes:
        name: the first tensor.
        tensors: all of them, in topological order.
        channels: length of the vector.
        producers: nodes whose output channels are divided.
        consumers: nodes whose input channels are multiplied.
        ceilings: (tensor, bound) of every Clip in the stream: channels may be enlarged up to it, and none made smaller.
        grouped: only depthwise layers read it, whose weights have a scale for each channel.
    """

    name: str
    tensors: tuple[str, ...]
    channels: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    ceilings: tuple[tuple[str, float], ...] = ()
    grouped: bool = False


def _channels(value: ir.Value | None) -> int | None:
    if value is None or value.shape is None or len(value.shape) < 2:
        return None
    size = value.shape[1]
    return size if isinstance(size, int) else None


def _spatially_flat(node: ir.Node) -> bool:
    """True for [N, C, 1, 1] -> [N, C]."""
    source, made = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or made.shape is None:
        return False
    return all(d == 1 for d in list(source.shape)[2:]) and len(made.shape) == 2 and _channels(source) == _channels(made)


def _joined(node: ir.Node) -> list[ir.Value] | None:
    """Activations that must share a scale through ``node``; None if it allows none at all."""
    inputs, outputs = activation_inputs(node), activation_outputs(node)
    if node.op_type == "Add":
        same = len({tuple(str(d) for d in v.shape) if v.shape is not None else None for v in (*inputs, *outputs)}) == 1
        return [*inputs, *outputs] if len(inputs) == 2 and same and _channels(outputs[0]) else None
    if node.op_type in _HOMOGENEOUS and len(inputs) == 1:
        return [*inputs, node.outputs[0]]
    if node.op_type == "Pad" and _pads_space(node):
        return [*inputs, *outputs]
    if node.op_type in _VIEWS and _spatially_flat(node):
        return [*inputs, *outputs]
    if _ceiling(node) is not None:
        return [*inputs, *outputs]
    return None


def _pads_space(node: ir.Node) -> bool:
    """True for a Pad with zeros, or with the tensor's own values, that leaves batch and channels as they are."""
    amounts = constant(node.inputs[1]) if len(node.inputs) in {2, 3} else None
    if amounts is None or not is_preserving(node):
        return False
    begins, ends = np.split(amounts.numpy(), 2)
    return not begins[:2].any() and not ends[:2].any()


def _depthwise(node: ir.Node) -> bool:
    """True for a convolution whose output channels read one input channel each."""
    weight = constant(node.inputs[1]) if node.op_type == "Conv" else None
    return weight is not None and list(weight.shape)[1] == 1


def _ceiling(node: ir.Node | None) -> float | None:
    """Upper bound of a Relu6 (or another Clip from 0 to a constant), None for anything else."""
    bounds = clamp_bounds(node) if node is not None and node.op_type == "Clip" else None
    if bounds is None or bounds[0] != 0.0 or bounds[1] is None or not 0.0 < bounds[1] < math.inf:
        return None
    return bounds[1]


def usable_weight(node: ir.Node) -> bool:
    """True if weight and bias are this node's alone, and the channel axis is where it is expected."""
    index = weight_index(node)
    if index != 1 or node.op_type not in {"Conv", "Gemm"} or node.attributes.get_int("transA", 0) != 0:
        return False
    if any(v is not None and v.is_graph_output() for v in node.inputs[1:3]):
        return False
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and constant(bias) is None:
        return False
    return all(v is None or len(list(v.uses())) == 1 for v in node.inputs[1:3])


def find_streams(model: ir.Model, *, bounded: bool = False) -> list[Stream]:
    """All sets of tensors that can be rescaled exactly, in topological order.

    ``bounded``: Relu6 may become a bound a channel, so that streams through one are found whoever reads them.
    """
    parent: dict[ir.Value, ir.Value] = {}

    def root(value: ir.Value) -> ir.Value:
        while parent.setdefault(value, value) is not value:
            value = parent[value]
        return value

    blocked: set[ir.Value] = set()
    producers: dict[ir.Value, list[ir.Node]] = {}
    consumers: dict[ir.Value, list[ir.Node]] = {}
    for value in (*model.graph.inputs, *model.graph.outputs):
        blocked.add(value)
    for node in model.graph:
        inputs, outputs = activation_inputs(node), activation_outputs(node)
        if is_weighted(node) and usable_weight(node) and len(inputs) == 1:
            consumers.setdefault(inputs[0], []).append(node)
            producers.setdefault(outputs[0], []).append(node)
            continue
        shared = _joined(node)
        if shared is None:
            blocked.update((*inputs, *outputs))
            continue
        for value in shared[1:]:
            parent[root(value)] = root(shared[0])
    order = [v for v in (*model.graph.inputs, *(v for n in model.graph for v in n.outputs)) if is_activation(v)]
    sets: dict[ir.Value, list[ir.Value]] = {}
    for value in order:
        sets.setdefault(root(value), []).append(value)
    streams = []
    for values in sets.values():
        made = [n.name or "" for v in values for n in producers.get(v, [])]
        read = [n.name or "" for v in values for n in consumers.get(v, [])]
        sizes = {_channels(v) for v in values}
        if blocked & set(values) or not made or not read or len(sizes) != 1 or None in sizes:
            continue
        grouped = all(_depthwise(n) for v in values for n in consumers.get(v, []))
        if any(_ceiling(v.producer()) for v in values) and not (grouped or bounded):
            continue
        streams.append(
            Stream(
                values[0].name or "",
                tuple(v.name or "" for v in values),
                sizes.pop() or 0,
                tuple(made),
                tuple(read),
                tuple((v.name or "", bound) for v in values if (bound := _ceiling(v.producer())) is not None),
                grouped,
            )
        )
    return streams
