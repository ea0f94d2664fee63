"""A DequantizeLinear of its own for every reader of its values.

OpenCV's dnn module (5.0.0) stops at one that two nodes read. ONNX Runtime builds the same kernels of both forms, which give
the same bits at every level.
"""

from __future__ import annotations

import onnx_ir as ir

from mrecg_onnx.converters.passes.values import claim
from mrecg_onnx.writing.pairs import dequantizers

__all__ = ["part_readers"]


def part_readers(model: ir.Model) -> int:
    """Give every reader of dequantized values a DequantizeLinear of its own, in place; an output of the graph is a reader, too.

    Returns:
        How many were added.
    """
    graph, added = model.graph, 0
    tensors = {v.name for node in graph for v in node.outputs} | {*graph.initializers, *(v.name for v in graph.inputs)}
    names = {node.name for node in graph}
    for node, *_ in dequantizers(model):
        values = node.outputs[0]
        others = list(values.uses())[0 if values.is_graph_output() else 1 :]
        last = node
        for user, index in others:
            copy = ir.node(
                "DequantizeLinear",
                list(node.inputs),
                name=claim(node.name or "", names),
                outputs=[ir.Value(name=claim(values.name or "", tensors), shape=values.shape, type=values.type)],
            )
            copy.attributes.update(node.attributes)
            graph.insert_after(last, copy)
            user.replace_input_with(index, copy.outputs[0])
            last, added = copy, added + 1
    return added
