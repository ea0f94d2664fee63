"""Bring matrix products with constant weights into Gemm's plainest form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from mrecg_onnx.converters.passes.values import (
    attribute_int,
    constant,
    is_standard,
    rank,
    replace_value,
    set_constant,
    sole_reader,
    unique_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["BIAS_NODE", "fuse_matmul_add", "join_matmul_bias", "plain_gemm", "split_matmul_bias"]

#: Where a MatMul with a bias keeps the name of the Add that it was made of.
BIAS_NODE = "mrecg_onnx.bias_node"


def fuse_matmul_add(model: ir.Model) -> ir.Model:
    """Replace MatMul by a constant (K, N) weight and Add of a constant (N,) bias by one Gemm, for inputs with 2 axes.

    The Gemm has the MatMul's name and makes the Add's output. It is left alone where anything else reads the product.
    """
    for matmul in _take_biases(model, lambda axes: axes == 2):
        matmul.op_type = "Gemm"
        del matmul.metadata_props[BIAS_NODE]
    return model


def join_matmul_bias(model: ir.Model) -> ir.Model:
    """Make one layer of the same two nodes for products with more axes: a MatMul whose third input is the bias.

    ONNX has no such operator: the graph is for :func:`mrecg_onnx.converters.to_torch` and for what plans on it, and
    :func:`split_matmul_bias` takes the node apart again before the graph is written.
    """
    for _ in _take_biases(model, lambda axes: axes > 2):
        pass
    return model


def _take_biases(model: ir.Model, wanted: Callable[[int], bool]) -> Iterator[ir.Node]:
    """Give each MatMul that makes as many axes as ``wanted`` the Add behind it as its third input, and yield it."""
    for matmul in list(model.graph):
        axes = rank(matmul.outputs[0]) if is_standard(matmul, "MatMul") else None
        if axes is None or not wanted(axes) or len(matmul.inputs) > 2:
            continue
        weight = constant(matmul.inputs[1])
        add = sole_reader(matmul.outputs[0])
        if weight is None or weight.ndim != 2 or add is None or not is_standard(add, "Add"):
            continue
        if axes > 2 and weight.dtype.kind != "f":  # integers are no layer
            continue
        if add.graph is not model.graph or constant(matmul.inputs[0]) is not None:
            continue
        side = 1 if add.inputs[0] is matmul.outputs[0] else 0
        bias = constant(add.inputs[side])
        columns = weight.shape[1]
        if bias is None or bias.shape[-1:] != (columns,) or bias.size != columns or bias.ndim > axes:
            continue
        product = matmul.outputs[0]
        bias_value = add.inputs[side]
        if not replace_value(add.outputs[0], product):
            continue
        name = add.outputs[0].name
        if name:
            add.outputs[0].name = None
            product.name = name
        model.graph.remove(add, safe=True)
        matmul.metadata_props[BIAS_NODE] = add.name or ""
        matmul.resize_inputs(3)
        matmul.replace_input_with(2, bias_value)
        if bias.ndim != 1:
            set_constant(matmul, 2, bias.reshape(-1), f"{matmul.name}_bias")
        yield matmul


def split_matmul_bias(node: ir.Node) -> None:
    """Undo :func:`join_matmul_bias`; both nodes have the names that they had."""
    graph, bias, made = node.graph, node.inputs[2], node.outputs[0]
    assert isinstance(graph, ir.Graph)
    name = node.metadata_props.pop(BIAS_NODE, "") or f"{node.name}_bias"
    wanted = made.name
    product = ir.Value(name=unique_name(graph, f"{wanted}_product"), shape=made.shape, type=made.type)
    inputs, attributes = list(node.inputs[:2]), list(node.attributes.values())
    matmul = ir.Node("", "MatMul", inputs, attributes, outputs=[product], name=node.name, doc_string=node.doc_string)
    matmul.metadata_props.update(node.metadata_props)
    add = ir.node("Add", [product, bias], name=name)
    add.outputs[0].shape, add.outputs[0].type = made.shape, made.type
    graph.insert_after(node, [matmul, add])
    replace_value(made, add.outputs[0])
    made.name = None
    add.outputs[0].name = wanted
    graph.remove(node, safe=True)


def plain_gemm(model: ir.Model) -> ir.Model:
    """Fold alpha into a constant weight and beta into a constant bias, and make such a bias 1-D of length N.

    transB stays as it is, and transA too, since only a Transpose node could take its place.
    """
    for node in list(model.graph):
        if not is_standard(node, "Gemm"):
            continue
        weight = constant(node.inputs[1])
        if weight is not None:
            _fold_factor(node, "alpha", 1, weight)
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if bias is None:
            continue
        _fold_factor(node, "beta", 2, bias)
        _flatten_bias(node)
    return model


def _fold_factor(node: ir.Node, name: str, index: int, array: np.ndarray) -> None:
    attribute = node.attributes.get(name)
    if attribute is None or array.dtype.kind != "f":
        return
    factor = attribute.as_float()
    if factor != 1:
        wish = f"{node.name}_{name}"
        set_constant(node, index, (array.astype(np.float64) * factor).astype(array.dtype), wish)
    del node.attributes[name]


def _flatten_bias(node: ir.Node) -> None:
    bias, weight = constant(node.inputs[2]), node.inputs[1]
    assert bias is not None
    if weight is None or weight.shape is None:
        return
    columns = weight.shape[0 if attribute_int(node, "transB", 0) else 1]
    if not isinstance(columns, int) or bias.shape == (columns,):
        return
    if bias.size == 1 or bias.shape == (1, columns):
        set_constant(node, 2, np.broadcast_to(bias.reshape(-1), (columns,)).copy(), f"{node.name}_bias")
