"""Remove nodes that pass their input on: Identity, Dropout in inference, Split into one part, Concat of one, and so on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mrecg_onnx.converters.passes.values import constant, dims, is_standard, replace_value

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["remove_identities"]


def remove_identities(model: ir.Model) -> bool:
    """Remove Identity, Dropout, Split, Concat, Pad and Resize nodes that do nothing.

    1. ``y = Identity(x)``: readers of y read x.
    2. ``y = Dropout(x)`` with no training_mode, or with one that is constant and False, and an unread mask: the same.
    3. ``y = Split(x)``, the only part, and ``y = Concat(x)``, both of which exporters write for a list of one image: the same.
    4. ``y = Pad(x)`` by constant zeros, and ``y = Resize(x)`` to the size that x has: the same.
    5. y is a graph output: the node in front makes y under its name, unless x is an input, an initializer or another
       output of the graph; then the node stays (onnx-ir's own pass would lose the name of one of two outputs).

    Returns:
        Whether anything was removed.
    """
    removed = False
    for node in list(model.graph):
        if not _passes_on(node):
            continue
        value = node.inputs[0]
        assert value is not None
        if replace_value(node.outputs[0], value):
            model.graph.remove(node, safe=True)
            removed = True
    return removed


def _passes_on(node: ir.Node) -> bool:
    if (
        not is_standard(node, "Identity", "Dropout", "Split", "Concat", "Pad", "Resize")
        or not node.inputs
        or node.inputs[0] is None
    ):
        return False
    if node.op_type == "Identity":
        return True
    if node.op_type == "Split":
        return len(node.outputs) == 1
    if node.op_type == "Concat":
        return len(node.inputs) == 1
    if node.op_type == "Pad":
        pads = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        return pads is not None and not pads.any()
    if node.op_type == "Resize":
        return _keeps_size(node)
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return False
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        training = constant(node.inputs[2])
        return training is not None and not training.any()
    return True


def _keeps_size(resize: ir.Node) -> bool:
    """Whether each output of a Resize lies on the input of its place: there all kinds of interpolation give that."""
    mode = resize.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if mode == "tf_crop_and_resize" or "axes" in resize.attributes or len(resize.inputs) < 3:
        return False
    scales = constant(resize.inputs[2])
    if scales is not None and scales.size:
        return bool(np.all(scales == 1))
    sizes = constant(resize.inputs[3]) if len(resize.inputs) > 3 else None
    return sizes is not None and dims(resize.inputs[0]) == sizes.reshape(-1).tolist()
