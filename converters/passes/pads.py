"""Write Pad for all axes of its input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from mrecg_onnx.converters.passes.values import add_initializer, constant, is_standard, rank, set_constant, unique_name

__all__ = ["pad_all_axes"]

if TYPE_CHECKING:
    from collections.abc import Sequence


def pad_all_axes(model: ir.Model) -> bool:
    """Replace the input ``axes`` of Pad (opset 18) by pads for all axes, 0 for those that it does not name.

    ONNX Runtime 1.31 moves Transposes (those that it makes between integer kernels, too) past such a Pad as if it had pads for
    all axes, and fails. Computed pads are put in their places by a Gather. A Pad whose axes are computed, or whose input has no
    known rank, stays.

    Returns:
        Whether anything was changed.
    """
    changed = False
    for node in list(model.graph):
        if not is_standard(node, "Pad") or len(node.inputs) < 4 or node.inputs[3] is None:
            continue
        named, axes = constant(node.inputs[3]), rank(node.inputs[0])
        if named is None or axes is None:
            continue
        places = [int(axis) % axes for axis in named.reshape(-1)]
        node.replace_input_with(3, None)
        node.resize_inputs(3 if node.inputs[2] is not None else 2)
        changed = True
        if places == list(range(axes)):
            continue
        pads = constant(node.inputs[1])
        if pads is not None:
            full = np.zeros((2, axes), np.int64)
            full[:, places] = pads.reshape(2, -1)
            set_constant(node, 1, full.reshape(-1), f"{node.name}_pads")
        else:
            _gather(node, places, axes)
    return changed


def _gather(node: ir.Node, places: Sequence[int], axes: int) -> None:
    """Let pads that the graph computes, for the axes ``places``, stand among zeros for all ``axes``."""
    graph, given = node.graph, node.inputs[1]
    assert isinstance(graph, ir.Graph)
    index = np.full((2, axes), 2 * len(places), np.int64)  # behind the given ones stands a 0
    index[:, list(places)] = np.arange(2 * len(places)).reshape(2, -1)
    name = node.name or node.outputs[0].name
    zero = add_initializer(graph, f"{name}_zero", np.zeros(1, np.int64))
    order = add_initializer(graph, f"{name}_order", index.reshape(-1))
    joined = ir.node("Concat", [given, zero], {"axis": 0}, name=f"{name}_pads_and_zero")
    joined.outputs[0].name = unique_name(graph, f"{name}_pads_and_zero")
    joined.outputs[0].type, joined.outputs[0].shape = ir.TensorType(ir.DataType.INT64), ir.Shape([2 * len(places) + 1])
    taken = ir.node("Gather", [joined.outputs[0], order], {"axis": 0}, name=f"{name}_pads")
    taken.outputs[0].name = unique_name(graph, f"{name}_pads")
    taken.outputs[0].type, taken.outputs[0].shape = ir.TensorType(ir.DataType.INT64), ir.Shape([2 * axes])
    graph.insert_before(node, [joined, taken])
    node.replace_input_with(1, taken.outputs[0])
