"""Bring matrix products with constant weights into Gemm's plainest form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mrecg_onnx.converters.passes.values import (
    attribute_int,
    constant,
    is_standard,
    rank,
    replace_value,
    set_constant,
    sole_reader,
)

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["fuse_matmul_add", "plain_gemm"]


def fuse_matmul_add(model: ir.Model) -> ir.Model:
    """Replace MatMul by a constant (K, N) weight and Add of a constant (N,) bias by one Gemm, for inputs with 2 axes.

    The Gemm has the MatMul's name and makes the Add's output. It is left alone where anything else reads the product.
    """
    for matmul in list(model.graph):
        if not is_standard(matmul, "MatMul") or rank(matmul.inputs[0]) != 2:
            continue
        weight = constant(matmul.inputs[1])
        add = sole_reader(matmul.outputs[0])
        if weight is None or weight.ndim != 2 or add is None or not is_standard(add, "Add"):
            continue
        if add.graph is not model.graph:
            continue
        side = 1 if add.inputs[0] is matmul.outputs[0] else 0
        bias = constant(add.inputs[side])
        if bias is None or bias.shape not in {(weight.shape[1],), (1, weight.shape[1])}:
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
        matmul.op_type = "Gemm"
        matmul.resize_inputs(3)
        matmul.replace_input_with(2, bias_value)
        if bias.ndim != 1:
            set_constant(matmul, 2, bias.reshape(-1), f"{matmul.name}_bias")
    return model


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
