"""Networks whose channels can be rescaled, and the function that has to stay."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from helpers.architectures import Graph
from helpers.stages import network_of
from onnx import numpy_helper

__all__ = [
    "float_run",
    "mobile",
    "prelu_pair",
    "relu_pair",
    "run",
    "spread",
    "through_depthwise",
    "through_pools_to_gemm",
]


def run(model: ir.Model | onnx.ModelProto, fed: dict[str, np.ndarray]) -> np.ndarray:
    """First output of ONNX Runtime without its rewriting."""
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, fed)[0]


def _inverted(g: Graph, x: str, cin: int, cout: int, name: str, *, stride: int = 1) -> str:
    y = g.clip(g.conv(x, cin, 16, f"{name}_expand", kernel=1), f"{name}_clip1")
    y = g.clip(g.conv(y, 16, 16, f"{name}_depthwise", stride=stride, groups=16), f"{name}_clip2")
    y = g.conv(y, 16, cout, f"{name}_project", kernel=1)
    return g.op("Add", [x, y], f"{name}_add") if stride == 1 and cin == cout else y


def mobile(seed: int = 0) -> onnx.ModelProto:
    """Two stages of linear bottlenecks: three blocks of 8 channels, two of 12."""
    g = Graph(seed)
    x = g.clip(g.conv(g.input(), 8, 16, "stem", stride=2), "stem_clip")
    x = g.conv(x, 16, 8, "stem_project", kernel=1)
    for i in range(2):
        x = _inverted(g, x, 8, 8, f"a{i}")
    x = _inverted(g, x, 8, 12, "b0", stride=2)
    x = _inverted(g, x, 12, 12, "b1")
    x = g.clip(g.conv(x, 12, 16, "head", kernel=1), "head_clip")
    g.classifier(x, 16)
    return g.model()


def relu_pair() -> onnx.ModelProto:
    """Two layers with a Relu between."""
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 12, "first"))
    g.op("Softmax", [g.conv(x, 12, 8, "second")], "softmax", "output", axis=1)
    return g.model()


def prelu_pair() -> onnx.ModelProto:
    """Three layers with PRelu and LeakyRelu between."""
    g = Graph()
    slope = g.constant("slope", np.linspace(0.05, 0.5, 12, dtype=np.float32).reshape(12, 1, 1))
    x = g.op("PRelu", [g.conv(g.input(), 8, 12, "first"), slope], "prelu")
    x = g.op("LeakyRelu", [g.conv(x, 12, 8, "second")], "leaky", alpha=0.2)
    g.conv(x, 8, 8, "third", output="output")
    return g.model()


def through_depthwise() -> onnx.ModelProto:
    """A depthwise layer between two others."""
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 12, "first"))
    x = g.relu(g.conv(x, 12, 12, "depthwise", groups=12, stride=2), "relu2")
    g.conv(x, 12, 8, "last", output="output")
    return g.model()


def through_pools_to_gemm() -> onnx.ModelProto:
    """A layer, two pools and a classifier."""
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 12, "first"))
    x = g.op("MaxPool", [x], "maxpool", kernel_shape=[2, 2], strides=[2, 2])
    x = g.op("AveragePool", [x], "avgpool", kernel_shape=[2, 2], strides=[2, 2])
    g.classifier(x, 12)
    return g.model()


def spread(seed: int = 0) -> onnx.ModelProto:
    """Pointwise, depthwise and pointwise layers with Relu6 between; channels of a depthwise layer of very different sizes."""
    g = Graph(seed)
    x = g.clip(g.conv(g.input(), 8, 16, "stem"), "stem_clip")
    x = g.clip(g.conv(x, 16, 16, "depthwise", groups=16), "depthwise_clip")
    x = g.clip(g.conv(x, 16, 16, "project", kernel=1), "project_clip")
    g.classifier(x, 16)
    model = g.model()
    for tensor in model.graph.initializer:
        if tensor.name in {"depthwise.weight", "depthwise.bias"}:
            values = numpy_helper.to_array(tensor)
            sizes = np.geomspace(0.05, 4.0, 16, dtype=np.float32).reshape(-1, *[1] * (values.ndim - 1))
            tensor.CopyFrom(numpy_helper.from_array(values * sizes, tensor.name))
    return model


def float_run(model: ir.Model, data: dict[str, torch.Tensor]) -> torch.Tensor:
    """The output of the float network."""
    with torch.no_grad():
        return network_of(model).run(data)["output"]
