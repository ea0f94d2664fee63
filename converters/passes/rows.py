"""Keep the axis of the batch where a graph takes it off an image and puts it back, as torchvision's detectors do."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from mrecg_onnx.converters.passes.values import (
    attribute_int,
    attribute_ints,
    constant,
    dims,
    is_standard,
    rank,
    replace_value,
    set_constant,
    sole_reader,
)

__all__ = ["keep_rows"]

#: What computes each number for itself, of one input or of one and constants that are broadcast to it.
_EACH = (
    "Abs", "Add", "Cast", "Clip", "Div", "Exp", "Log", "Max", "Min", "Mul", "Neg", "Pow", "Relu", "Sigmoid", "Sqrt", "Sub",
    "Tanh",
)  # fmt: skip


class _Way(NamedTuple):
    """From where the axis is taken off to where it is put back: nodes between, in order, and the last."""

    between: list[ir.Node]
    end: ir.Node


def keep_rows(model: ir.Model) -> bool:
    """Let what stands between ``Squeeze(x, 0)`` and ``Unsqueeze(y, 0)`` work on x with its axis, and remove both.

    A detector of torchvision makes a list of its batch, brings image after image to its mean, deviation and size, and stacks them
    again. With a batch of one image that is a way without forks, of nodes that work on each number or pad with constants: a
    Gather of place 0 takes off as a Squeeze does. The tensors between have other shapes then, and keep their names.

    Returns:
        Whether anything was changed.
    """
    changed = False
    for node in list(model.graph):
        if node.graph is None or not _takes_off(node):
            continue
        way = _way(node)
        source = node.inputs[0]
        assert source is not None
        if way is None:
            continue
        last = way.end.inputs[0] if way.between else source
        assert last is not None
        if way.end.outputs[0].is_graph_output() and (not way.between or last.is_graph_output()):
            continue
        ir.convenience.replace_all_uses_with(node.outputs[0], source)
        for inner in way.between:
            if inner.op_type == "Pad":
                pads = constant(inner.inputs[1])
                assert pads is not None
                begin, end = np.split(pads.reshape(-1), 2)
                zero = np.zeros(1, pads.dtype)
                set_constant(inner, 1, np.concatenate((zero, begin, zero, end)), f"{inner.name}_pads")
            made = inner.outputs[0]
            made.shape = None if made.shape is None else ir.Shape([1, *made.shape])
        replace_value(way.end.outputs[0], last)
        for gone in (way.end, node):
            model.graph.remove(gone, safe=True)
        changed = True
    return changed


def _way(node: ir.Node) -> _Way | None:
    """The way from ``node``, which takes the axis off; None where something else reads what lies on it."""
    between: list[ir.Node] = []
    value = node.outputs[0]
    while True:
        reader = None if value.is_graph_output() else sole_reader(value)
        if reader is None or reader.graph is not node.graph:
            return None
        if is_standard(reader, "Unsqueeze") and reader.inputs[0] is value and _axes(reader) == [0]:
            return _Way(between, reader)
        if not _works_on_each(reader, value):
            return None
        between.append(reader)
        value = reader.outputs[0]


def _works_on_each(node: ir.Node, value: ir.Value) -> bool:
    """Whether ``node`` does with an axis of size 1 in front of ``value`` what it does without."""
    axes = rank(value)
    if axes is None or len(node.outputs) != 1:
        return False
    others = [other for other in node.inputs if other is not None and other is not value]
    if is_standard(node, "Pad"):
        pads = constant(node.inputs[1])
        return node.inputs[0] is value and pads is not None and pads.size == 2 * axes and len(node.inputs) < 4
    return is_standard(node, *_EACH) and all((c := constant(other)) is not None and c.ndim <= axes for other in others)


def _takes_off(node: ir.Node) -> bool:
    """Whether ``node`` removes an axis of size 1 in front."""
    value = node.inputs[0] if node.inputs else None
    sizes = dims(value)
    if not sizes or sizes[0] != 1:
        return False
    if is_standard(node, "Squeeze"):
        return _axes(node) == [0]
    place = constant(node.inputs[1]) if is_standard(node, "Gather") else None
    return place is not None and place.ndim == 0 and int(place) in (0, -1) and attribute_int(node, "axis", 0) == 0


def _axes(node: ir.Node) -> list[int] | None:
    """The axes of a Squeeze or Unsqueeze, None where they are computed or not given."""
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        given = constant(node.inputs[1])
        return None if given is None else [int(axis) for axis in given.reshape(-1)]
    return attribute_ints(node, "axes")
