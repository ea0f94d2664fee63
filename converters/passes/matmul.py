"""Take leading ones off the constants of matrix products."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mrecg_onnx.converters.passes.values import constant, is_standard, rank, set_constant

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["squeeze_weights"]


def squeeze_weights(model: ir.Model) -> bool:
    """Make a constant of shape [1, ..., K, N] that a MatMul reads [K, N], or as short as its other leading sizes allow.

    Only where the other operand has at least as many axes: the product then has the shape it had. A matrix is a layer like any
    other; a stack of them has one scale (:class:`mrecg_onnx.planning.plan.LayerPlan`).

    Returns:
        Whether anything was changed.
    """
    changed = False
    for node in list(model.graph):
        if not is_standard(node, "MatMul"):
            continue
        for index, other in ((0, 1), (1, 0)):
            array, axes = constant(node.inputs[index]), rank(node.inputs[other])
            if array is None or axes is None or constant(node.inputs[other]) is not None or axes < array.ndim:
                continue
            short = array
            while short.ndim > 2 and short.shape[0] == 1:
                short = short[0]
            if short.ndim < array.ndim:
                set_constant(node, index, short.copy(), f"{node.name}_weight")
                changed = True
    return changed
