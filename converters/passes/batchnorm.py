"""Fold per-channel affine maps into the weighted node in front."""

from __future__ import annotations

import logging
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
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = ["fold_affine", "fold_batchnorm"]

logger = logging.getLogger(__name__)

_DEFAULT_EPSILON = 1e-5  # of BatchNormalization, ONNX operator specification


def fold_batchnorm(model: ir.Model) -> ir.Model:
    """Fold BatchNormalization into the Conv, ConvTranspose or Gemm in front, where that is exact.

    With gamma, beta, mean, var of the normalization and s = gamma / sqrt(var + epsilon), y = s (W x + b - mean) + beta
    is a layer with weights s W and bias s (b - mean) + beta. It is folded only if

    1. the normalization runs in inference mode and its four parameters are constant;
    2. the layer's weight and bias are constant; a shared one is copied for this node;
    3. nothing but the normalization reads the layer's output, and it is no graph output;
    4. a Gemm's alpha and beta are 1 and it has two axes out (it always has).

    The layer keeps its name and takes over the name of the normalization's output. The arithmetic is in float64.
    """
    for node in list(model.graph):
        if not is_standard(node, "BatchNormalization") or not _in_inference_mode(node):
            continue
        layer = _layer_in_front(node, node.inputs[0])
        parameters = [constant(value) for value in node.inputs[1:5]]
        if layer is None or any(parameter is None for parameter in parameters):
            continue
        gamma, beta, mean, var = (np.asarray(parameter, np.float64) for parameter in parameters)
        epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else _DEFAULT_EPSILON
        scale = gamma / np.sqrt(var + epsilon)
        _scale_layer(node, layer, scale, beta - mean * scale)
    return model


def fold_affine(model: ir.Model) -> ir.Model:
    """Fold Mul, Div, Add and Sub by a per-channel constant into the Conv or ConvTranspose in front.

    The same conditions hold as in :func:`fold_batchnorm`. Exporters leave these behind for normalizations they took
    apart and for learned scales.
    """
    for node in list(model.graph):
        if not is_standard(node, "Mul", "Div", "Add", "Sub"):
            continue
        side = 0 if constant(node.inputs[1]) is not None else 1
        if side == 1 and node.op_type in {"Div", "Sub"}:
            continue  # c / y and c - y are not of the form s y + t with a layer's own sign; exporters do not write them
        layer = _layer_in_front(node, node.inputs[side])
        if layer is None or layer.op_type == "Gemm":
            continue
        channels = _channels(layer)
        factor = _per_channel(node.inputs[1 - side], channels, rank(layer.outputs[0]))
        if factor is None or (node.op_type == "Div" and not factor.all()):
            continue
        one, zero = np.ones(channels), np.zeros(channels)
        scale, shift = {
            "Mul": (factor, zero),
            "Div": (1 / factor if node.op_type == "Div" else one, zero),
            "Add": (one, factor),
            "Sub": (one, -factor),
        }[node.op_type]
        _scale_layer(node, layer, scale, shift)
    return model


def _in_inference_mode(node: ir.Node) -> bool:
    # Before opset 14 training was marked by further outputs, since then by an attribute.
    if attribute_int(node, "training_mode", 0):
        return False
    return not any(output.uses() or output.is_graph_output() for output in node.outputs[1:]) and len(node.outputs) == 1


def _layer_in_front(node: ir.Node, value: ir.Value | None) -> ir.Node | None:
    """Return the weighted node whose output only ``node`` reads and whose parameters are constant."""
    if value is None or sole_reader(value) is not node:
        return None
    layer = value.producer()
    if layer is None or layer.graph is not node.graph or not is_standard(layer, "Conv", "ConvTranspose", "Gemm"):
        return None
    if constant(layer.inputs[1]) is None:
        return None
    if len(layer.inputs) > 2 and layer.inputs[2] is not None and constant(layer.inputs[2]) is None:
        return None
    if layer.op_type == "Gemm" and any(
        name in layer.attributes and layer.attributes[name].as_float() != 1 for name in ("alpha", "beta")
    ):
        return None
    return layer


def _channels(layer: ir.Node) -> int:
    weight = constant(layer.inputs[1])
    assert weight is not None
    if layer.op_type == "Conv":
        return int(weight.shape[0])
    if layer.op_type == "ConvTranspose":
        return int(weight.shape[1]) * attribute_int(layer, "group", 1)
    return int(weight.shape[0 if attribute_int(layer, "transB", 0) else 1])


def _per_channel(value: ir.Value | None, channels: int, axes: int | None) -> Array | None:
    """Return a constant as one number per channel; None if it varies along any other axis or adds axes."""
    array = constant(value)
    if array is None or axes is None or array.ndim > axes or array.dtype.kind != "f":
        return None
    if array.size == 1:
        return np.full(channels, float(array.reshape(-1)[0]))
    shape = (1,) * (axes - array.ndim) + array.shape
    if shape[1] != channels or array.size != channels:
        return None
    return array.reshape(-1).astype(np.float64)


def _broadcast_over_weight(layer: ir.Node, scale: Array, weight: NDArray[np.generic]) -> Array:
    """Bring one factor per output channel into a shape that multiplies the weight in its own layout."""
    if layer.op_type == "Conv":
        return scale.reshape(-1, *(1,) * (weight.ndim - 1))
    if layer.op_type == "ConvTranspose":
        groups = attribute_int(layer, "group", 1)
        # Input channel i belongs to group i // (I / groups); output channel j of that group is scale[group, j].
        rows = np.repeat(scale.reshape(groups, -1), weight.shape[0] // groups, axis=0)
        return rows.reshape(*rows.shape, *(1,) * (weight.ndim - 2))
    return scale.reshape(-1, 1) if attribute_int(layer, "transB", 0) else scale.reshape(1, -1)


def _scale_layer(node: ir.Node, layer: ir.Node, scale: Array, shift: Array) -> None:
    """Make ``layer`` compute scale * layer(x) + shift, and remove ``node``, which did so."""
    weight = constant(layer.inputs[1])
    assert weight is not None
    bias = constant(layer.inputs[2]) if len(layer.inputs) > 2 else None
    old_bias = np.zeros(1) if bias is None else bias.astype(np.float64)
    new_weight = weight.astype(np.float64) * _broadcast_over_weight(layer, scale, weight)
    new_bias = np.broadcast_to(old_bias, (*old_bias.shape[:-1], len(scale))) * scale + shift
    if not replace_value(node.outputs[0], layer.outputs[0]):
        return
    layer.outputs[0].name = node.outputs[0].name or layer.outputs[0].name
    set_constant(layer, 1, new_weight.astype(weight.dtype), f"{layer.name}_weight")
    if bias is not None or shift.any():
        set_constant(layer, 2, new_bias.astype(weight.dtype), f"{layer.name}_bias")
    graph = node.graph
    assert graph is not None
    graph.remove(node, safe=True)
    logger.debug("folded %s %s into %s", node.op_type, node.name, layer.name)
