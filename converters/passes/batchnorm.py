"""Fold per-channel affine maps into the weighted node in front or behind; what is left becomes a depthwise convolution."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from mrecg_onnx.converters.passes.values import (
    add_initializer,
    attribute_int,
    attribute_ints,
    constant,
    is_standard,
    rank,
    replace_node,
    replace_value,
    set_constant,
    sole_reader,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = ["bridge_batchnorm", "fold_affine", "fold_batchnorm", "merge_batchnorm"]

logger = logging.getLogger(__name__)

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE})

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
        found = _scale_and_shift(node)
        if layer is not None and found is not None:
            _scale_layer(node, layer, *found)
    return model


def _scale_and_shift(node: ir.Node) -> tuple[Array, Array] | None:
    """Return s and t of a BatchNormalization s x + t, one number a channel; None where a parameter is computed."""
    parameters = [constant(value) for value in node.inputs[1:5]]
    if any(parameter is None for parameter in parameters):
        return None
    gamma, beta, mean, var = (np.asarray(parameter, np.float64) for parameter in parameters)
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else _DEFAULT_EPSILON
    scale = gamma / np.sqrt(var + epsilon)
    return scale, beta - mean * scale


def merge_batchnorm(model: ir.Model) -> ir.Model:
    """Fold BatchNormalization s x + t into the layers behind it, where that is exact.

    W (s x + t) + b is a layer with weights W s and bias W t + b. It is folded only if

    1. the normalization runs in inference mode and its parameters are constant;
    2. all that reads it are Conv and Gemm with constant weights and biases, and it is no graph output;
    3. no Conv among them is padded, unless t is 0: a padded 0 is behind the normalization and would not be 0 in front of it.
    """
    for node in reversed(list(model.graph)):
        if not is_standard(node, "BatchNormalization") or not _in_inference_mode(node):
            continue
        found, output = _scale_and_shift(node), node.outputs[0]
        uses = list(output.uses())
        if found is None or output.is_graph_output() or not uses:
            continue
        if any(index or not _takes(layer, shifted=bool(found[1].any())) for layer, index in uses):
            continue
        for layer, _ in uses:
            _scale_inputs(layer, *found)
            layer.replace_input_with(0, node.inputs[0])
        model.graph.remove(node, safe=True)
        logger.debug("folded %s %s into %s", node.op_type, node.name, ", ".join(n.name or "" for n, _ in uses))
    return model


def _takes(layer: ir.Node, *, shifted: bool) -> bool:
    """Tell whether a map of each input channel, with a shift or without, can be part of ``layer``."""
    if not is_standard(layer, "Conv", "Gemm") or any(
        value is not None and constant(value) is None for value in layer.inputs[1:]
    ):
        return False
    if layer.op_type == "Gemm":
        plain = all(layer.attributes[name].as_float() == 1 for name in ("alpha", "beta") if name in layer.attributes)
        return plain and not attribute_int(layer, "transA", 0)
    pads = layer.attributes["auto_pad"].as_string() if "auto_pad" in layer.attributes else "NOTSET"
    return not shifted or (pads in {"NOTSET", "VALID"} and not any(attribute_ints(layer, "pads") or []))


def _scale_inputs(layer: ir.Node, scale: Array, shift: Array) -> None:
    """Make a Conv or Gemm compute layer(scale * x + shift)."""
    stored = constant(layer.inputs[1])
    assert stored is not None
    weight = stored.astype(np.float64)
    if layer.op_type == "Gemm":
        axis = 1 if attribute_int(layer, "transB", 0) else 0
        along = [-1 if i == axis else 1 for i in range(2)]
        answer = (weight * shift.reshape(along)).sum(axis)
        factor = scale.reshape(along)
    else:
        groups = attribute_int(layer, "group", 1)
        # Output channel o reads the input channels of group o // (O / groups).
        inputs = np.arange(len(scale)).reshape(groups, -1).repeat(weight.shape[0] // groups, axis=0)
        along = [*inputs.shape, *[1] * (weight.ndim - 2)]
        answer = (weight * shift[inputs].reshape(along)).sum(axis=tuple(range(1, weight.ndim)))
        factor = scale[inputs].reshape(along)
    set_constant(layer, 1, (weight * factor).astype(stored.dtype), f"{layer.name}_weight")
    bias = constant(layer.inputs[2]) if len(layer.inputs) > 2 else None
    if shift.any():
        moved = answer if bias is None else bias.astype(np.float64) + answer
        set_constant(layer, 2, moved.astype(stored.dtype), f"{layer.name}_bias")


def bridge_batchnorm(model: ir.Model) -> ir.Model:
    """Write BatchNormalization s x + t that no layer takes as a depthwise convolution with kernels of one element.

    Integer kernels run convolutions, and weights of one value a channel are exact at any width with a scale a channel. The
    convolution takes over the node's name. Behind a Relu (ResNets with pre-activation, DenseNets) there is no other way, as
    neither scale nor shift passes it.
    """
    for node in list(model.graph):
        if not is_standard(node, "BatchNormalization") or not _in_inference_mode(node):
            continue
        found, axes, value = _scale_and_shift(node), rank(node.inputs[0]), node.inputs[0]
        if found is None or axes is None or not 3 <= axes <= 5 or value is None or value.dtype not in _FLOATS:
            continue
        scale, shift = found
        dtype = value.dtype.numpy()
        weight = add_initializer(model.graph, f"{node.name}_weight", scale.astype(dtype).reshape(-1, *[1] * (axes - 1)))
        bias = add_initializer(model.graph, f"{node.name}_bias", shift.astype(dtype))
        attributes = {"group": len(scale), "kernel_shape": [1] * (axes - 2)}
        layer = ir.node("Conv", [value, weight, bias], attributes, name=node.name, doc_string=node.doc_string)
        layer.metadata_props.update(node.metadata_props)
        replace_node(node, [layer])
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
