"""Write a mean over the spatial axes as GlobalAveragePool."""

from __future__ import annotations

import onnx_ir as ir

from mrecg_onnx.converters.passes.transposes import permutation
from mrecg_onnx.converters.passes.values import (
    attribute_int,
    attribute_ints,
    constant,
    is_standard,
    rank,
    replace_node,
    unique_name,
)

__all__ = ["mean_to_pool"]


def mean_to_pool(model: ir.Model) -> ir.Model:
    """Replace ReduceMean over exactly the two spatial axes of a 4-D tensor by GlobalAveragePool.

    ONNX Runtime has an integer kernel for the pool and none for the mean. The pool takes over the node's name; with
    keepdims=0 a Flatten follows that takes over the output's name. Where the mean reads a Transpose (to NHWC) of the map,
    the pool reads the map, and with keepdims=1 such a Transpose follows.
    """
    for node in list(model.graph):
        if not is_standard(node, "ReduceMean") or rank(node.inputs[0]) != 4:
            continue
        found = _pooled(node)
        if found is None:
            continue
        value, perm = found
        graph, output = model.graph, node.outputs[0]
        if value.dtype is not None and value.dtype not in {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE}:
            continue
        pool = ir.node("GlobalAveragePool", [value], name=node.name, doc_string=node.doc_string)
        pool.metadata_props.update(node.metadata_props)
        nodes = [pool]
        if not attribute_int(node, "keepdims", 1):
            pool.outputs[0].name = unique_name(graph, f"{output.name}_pooled")
            nodes.append(ir.node("Flatten", [pool.outputs[0]], {"axis": 1}, name=f"{node.name}_flatten"))
        elif perm is not None:
            pool.outputs[0].name = unique_name(graph, f"{output.name}_pooled")
            nodes.append(ir.node("Transpose", [pool.outputs[0]], {"perm": perm}, name=f"{node.name}_transpose"))
        replace_node(node, nodes)
    return model


def _pooled(node: ir.Node) -> tuple[ir.Value, list[int] | None] | None:
    """The map [N, C, H, W] whose two last axes ``node`` averages, and the Transpose that it reads the map through, if any."""
    axes, value = _axes(node), node.inputs[0]
    assert value is not None
    if axes == {2, 3}:
        return value, None
    maker = value.producer()
    perm = permutation(maker) if maker is not None and maker.graph is node.graph else None
    if maker is None or perm is None or axes is None or maker.inputs[0] is None:
        return None
    if {perm[axis] for axis in axes} != {2, 3} or [a for a in perm if a < 2] != [0, 1]:
        return None
    return maker.inputs[0], perm


def _axes(node: ir.Node) -> set[int] | None:
    """Return the axes of a mean of a 4-D tensor, counted from the front; None if they are not constant."""
    axes = attribute_ints(node, "axes")
    if axes is None and len(node.inputs) > 1:
        array = constant(node.inputs[1])
        axes = None if array is None else [int(axis) for axis in array.reshape(-1)]
    return None if axes is None else {axis % 4 for axis in axes}
