"""Remove nodes that pass their input on: Identity, and Dropout in inference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mrecg_onnx.converters.passes.values import constant, is_standard, replace_value

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["remove_identities"]


def remove_identities(model: ir.Model) -> bool:
    """Remove Identity and Dropout nodes that do nothing.

    1. ``y = Identity(x)``: readers of y read x.
    2. ``y = Dropout(x)`` with no training_mode, or with one that is constant and False, and an unread mask: the same.
    3. y is a graph output: the node in front makes y under its name, unless x is an input, an initializer or another
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
    if not is_standard(node, "Identity", "Dropout") or not node.inputs or node.inputs[0] is None:
        return False
    if node.op_type == "Identity":
        return True
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return False
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        training = constant(node.inputs[2])
        return training is not None and not training.any()
    return True
