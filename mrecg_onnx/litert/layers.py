"""Layers with weights: convolutions and fully connected ones, on codes or in float.

On codes where what they read, their weights and what they make have quantizers: int8 weights with a scale a channel around 0,
or int4 where that is asked for and all codes of a layer fit; the bias in int32 with the product of both scales. Else in float
with weights that LiteRT dequantizes when it opens the file.

Codes of few bits are multiplied by the power of two that fits, and their scale is divided by it: the same values. LiteRT's
portable kernels round what an accumulator makes with its multiplier to a whole number before they shift it, and again then; sums
of small codes have no room for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from mrecg_onnx.litert.flatbuffer import INT4_VERSIONS, Array, Held, Scales, channels_last, plain_order
from mrecg_onnx.litert.reading import constant_of, refused
from mrecg_onnx.litert.windows import window_of
from mrecg_onnx.litert.writer import Constant, Out, Writer, activation, raw_out

__all__ = ["convolution", "dense"]

#: How far a bias may grow by the factor.
_BIAS_ROOM = 2**30
#: Smallest and largest code of a type.
_ENDS = {"INT4": (-8, 7), "INT8": (-128, 127)}


@dataclass(frozen=True)
class _Weights:
    """What a layer multiplies with.

    Attributes:
        name: of the weight.
        array: codes, or floats, as they are to be stored.
        scale: of codes, a scale a channel; None for floats.
        axis: of the channels, as stored.
        bias: int32 codes behind a DequantizeLinear, or floats; None where there is none.
        channels: number of outputs.
    """

    name: str
    array: Array
    scale: Array | None
    axis: int
    bias: Constant | Array | None
    channels: int


def convolution(w: Writer, node: ir.Node) -> None:
    """Conv of images [N, C, H, W]; depthwise where each channel is a group."""
    x, out = node.inputs[0], w.out(node.outputs[0], node)
    assert x is not None
    sizes = w.size(x, node)
    if len(sizes.shape) != 4:
        raise refused(node, f"LiteRT has convolutions of images, this one is of {len(sizes.shape) - 2} dimensions")
    stored = _stored(w, node, 1)
    filters = stored.codes if isinstance(stored, Constant) else stored
    groups = node.attributes.get_int("group", 1)
    depthwise = groups == sizes.shape[1] and groups > 1 and filters.shape[1] == 1
    array = (
        filters.transpose(2, 3, 1, 0).reshape(1, *filters.shape[2:], -1) if depthwise else filters.transpose(0, 2, 3, 1)
    )
    weights = _weights(w, node, array, 3 if depthwise else 0, filters.shape[0], 0)
    window = window_of(node, sizes.shape, out.sizes.shape, filters.shape[2:])
    table: dict[str, Any] = {"strideH": window.strides[0], "strideW": window.strides[1]}
    table |= {"dilationHFactor": window.dilations[0], "dilationWFactor": window.dilations[1]}
    op, options = "CONV_2D", "Conv2DOptions"
    if depthwise:
        op, options = "DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions"
        table["depthMultiplier"] = filters.shape[0] // groups
    codes = w.ints(x)
    on_codes = codes is not None and out.codes is not None and _integer(weights)
    held = w.ordered(codes if on_codes and codes is not None else w.float(x, node), channels_last(4), node)
    held, table["padding"] = window.padded(w, held, node)
    _write(w, node, out, held, weights, (op, options, table), channels_last(4), on_codes=on_codes)


def dense(w: Writer, node: ir.Node) -> None:
    """Gemm, or MatMul with a constant weight [K, N] and the Add of its bias: FULLY_CONNECTED."""
    x, out = node.inputs[0], w.out(node.outputs[0], node)
    assert x is not None
    stored = _stored(w, node, 1)
    array = stored.codes if isinstance(stored, Constant) else stored
    if array.ndim != 2:
        raise refused(node, f"its weight has {array.ndim} dimensions")
    factors = [node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
    if factors != [1.0, 1.0] or node.attributes.get_int("transA", 0) == 1:
        raise refused(node, "it has alpha, beta or transA")
    rows = node.attributes.get_int("transB", 0) == 1
    weights = _weights(
        w, node, array if rows else array.T, 0, array.shape[0 if rows else 1], 0 if rows else 1, out.bias
    )
    rank = len(w.size(x, node).shape)
    codes = w.ints(x)
    on_codes = codes is not None and out.codes is not None and _integer(weights)
    held = w.plain(codes if on_codes and codes is not None else w.float(x, node), node)
    table = {"keepNumDims": rank > 2}
    _write(
        w,
        node,
        out,
        held,
        weights,
        ("FULLY_CONNECTED", "FullyConnectedOptions", table),
        plain_order(rank),
        on_codes=on_codes,
    )


def _write(
    w: Writer, node: ir.Node, out: Out, held: Held, weights: _Weights, how: tuple[str, str, dict[str, Any]],
    order: tuple[int, ...], *, on_codes: bool,
) -> None:  # fmt: skip
    op, options, table = how
    inputs: list[Held | None] = [held, None, None]
    version = None
    if on_codes:
        filters, bias = _integer_operands(w, node, held, weights)
        inputs[1:] = [filters, bias]
        version = INT4_VERSIONS[op] if filters.kind == "INT4" else None
    else:
        inputs[1:] = _float_operands(w, weights)

    def emit(to: Held, relu: bool) -> None:
        fields = table | {"fusedActivationFunction": activation(relu=relu)}
        w.flat.operator(op, inputs, to, (options, fields), version)

    if on_codes:
        w.write_codes(out, order, emit, fuses=True)
    else:
        w.write_float(
            Out(out.value, out.sizes, None, out.bias, out.taken) if out.bias is not None else raw_out(w, node),
            order,
            emit,
        )


def _stored(w: Writer, node: ir.Node, index: int) -> Constant | Array:
    value = node.inputs[index]
    assert value is not None
    found: Constant | Array | None = w.constants.get(value.name or "")
    found = found if found is not None else constant_of(value)
    if found is None:
        raise refused(node, f"its weight '{value.name}' is no constant")
    return found


def _weights(
    w: Writer, node: ir.Node, array: Array, axis: int, channels: int, along: int, behind: ir.Value | None = None
) -> _Weights:
    """The weight of ``node`` as ``array`` stores it, and its bias.

    Args:
        w: the conversion.
        node: the layer.
        array: the weight's codes or floats, transposed.
        axis: of the outputs in that.
        channels: how many they are.
        along: axis of the outputs in ONNX's weight.
        behind: the bias, where an Add has it.
    """
    value = node.inputs[1]
    stored = _stored(w, node, 1)
    scale: Array | None = None
    if isinstance(stored, Constant):
        if stored.scale.ndim and stored.axis != along:
            raise refused(node, f"its weight has scales along axis {stored.axis}")
        scale = np.broadcast_to(stored.scale, (channels,)).astype(np.float32)
    held = behind if behind is not None else (node.inputs[2] if len(node.inputs) > 2 else None)
    bias: Constant | Array | None = None
    if held is not None:
        bias = w.constants.get(held.name or "")
        bias = bias if bias is not None else constant_of(held)
        if bias is None:
            raise refused(node, f"its bias '{held.name}' is no constant")
    return _Weights((value and value.name) or "", array, scale, axis, bias, channels)


def _integer(weights: _Weights) -> bool:
    """Whether weight and bias have codes."""
    fits = weights.bias is None or (isinstance(weights.bias, Constant) and weights.bias.codes.dtype == np.int32)
    return fits and weights.scale is not None and weights.array.dtype == np.int8


def _integer_operands(w: Writer, node: ir.Node, held: Held, weights: _Weights) -> tuple[Held, Held]:
    assert held.scales is not None
    assert weights.scale is not None
    kind = "INT4" if w.four_bits and _fits(weights.array, "INT4") else "INT8"
    if w.four_bits and kind == "INT8":
        w.wide.append(weights.name)
    stored = weights.bias.codes if isinstance(weights.bias, Constant) else np.zeros(1, np.int32)
    room = _BIAS_ROOM // max(int(np.abs(stored.astype(np.int64)).max(initial=0)), 1)
    factor = 1
    while 2 * factor <= min(room, 128) and _fits(weights.array.astype(np.int16) * 2 * factor, kind):
        factor *= 2
    scale = (weights.scale / np.float32(factor)).astype(np.float32)
    array = (weights.array.astype(np.int16) * factor).astype(np.int8)
    filters = w.flat.constant(weights.name, array, Scales(scale, 0, weights.axis), kind)
    product = (held.scales.scale * scale).astype(np.float32)
    codes = np.zeros(weights.channels, np.int32)
    if isinstance(weights.bias, Constant):
        flat = weights.bias.codes.reshape(-1)
        exact = np.rint(
            flat.astype(np.float64) * (np.broadcast_to(weights.bias.scale, codes.shape) / product.astype(np.float64))
        )
        if np.abs(exact).max(initial=0) >= 2**31:
            raise refused(node, "its bias does not fit int32 with the product of both scales")
        codes = exact.astype(np.int32)
    bias = w.flat.constant(f"{weights.name}_bias", np.ascontiguousarray(codes), Scales(product))
    return filters, bias


def _fits(codes: Array, kind: str) -> bool:
    low, high = _ENDS[kind]
    return bool(codes.min(initial=0) >= low and codes.max(initial=0) <= high)


def _float_operands(w: Writer, weights: _Weights) -> list[Held | None]:
    if weights.scale is not None:
        codes = w.flat.constant(weights.name, weights.array, Scales(weights.scale, 0, weights.axis))
        filters = w.dequantized(weights.name, codes)
    else:
        filters = w.flat.constant(weights.name, np.ascontiguousarray(weights.array, np.float32))
    bias = weights.bias.values() if isinstance(weights.bias, Constant) else weights.bias
    values = (
        np.zeros(weights.channels, np.float32)
        if bias is None
        else np.broadcast_to(bias.reshape(-1), (weights.channels,))
    )
    return [filters, w.flat.constant(f"{weights.name}_bias", np.ascontiguousarray(values, np.float32))]
