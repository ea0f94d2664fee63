"""Networks as a TensorFlow exporter leaves them, node by node: maps are NHWC, and each layer has Transposes of its own.

Kernels are stored HWIO and reach the layer through Transpose, Reshape, Cast and Identity, constants are Constant nodes,
a Pad comes in front of layers of stride 2, Relu6 is Clip, or Min behind Relu, and the mean is taken over axes 1 and 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["BY_HAND", "ByHand"]

TO_NCHW, TO_NHWC = [0, 3, 1, 2], [0, 2, 3, 1]


class Writer:
    """Nodes of a graph on images [batch, 32, 32, 3]; methods return the tensor that they made."""

    def __init__(self, opset: int, *, optimized: bool) -> None:
        """``optimized``: normalization and activation function stand inside of a layer's Transposes."""
        self.random = np.random.default_rng(0)
        self.opset, self.optimized = opset, optimized
        self.nodes: list[onnx.NodeProto] = []

    def op(self, op_type: str, inputs: Sequence[str], name: str = "", **attributes: Any) -> str:
        name = name or f"{op_type}__{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [f"{name}:0"], name=name, **attributes))
        return f"{name}:0"

    def constant(self, value: Any) -> str:
        return self.op("Constant", [], value=numpy_helper.from_array(np.asarray(value)))

    def normal(self, *shape: int, fan_in: int = 25) -> np.ndarray:
        return self.random.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32)

    def nchw(self, x: str) -> str:
        return self.op("Transpose", [x], perm=TO_NCHW)

    def nhwc(self, x: str) -> str:
        return self.op("Transpose", [x], perm=TO_NHWC)

    def conv(self, x: str, cin: int, cout: int, name: str, kernel: int = 1, stride: int = 1) -> str:
        """Conv, normalization, Relu6; what leads back to NHWC is left to :meth:`close`."""
        if stride == 2:
            pads = self.constant(np.array([0, 1, 1, 0, 0, 1, 1, 0]))
            x = self.op("Pad", [x, pads], f"{name}/pad")
        weight = self.constant(self.normal(kernel, kernel, cin, cout, fan_in=cin * kernel**2))
        weight = self.op("Transpose", [self.op("Identity", [weight])], perm=[3, 2, 0, 1])
        where = {"auto_pad": "VALID"} if stride == 2 else {"auto_pad": "SAME_UPPER"}
        x = self.op("Conv", [self.nchw(x), weight], name, strides=[stride] * 2, **where)
        return self.normalized(x, cout, name)

    def depthwise(self, x: str, channels: int, name: str, stride: int = 1) -> str:
        """Its kernel is stored HWC1, in double precision."""
        if stride == 2:
            x = self.op("Pad", [x, self.constant(np.array([0, 0, 0, 0, 0, 1, 1, 0]))], f"{name}/pad")
        weight = self.constant(self.normal(3, 3, channels, 1, fan_in=9).astype(np.float64))
        weight = self.op("Cast", [weight], to=TensorProto.FLOAT)
        weight = self.op("Reshape", [weight, self.constant(np.array([3, 3, 1, channels]))])
        weight = self.op("Transpose", [weight], perm=[3, 2, 0, 1])
        pads = [0] * 4 if stride == 2 else [1] * 4
        x = self.op("Conv", [self.nchw(x), weight], name, strides=[stride] * 2, group=channels, pads=pads)
        return self.normalized(x, channels, name)

    def normalized(self, x: str, channels: int, name: str) -> str:
        """BatchNormalization, in Transposes of its own unless optimized; NHWC behind it then."""
        if not self.optimized:
            x = self.nchw(self.nhwc(x))
        scales = [self.constant(self.random.uniform(0.5, 1.5, channels).astype(np.float32)) for _ in range(2)]
        shifts = [self.constant(self.random.normal(0, 0.2, channels).astype(np.float32)) for _ in range(2)]
        x = self.op("BatchNormalization", [x, scales[0], *shifts, scales[1]], f"{name}/bn", epsilon=1e-3)
        return x if self.optimized else self.nhwc(x)

    def relu6(self, x: str, *, written_out: bool = False) -> str:
        low, high = self.constant(np.float32(0)), self.constant(np.float32(6))
        if written_out:
            return self.op("Min", [self.op("Relu", [x]), high])
        return self.op("Clip", [x, low, high])

    def close(self, x: str) -> str:
        return self.nhwc(x) if self.optimized else x

    def head(self, x: str, channels: int, classes: int = 10) -> onnx.ModelProto:
        """Mean over the map, MatMul and Add, Softmax; the checked model."""
        if self.opset >= 18:
            x = self.op("ReduceMean", [x, self.constant(np.array([1, 2]))], "mean", keepdims=0)
        else:
            x = self.op("ReduceMean", [x], "mean", axes=[1, 2], keepdims=0)
        weight = self.op("Transpose", [self.constant(self.normal(classes, channels, fan_in=channels))], perm=[1, 0])
        x = self.op("MatMul", [x, self.op("Identity", [weight])], "dense")
        x = self.op("Add", [x, self.constant(self.normal(classes))], "dense/bias")
        x = self.op("Softmax", [x], "softmax", axis=-1)
        graph = helper.make_graph(
            self.nodes, "nhwc",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 32, 32, 3])],
            [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["batch", classes])],
        )  # fmt: skip
        opset = helper.make_opsetid("", self.opset)
        model = helper.make_model(graph, opset_imports=[opset], producer_name="tests")
        model.ir_version = helper.find_min_ir_version_for([opset])
        onnx.checker.check_model(model, full_check=True)
        return model


