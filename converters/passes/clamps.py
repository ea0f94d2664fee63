"""Make one Clip of clamps that are written as several nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from mrecg_onnx.converters.passes.values import add_initializer, constant, is_standard, rank, replace_node, sole_reader

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["fuse_clamps"]


def fuse_clamps(model: ir.Model) -> ir.Model:
    """Replace Min or Max behind Relu, Min or Max, with one float bound each, by a Clip.

    1. Min(Relu(x), c) and Relu(Min(x, c)) are Clip(x, 0, c), Min(Max(x, d), c) and Max(Min(x, c), d) are Clip(x, d, c);
    2. only where d <= c, so that the order does not matter, and where nothing else reads what is between the two.

    The Clip takes over the name of the second node and of its output.
    """
    for node in list(model.graph):
        outer = _bound(node)
        if outer is None:
            continue
        source, which, bound = outer
        maker = source.producer()
        inner = _bound(maker) if maker is not None and maker.graph is node.graph else None
        if maker is None or inner is None or inner[1] == which or sole_reader(source) is not node:
            continue
        low, high = (bound, inner[2]) if which == "low" else (inner[2], bound)
        if not float(low) <= float(high):
            continue
        graph = model.graph
        ends = [add_initializer(graph, f"{node.name}_{end}", v) for end, v in (("low", low), ("high", high))]
        clip = ir.node("Clip", [inner[0], *ends], name=node.name, doc_string=node.doc_string)
        clip.metadata_props.update(node.metadata_props)
        replace_node(node, [clip])
        graph.remove(maker, safe=True)
    return model


def _bound(node: ir.Node) -> tuple[ir.Value, str, NDArray[np.generic]] | None:
    """What is clamped, at which end ("low" or "high"), and the bound without axes; None where ``node`` does not do that."""
    if is_standard(node, "Relu") and node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.FLOAT:
        return node.inputs[0], "low", ir.tensor(0.0, ir.DataType.FLOAT).numpy()
    if not is_standard(node, "Min", "Max") or len(node.inputs) != 2:
        return None
    for source, other in (node.inputs, node.inputs[::-1]):
        bound = constant(other)
        if source is None or bound is None or constant(source) is not None or bound.size != 1:
            continue
        axes = rank(source)
        if source.dtype == ir.DataType.FLOAT and axes is not None and bound.ndim <= axes:
            return source, "high" if node.op_type == "Min" else "low", bound.reshape(())
    return None
