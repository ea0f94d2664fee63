"""Sequences taken apart: tensors that an export packs into a sequence and takes out again are read where they come from.

1. An element of a SplitToSequence is a Slice, or a Gather where the axis goes.
2. An element of a SequenceConstruct is the tensor it was made of.
3. A SequenceConstruct that is joined again is a Concat.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from mrecg_onnx.converters.passes.values import (
    add_initializer,
    attribute_int,
    constant,
    dims,
    is_standard,
    replace_value,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["unpack_sequences"]


def unpack_sequences(model: ir.Model) -> bool:
    """Replace the nodes that read a sequence by such that read tensors, where the places are constant.

    Returns:
        Whether anything was replaced.
    """
    changed = False
    for node in list(model.graph):
        if not is_standard(node, "SequenceAt", "ConcatFromSequence") or node.inputs[0] is None:
            continue
        maker = node.inputs[0].producer()
        if maker is None or not is_standard(maker, "SplitToSequence", "SequenceConstruct"):
            continue
        if node.op_type == "ConcatFromSequence":
            changed |= _join(node, maker)
            continue
        place = constant(node.inputs[1])
        if place is not None:
            changed |= _pick(node, maker, int(place.reshape(())))
    return changed


def _pick(node: ir.Node, maker: ir.Node, place: int) -> bool:
    """Cases 1 and 2."""
    if maker.op_type == "SequenceConstruct":
        if not -len(maker.inputs) <= place < len(maker.inputs):
            return False
        element = maker.inputs[place]
        return element is not None and _replace(node, [_node(node, "Identity", [element])])
    source, axis = maker.inputs[0], attribute_int(maker, "axis", 0)
    bounds = _bounds(maker, place)
    graph = node.graph
    if source is None or bounds is None or not isinstance(graph, ir.Graph):
        return False
    start, end, drops_axis = bounds
    if drops_axis:
        index = add_initializer(graph, f"{node.name}_place", np.array(start, np.int64))
        return _replace(node, [_node(node, "Gather", [source, index], axis=axis)])
    numbers = [
        add_initializer(graph, f"{node.name}_{name}", np.array([value], np.int64))
        for name, value in (("start", start), ("end", end), ("axis", axis))
    ]
    return _replace(node, [_node(node, "Slice", [source, *numbers])])


def _bounds(maker: ir.Node, place: int) -> tuple[int, int, bool] | None:
    """Return where element ``place`` of a split starts and ends, and whether its axis goes; None if that is not known."""
    sizes = dims(maker.inputs[0])
    axis = attribute_int(maker, "axis", 0)
    length = None if sizes is None else sizes[axis]
    split = maker.inputs[1] if len(maker.inputs) > 1 else None
    if split is None:
        return (place, place + 1, not attribute_int(maker, "keepdims", 1)) if place >= 0 else None
    given = constant(split)
    if given is None:
        return None
    if given.ndim:
        ends = np.cumsum(given)
        at = place + len(ends) if place < 0 else place
        return (int(ends[at] - given[at]), int(ends[at]), False) if 0 <= at < len(ends) else None
    step = int(given)
    if place < 0:
        if length is None:
            return None
        place += -(-length // step)
    return place * step, (place + 1) * step, False


def _join(node: ir.Node, maker: ir.Node) -> bool:
    """Case 3."""
    if maker.op_type != "SequenceConstruct" or attribute_int(node, "new_axis", 0):
        return False
    return _replace(node, [_node(node, "Concat", maker.inputs, axis=attribute_int(node, "axis", 0))])


def _node(old: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], **attributes: int) -> ir.Node:
    return ir.node(op_type, inputs, attributes=dict(attributes), name=old.name)


def _replace(old: ir.Node, nodes: list[ir.Node]) -> bool:
    graph = old.graph
    assert graph is not None
    output, made = old.outputs[0], nodes[-1].outputs[0]
    graph.insert_before(old, nodes)
    made.shape, made.type = output.shape, output.type
    name = output.name
    if not replace_value(output, made):
        graph.remove(nodes, safe=True)
        return False
    graph.remove(old, safe=True)
    if made.name is None or made.name != name:
        made.name = name
    return True
