"""Pools of images, and means over axes.

LiteRT's AVERAGE_POOL_2D of codes has the scale of what it reads, another rounding than the one that was learned: averages of
whole images are MEAN, those of windows a depthwise convolution of ones, both with the learned scale for what they make.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from mrecg_onnx.litert.flatbuffer import Held, Scales, channels_last, plain_order
from mrecg_onnx.litert.moving import moving
from mrecg_onnx.litert.reading import constant_ints, first_input, refused
from mrecg_onnx.litert.windows import Window, window_of
from mrecg_onnx.litert.writer import Writer, activation, raw_out

__all__ = ["average_pool", "global_pool", "max_pool", "reduce_mean"]

_FUSED = "fusedActivationFunction"


def max_pool(w: Writer, node: ir.Node) -> None:
    """MaxPool of images; its pads are the lowest value."""
    sizes, made = w.size(first_input(node), node), w.size(node.outputs[0], node)
    window = _pool_window(node, sizes.shape, made.shape)

    def emit(x: Held, to: Held) -> None:
        lowest = float(np.finfo(np.float32).min) if x.kind == "FLOAT32" else -128
        held, padding = window.padded(w, x, node, lowest)
        w.flat.operator("MAX_POOL_2D", [held], to, ("Pool2DOptions", _pool_table(window, padding)))

    moving(w, node, channels_last(4), emit)


def _pool_window(node: ir.Node, shape: Sequence[int], made: Sequence[int]) -> Window:
    if len(shape) != 4:
        raise refused(node, "LiteRT pools images")
    window = window_of(node, shape, made, node.attributes.get_ints("kernel_shape"))
    if window.dilations != (1, 1):
        raise refused(node, "LiteRT has no dilated pools")
    return window


def _pool_table(window: Window, padding: int) -> dict[str, Any]:
    (height, width), (down, right) = window.kernel, window.strides
    table = {"filterHeight": height, "filterWidth": width, "strideH": down, "strideW": right}
    return table | {"padding": padding, _FUSED: activation(relu=False)}


def average_pool(w: Writer, node: ir.Node) -> None:
    """AveragePool: MEAN where the window is the image, else on codes a depthwise convolution of ones, else a pool in float."""
    x, out = first_input(node), w.out(node.outputs[0], node)
    sizes, made = w.size(x, node), w.size(node.outputs[0], node)
    window = _pool_window(node, sizes.shape, made.shape)
    if window.bare and window.kernel == sizes.shape[2:]:
        _mean(w, node, (2, 3), keep=True)
        return
    counted = window.bare or bool(node.attributes.get_int("count_include_pad", 0))
    codes = w.ints(x)
    if codes is None or out.codes is None or not counted:
        held = w.ordered(w.float(x, node), channels_last(4), node)
        if counted:
            held, padding = window.padded(w, held, node)
        elif window.same:
            padding = 0  # SAME leaves what hangs over the edge out, as ONNX does
        else:
            raise refused(node, "its pads are not those of SAME, and are not counted")
        table = ("Pool2DOptions", _pool_table(window, padding))
        w.write_float(
            raw_out(w, node),
            channels_last(4),
            lambda to, _relu: w.flat.operator("AVERAGE_POOL_2D", [held], to, table),
        )
        return
    held, padding = window.padded(w, w.ordered(codes, channels_last(4), node), node)
    assert held.scales is not None
    channels, share = sizes.shape[1], 1 / (window.kernel[0] * window.kernel[1])
    codes_of_one = np.ones((1, *window.kernel, channels), np.int8)
    ones = w.flat.constant("window", codes_of_one, Scales(np.full(channels, share, np.float32), 0, 3))
    product = Scales(np.full(channels, held.scales.scale * np.float32(share), np.float32))
    none = w.flat.constant("no_bias", np.zeros(channels, np.int32), product)
    fields = {"padding": padding, "strideH": window.strides[0], "strideW": window.strides[1], "depthMultiplier": 1}
    fields |= {"dilationHFactor": 1, "dilationWFactor": 1}

    def emit(to: Held, relu: bool) -> None:
        options = ("DepthwiseConv2DOptions", fields | {_FUSED: activation(relu=relu)})
        w.flat.operator("DEPTHWISE_CONV_2D", [held, ones, none], to, options)

    w.write_codes(out, channels_last(4), emit, fuses=True)


def global_pool(w: Writer, node: ir.Node) -> None:
    """GlobalAveragePool: MEAN over what is not batch and channels."""
    _mean(w, node, tuple(range(2, len(w.size(first_input(node), node).shape))), keep=True)


def reduce_mean(w: Writer, node: ir.Node) -> None:
    """ReduceMean with constant axes."""
    rank = len(w.size(first_input(node), node).shape)
    axes = constant_ints(node, 1) or list(node.attributes.get_ints("axes", list(range(rank))))
    _mean(w, node, tuple(axis % rank for axis in axes), keep=bool(node.attributes.get_int("keepdims", 1)))


def _mean(w: Writer, node: ir.Node, axes: Sequence[int], *, keep: bool) -> None:
    """The mean over some axes."""
    x, out = first_input(node), w.out(node.outputs[0], node)
    codes = w.ints(x)
    on_codes = codes is not None and out.codes is not None
    held = codes if on_codes and codes is not None else w.float(x, node)
    if not keep:
        held = w.plain(held, node)
    rank = len(out.sizes.shape)
    order = held.order if keep else plain_order(rank)
    places = w.flat.constant("axes", np.array(sorted(held.order.index(axis) for axis in axes), np.int32))

    def emit(to: Held, _relu: bool) -> None:
        w.flat.operator("MEAN", [held, places], to, ("ReducerOptions", {"keepDims": keep}))

    if on_codes:
        w.write_codes(out, order, emit, fuses=False, floor=held.low >= held.zero)
    else:
        w.write_float(raw_out(w, node), order, emit)
