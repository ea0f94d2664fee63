"""A small classifier, what it gives, and a convolution that ONNX Runtime runs in integers."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
from helpers.architectures import Graph

CLASSES = 10


def classifier(batch="batch", classes=CLASSES):
    """conv -> relu -> pool -> fc on [batch, 3, 8, 8]."""
    g = Graph()
    g.classifier(g.relu(g.conv(g.input(3, 8, batch=batch), 3, 8)), 8, classes)
    return g.model()


def qdq_conv():
    """Q -> DQ -> Conv (int8 weights) -> Relu -> Q -> DQ: what ONNX Runtime fuses to one QLinearConv."""
    g = Graph()
    g.input(3, 8)
    scale, zero = g.constant("scale", np.float32(0.05)), g.constant("zero", np.uint8(0))
    weight = g.constant("weight", g.random.integers(-7, 8, (8, 3, 3, 3)).astype(np.int8))
    w = g.op(
        "DequantizeLinear", [weight, g.constant("w_scale", np.float32(0.1)), g.constant("w_zero", np.int8(0))], "w"
    )
    x = g.op("DequantizeLinear", [g.op("QuantizeLinear", ["input", scale, zero], "q"), scale, zero], "dq")
    y = g.relu(g.op("Conv", [x, w], "conv", kernel_shape=[3, 3], pads=[1] * 4))
    y = g.op("QuantizeLinear", [y, scale, zero], "q2")
    g.op("DequantizeLinear", [y, scale, zero], "dq2", "output")
    return g.model()


def outputs(model, x):
    return ort.InferenceSession(model.SerializeToString()).run(None, {"input": x})[0]