def mobilenet(opset: int) -> onnx.ModelProto:
    """Inverted bottlenecks, Transposes around each layer with its normalization and activation function."""
    w = Writer(opset, optimized=True)
    x = w.close(w.relu6(w.conv("input", 3, 16, "stem", 3, 2)))
    for i, (cin, cout, stride) in enumerate([(16, 16, 1), (16, 24, 2), (24, 24, 1)]):
        y = w.close(w.relu6(w.conv(x, cin, 2 * cin, f"block{i}/expand"), written_out=i == 1))
        y = w.close(w.relu6(w.depthwise(y, 2 * cin, f"block{i}/depthwise", stride)))
        y = w.close(w.conv(y, 2 * cin, cout, f"block{i}/project"))
        x = w.op("Add", [x, y], f"block{i}/add") if stride == 1 and cin == cout else y
    return w.head(w.close(w.relu6(w.conv(x, 24, 32, "last"))), 32)


def resnet(opset: int) -> onnx.ModelProto:
    """Residual blocks and a MaxPool, every op in Transposes of its own."""
    w = Writer(opset, optimized=False)
    x = w.op("Relu", [w.conv("input", 3, 16, "stem", 3)])
    x = w.nhwc(w.op("MaxPool", [w.nchw(x)], "pool", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"))
    for i, (cin, cout, stride) in enumerate([(16, 16, 1), (16, 32, 2)]):
        y = w.op("Relu", [w.conv(x, cin, cout, f"block{i}/conv1", 3, stride)])
        y = w.conv(y, cout, cout, f"block{i}/conv2", 3)
        if stride == 2:
            x = w.conv(
                w.nhwc(w.op("MaxPool", [w.nchw(x)], kernel_shape=[1, 1], strides=[2, 2])), cin, cout, f"block{i}/skip"
            )
        x = w.op("Relu", [w.op("Add", [y, x], f"block{i}/add")])
    left, right = (w.op("Relu", [w.conv(x, 32, 16, f"branch{i}", 2 * i + 1)]) for i in range(2))
    return w.head(w.op("Concat", [left, right], "concat", axis=3), 32)


@dataclass(frozen=True)
class ByHand:
    """A network written node by node, and its opset."""

    write: Callable[[int], onnx.ModelProto]
    opset: int

    def build(self) -> onnx.ModelProto:
        """The checked model."""
        return self.write(self.opset)


BY_HAND = {"nhwc_mobilenet": ByHand(mobilenet, 13), "nhwc_resnet": ByHand(resnet, 18)}
