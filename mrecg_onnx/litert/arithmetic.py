"""Operators that compute with what they read, without weights.

Sums, differences and products run on codes. LOGISTIC and SOFTMAX of codes have a fixed scale for what they make, which is not the
one that was learned: they run in float between DEQUANTIZE and QUANTIZE, as functions without an integer kernel do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from mrecg_onnx.litert.flatbuffer import Array, Held, channels_last, plain_order
from mrecg_onnx.litert.layers import dense
from mrecg_onnx.litert.moving import alias
from mrecg_onnx.litert.reading import constant_of, first_input, refused
from mrecg_onnx.litert.writer import Writer, activation, raw_out

__all__ = ["Step", "binary", "clip", "hard_sigmoid", "leaky_relu", "matmul", "softmax", "unary"]

#: What writes a node.
Step = Callable[[Writer, ir.Node], None]
_FUSED = "fusedActivationFunction"


def binary(op: str, options: str, *, integer: bool = True) -> Step:
    """An operator of two operands, on codes where it has such a kernel."""

    def write(w: Writer, node: ir.Node) -> None:
        out = w.out(node.outputs[0], node)
        codes = [w.ints(v) for v in node.inputs]
        on_codes = integer and out.codes is not None and all(held is not None for held in codes)
        held = [
            c if on_codes and c is not None else w.float(v, node)
            for c, v in zip(codes, node.inputs, strict=True)
            if v is not None
        ]
        rank = len(out.sizes.shape)
        last = rank == 4 and any(h.order == channels_last(4) for h in held)
        order = channels_last(rank) if last else plain_order(rank)
        held = [w.ordered(_raised(w, h, rank, node), order, node) for h in held]

        def emit(to: Held, relu: bool) -> None:
            w.flat.operator(op, held, to, (options, {_FUSED: activation(relu=relu)}))

        if on_codes:
            w.write_codes(out, order, emit, fuses=True)
        else:
            w.write_float(raw_out(w, node), order, emit)

    return write


def _raised(w: Writer, held: Held, rank: int, node: ir.Node) -> Held:
    """``held`` with axes of one element in front."""
    more = rank - len(held.shape)
    if not more:
        return held
    held = w.plain(held, node)
    if not held.shape:
        return w.reshaped(held, replace(held, shape=(1,) * rank, free=(False,) * rank, order=plain_order(rank)), node)
    like = replace(held, shape=(1,) * more + held.shape, free=(False,) * more + held.free, order=plain_order(rank))
    return w.reshaped(held, like, node)


def unary(op: str, options: tuple[str, dict[str, Any]] | None = None) -> Step:
    """A function of one value, in float."""

    def write(w: Writer, node: ir.Node) -> None:
        x = w.float(first_input(node), node)
        w.write_float(raw_out(w, node), x.order, lambda to, _relu: w.flat.operator(op, [x], to, options))

    return write


def _relu(w: Writer, node: ir.Node) -> None:
    """Relu of floats; those in front of a quantizer are its bounds."""
    unary("RELU")(w, node)


def clip(w: Writer, node: ir.Node) -> None:
    """Clip of floats with constant bounds; those in front of a quantizer are its bounds."""
    x = w.float(first_input(node), node)
    ends: list[tuple[str, Array]] = []
    for op, value in zip(("MAXIMUM", "MINIMUM"), node.inputs[1:3], strict=False):
        if value is not None:
            bound = constant_of(value)
            if bound is None:
                raise refused(node, f"its bound '{value.name}' is no constant")
            ends.append((op, bound.astype(np.float32).reshape(1)))
    if not ends:
        alias(w, node)
        return
    for i, (op, bound) in enumerate(ends):
        name = (node.outputs[0].name or "") if i == len(ends) - 1 else f"{node.name}_{op.lower()}"
        x = w.flat.operator(
            op, [x, w.flat.constant("bound", bound)], w.flat.tensor(name, x), ("MaximumMinimumOptions", {})
        )
    w.floats[node.outputs[0].name or ""] = x


def hard_sigmoid(w: Writer, node: ir.Node) -> None:
    """HardSigmoid in float: a product, a sum, two bounds."""
    x = w.float(first_input(node), node)
    slope, offset = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    steps: list[tuple[str, float, tuple[str, dict[str, Any]]]] = [
        ("MUL", slope, ("MulOptions", {_FUSED: activation(relu=False)})),
        ("ADD", offset, ("AddOptions", {_FUSED: activation(relu=False)})),
        ("MAXIMUM", 0.0, ("MaximumMinimumOptions", {})),
        ("MINIMUM", 1.0, ("MaximumMinimumOptions", {})),
    ]
    for op, value, options in steps:
        held = w.flat.constant("number", np.array([value], np.float32))
        x = w.flat.operator(op, [x, held], w.flat.tensor(f"{node.name}_{op.lower()}", x), options)
    w.floats[node.outputs[0].name or ""] = x


def leaky_relu(w: Writer, node: ir.Node) -> None:
    """LeakyRelu; with slope 1, what stands between two quantizers of a tensor, its input."""
    slope = node.attributes.get_float("alpha", 0.01)
    if slope == 1.0:
        alias(w, node)
    else:
        unary("LEAKY_RELU", ("LeakyReluOptions", {"alpha": slope}))(w, node)


def softmax(w: Writer, node: ir.Node) -> None:
    """Softmax over the last axis, in float."""
    rank = len(w.size(first_input(node), node).shape)
    if node.attributes.get_int("axis", -1) % rank != rank - 1:
        raise refused(node, "LiteRT has Softmax over the last axis only")
    x = w.plain(w.float(first_input(node), node), node)
    options = ("SoftmaxOptions", {"beta": 1.0})
    w.write_float(raw_out(w, node), x.order, lambda to, _relu: w.flat.operator("SOFTMAX", [x], to, options))


def matmul(w: Writer, node: ir.Node) -> None:
    """MatMul: with a constant weight a layer, of two activations BATCH_MATMUL in float."""
    second = first_input(node, 1)
    if (second.name or "") in w.constants or constant_of(second) is not None:
        dense(w, node)
        return
    held = [w.plain(w.float(first_input(node, i), node), node) for i in (0, 1)]
    out = raw_out(w, node)
    order = plain_order(len(out.sizes.shape))
    options = ("BatchMatMulOptions", {"adjX": False, "adjY": False, "asymmetricQuantizeInputs": False})
    w.write_float(out, order, lambda to, _relu: w.flat.operator("BATCH_MATMUL", held, to, options))
