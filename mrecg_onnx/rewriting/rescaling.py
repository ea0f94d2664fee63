"""Exact rescaling of a stream in the graph, channel by channel.

One scale vector s per stream: every producer's output channels (weights and bias) are divided by s, every consumer's input
channels multiplied by it, and an upper bound of a channel between them is divided, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from mrecg_onnx.converters.passes.values import claim, unique_name
from mrecg_onnx.rewriting.streams import Stream

__all__ = ["along_input", "apply_scale", "bound_channels", "replace_constant"]


def along_input(shape: Sequence[int], scale: np.ndarray, groups: int, *, transposed: bool) -> np.ndarray:
    """``scale`` over input channels, shaped to multiply a Conv (OIHW, grouped) or Gemm weight of ``shape``."""
    if len(shape) == 2:
        return scale[None, :] if transposed else scale[:, None]
    out, per_group = shape[0], shape[1]
    rows = scale.reshape(groups, per_group).repeat(out // groups, axis=0)
    return rows.reshape(out, per_group, *[1] * (len(shape) - 2))


def replace_constant(value: ir.Value, array: np.ndarray) -> None:
    """Give an initializer other values, in the type it has."""
    old = value.const_value
    assert old is not None
    value.const_value = ir.tensor(array.astype(old.numpy().dtype), name=value.name)


def apply_scale(model: ir.Model, stream: Stream, scale: Sequence[float]) -> None:
    """Divide the producers of ``stream`` by ``scale`` (length ``channels``) and multiply its consumers, in place."""
    s = np.asarray(scale, np.float64)
    for node in model.graph:
        transposed = node.attributes.get_int("transB", 0) == 1
        if node.name in stream.producers:
            weight = node.inputs[1].const_value.numpy().astype(np.float64)  # type: ignore[union-attr]
            axis = 0 if node.op_type == "Conv" or transposed else 1
            shape = [1] * weight.ndim
            shape[axis] = -1
            replace_constant(node.inputs[1], weight / s.reshape(shape))  # type: ignore[arg-type]
            if len(node.inputs) > 2 and node.inputs[2] is not None:
                replace_constant(node.inputs[2], node.inputs[2].const_value.numpy().astype(np.float64) / s)  # type: ignore[union-attr]
        if node.name in stream.consumers:
            weight = node.inputs[1].const_value.numpy().astype(np.float64)  # type: ignore[union-attr]
            groups = node.attributes.get_int("group", 1)
            replace_constant(node.inputs[1], weight * along_input(weight.shape, s, groups, transposed=transposed))  # type: ignore[arg-type]


def bound_channels(model: ir.Model, stream: Stream, scale: Sequence[float]) -> None:
    """Let every Clip(0, b) of ``stream``, rescaled by ``scale``, be a Relu and a Min with b / s_c for each channel, in place."""
    graph = model.graph
    bounds = dict(stream.ceilings)
    for clip in [n for n in graph if n.outputs[0].name in bounds]:
        made, source = clip.outputs[0], clip.inputs[0]
        assert made.shape is not None
        most = np.asarray(bounds[made.name or ""] / np.asarray(scale, np.float64), np.float32)
        name = unique_name(graph, f"{made.name}_bound")
        most = most.reshape(1, -1, *[1] * (len(made.shape) - 2))
        bound = ir.Value(name=name, const_value=ir.tensor(most, name=name))
        bound.shape, bound.dtype = ir.Shape(most.shape), ir.DataType.FLOAT
        graph.register_initializer(bound)
        relu = ir.node("Relu", [source], name=claim(f"{clip.name}_relu", {n.name for n in graph}))
        relu.outputs[0].name = unique_name(graph, f"{made.name}_relu")
        relu.outputs[0].shape, relu.outputs[0].type = made.shape, made.type
        least = ir.node("Min", [relu.outputs[0], bound], name=clip.name)
        least.outputs[0].shape, least.outputs[0].type = made.shape, made.type
        graph.insert_after(clip, [relu, least])
        for node, index in list(made.uses()):
            node.replace_input_with(index, least.outputs[0])
        graph.remove(clip, safe=True)
        least.outputs[0].name = made.name
