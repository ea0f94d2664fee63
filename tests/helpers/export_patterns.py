"""Graphs that the exporter treats apart, beside the patterns of :mod:`helpers.architectures`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from helpers.architectures import PATTERNS, Graph
from onnx import helper

if TYPE_CHECKING:
    from collections.abc import Callable


def tail(g: Graph, x: str, cin: int = 8) -> onnx.ModelProto:
    g.classifier(g.conv(x, cin, 8, "conv2"), 8)
    return g.model()


def _pad(g: Graph, x: str, *, mode: str = "constant", value: float | None = None) -> str:
    inputs = [x, g.constant("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1]))]
    if value is not None:
        inputs.append(g.constant("pad_value", np.float32(value)))
    return g.op("Pad", inputs, "pad", mode=mode)


def pad_zero() -> onnx.ModelProto:
    """Behind a linear layer: the code of 0 is not 0."""
    g = Graph()
    return tail(g, _pad(g, g.conv(g.input(), 8, 8)))


def pad_reflect() -> onnx.ModelProto:
    g = Graph()
    return tail(g, _pad(g, g.relu(g.conv(g.input(), 8, 8)), mode="reflect"))


def pad_one() -> onnx.ModelProto:
    g = Graph()
    return tail(g, _pad(g, g.relu(g.conv(g.input(), 8, 8)), value=1.0))


def pad_output() -> onnx.ModelProto:
    g = Graph()
    g.conv(_pad(g, g.relu(g.conv(g.input(), 8, 8))), 8, 8, "conv2", output="output")
    return g.model("output", "pad_out")


def clip_signed() -> onnx.ModelProto:
    g = Graph()
    return tail(g, g.clip(g.conv(g.input(), 8, 8), low=-1.0, high=2.0))


def clip_positive() -> onnx.ModelProto:
    """The lower bound is no zero: the smallest code is above the zero point."""
    g = Graph()
    return tail(g, g.clip(g.conv(g.input(), 8, 8), low=0.5, high=2.0))


def clip_above() -> onnx.ModelProto:
    g = Graph()
    x = g.op("Clip", [g.conv(g.input(), 8, 8), "", g.constant("high", np.float32(1.5))], "clip")
    return tail(g, x)


def clip_twice() -> onnx.ModelProto:
    g = Graph()
    return tail(g, g.clip(g.relu(g.conv(g.input(), 8, 8)), high=3.0))


def relu_output() -> onnx.ModelProto:
    """A Relu in the middle is an output too: both have its values from behind one quantizer."""
    g = Graph()
    g.conv(g.relu(g.conv(g.input(), 8, 8)), 8, 8, "conv2", output="output")
    return g.model("output", "relu_out")


def two_heads() -> onnx.ModelProto:
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 8))
    g.conv(x, 8, 4, "left", output="output")
    g.conv(x, 8, 2, "right", output="other")
    return g.model("output", "other")


def split() -> onnx.ModelProto:
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 8))
    sizes = g.constant("sizes", np.array([4, 4]))
    g.nodes.append(helper.make_node("Split", [x, sizes], ["a", "b"], name="split", axis=1))
    return tail(g, g.op("Add", [g.conv("a", 4, 4, "half"), "b"], "add"), 4)


def resize_nearest() -> onnx.ModelProto:
    g = Graph()
    scales = g.constant("scales", np.array([1, 1, 2, 2], np.float32))
    x = [g.relu(g.conv(g.input(), 8, 8, stride=2)), "", scales]
    how = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return tail(g, g.op("Resize", x, "resize", mode="nearest", **how))


def shuffle() -> onnx.ModelProto:
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 8, groups=2))
    x = g.op("Reshape", [x, g.constant("apart", np.array([0, 2, 4, 16, 16]))], "apart_it")
    x = g.op("Transpose", [x], "transpose", perm=[0, 2, 1, 3, 4])
    return tail(g, g.op("Reshape", [x, g.constant("together", np.array([0, 8, 16, 16]))], "together_it"))


def leaky_relu() -> onnx.ModelProto:
    g = Graph()
    return tail(g, g.op("LeakyRelu", [g.conv(g.input(), 8, 8)], "leaky", alpha=0.1))


def prelu() -> onnx.ModelProto:
    g = Graph()
    slope = g.constant("slope", np.linspace(0, 0.5, 8, dtype=np.float32).reshape(8, 1, 1))
    return tail(g, g.op("PRelu", [g.conv(g.input(), 8, 8), slope], "prelu"))


def silu() -> onnx.ModelProto:
    g = Graph()
    x = g.conv(g.input(), 8, 8)
    return tail(g, g.op("Mul", [x, g.op("Sigmoid", [x], "sigmoid")], "mul"))


def shared_weight() -> onnx.ModelProto:
    """Two layers read one initializer; each gets codes of its own."""
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 8))
    node = onnx.NodeProto()
    node.CopyFrom(g.nodes[0])
    node.name, node.input[0], node.output[0] = "again", x, "again_out"
    g.nodes.append(node)
    return tail(g, g.relu("again_out", "relu2"))


def products() -> onnx.ModelProto:
    """MatMul with constants on either side, of three axes: no Gemm."""
    g = Graph()
    x = g.op("Reshape", [g.input(), g.constant("rows", np.array([0, 64, 32]))], "reshape")
    x = g.relu(g.op("MatMul", [x, g.weight("right.weight", (32, 16), 32)], "right"))
    x = g.relu(g.op("MatMul", [g.weight("left.weight", (24, 64), 64), x], "left"), "relu2")
    g.op("MatMul", [x, g.weight("last.weight", (16, 8), 16)], "last", "output")
    return g.model()


def _tokens(batch: int | str) -> onnx.ModelProto:
    """Linear layers in two nodes on three axes, in front of an addition, a Relu, a float op and the output."""
    g = Graph(opset=17)

    def linear(x: str, cin: int, cout: int, name: str, output: str | None = None) -> str:
        x = g.op("MatMul", [x, g.weight(f"{name}.weight", (cin, cout), cin)], name)
        return g.op("Add", [g.bias(f"{name}.bias", cout), x], f"{name}_add", output)

    x = g.op("Reshape", [g.input(batch=batch), g.constant("rows", np.array([0, 64, 32]))], "reshape")
    x = linear(x, 32, 16, "first")
    y = linear(g.relu(linear(x, 16, 24, "up")), 24, 16, "down")
    x = linear(g.op("Add", [x, y], "add"), 16, 16, "float")
    x = g.op("LayerNormalization", [x, g.constant("ones", np.ones(16, np.float32))], "norm")
    linear(x, 16, 8, "last", "output")
    return g.model()


def tokens() -> onnx.ModelProto:
    return _tokens("batch")


def tokens_of_one_size() -> onnx.ModelProto:
    """Here ONNX Runtime makes Gemms of MatMul and Add."""
    return _tokens(8)


def constant_operands() -> onnx.ModelProto:
    """Add and Mul of constants, which stay float, and with them the ops."""
    g = Graph()
    x = g.op("Add", [g.relu(g.conv(g.input(), 8, 8)), g.constant("offset", np.float32(0.3))], "add")
    scale = g.constant("scale", np.linspace(0.5, 2, 8, dtype=np.float32).reshape(8, 1, 1))
    x = g.op("Mul", [g.relu(g.conv(x, 8, 8, "middle"), "relu2"), scale], "mul")
    return tail(g, x)


def normalized_between() -> onnx.ModelProto:
    """A float op between layers: the layer in front still runs in integers."""
    g = Graph(opset=17)
    x = g.relu(g.conv(g.input(), 8, 8))
    return tail(g, g.op("LayerNormalization", [x, g.constant("ones", np.ones(16, np.float32))], "norm"))


def no_bias() -> onnx.ModelProto:
    g = Graph()
    x = g.op("Conv", [g.input(), g.weight("conv.weight", (8, 8, 3, 3), 72)], "conv", pads=[1] * 4)
    return tail(g, g.relu(x))


def computed_bias() -> onnx.ModelProto:
    """The bias is computed by the graph, the mean of each channel: it stays float."""
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 8))
    bias = g.op("ReduceMean", [x], "mean", axes=[0, 2, 3], keepdims=0)
    x = g.op("Conv", [x, g.weight("w", (8, 8, 3, 3), 72), bias], "biased", pads=[1] * 4)
    g.conv(g.relu(x, "relu2"), 8, 8, "conv2", output="output")
    return g.model()


def computed_bound() -> onnx.ModelProto:
    """Clip without a lower bound whose upper one the graph computes: nothing to absorb."""
    g = Graph()
    high = g.op("Abs", [g.op("ReduceMin", [g.input()], "least", keepdims=0)], "high")
    return tail(g, g.op("Clip", [g.conv("input", 8, 8), "", high], "clip"))


MORE = {
    build.__name__: build
    for build in (
        pad_zero,
        pad_reflect,
        pad_one,
        pad_output,
        clip_signed,
        clip_positive,
        clip_above,
        clip_twice,
        computed_bound,
        relu_output,
        two_heads,
        split,
        resize_nearest,
        shuffle,
        leaky_relu,
        prelu,
        silu,
        shared_weight,
        products,
        tokens,
        tokens_of_one_size,
        constant_operands,
        normalized_between,
        no_bias,
    )
}
GRAPHS: dict[str, Callable[[], onnx.ModelProto]] = PATTERNS | MORE
