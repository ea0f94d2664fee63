"""Which operators of ONNX have a form in LiteRT, and what writes each."""

from __future__ import annotations

from mrecg_onnx.litert.arithmetic import Step, binary, clip, hard_sigmoid, leaky_relu, matmul, softmax, unary
from mrecg_onnx.litert.layers import convolution, dense
from mrecg_onnx.litert.moving import alias, concat, cut, pad_values, reshape, split, transpose
from mrecg_onnx.litert.pools import average_pool, global_pool, max_pool, reduce_mean
from mrecg_onnx.litert.resizing import resize

__all__ = ["OPERATORS"]

OPERATORS: dict[str, Step] = {
    "Add": binary("ADD", "AddOptions"),
    "AveragePool": average_pool,
    "Clip": clip,
    "Concat": concat,
    "Conv": convolution,
    "Div": binary("DIV", "DivOptions", integer=False),
    "Dropout": alias,
    "Exp": unary("EXP", ("ExpOptions", {})),
    "Flatten": reshape,
    "Gemm": dense,
    "GlobalAveragePool": global_pool,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": unary("HARD_SWISH", ("HardSwishOptions", {})),
    "Identity": alias,
    "LeakyRelu": leaky_relu,
    "MatMul": matmul,
    "MaxPool": max_pool,
    "Mul": binary("MUL", "MulOptions"),
    "Pad": pad_values,
    "ReduceMean": reduce_mean,
    "Relu": unary("RELU"),
    "Reshape": reshape,
    "Resize": resize,
    "Sigmoid": unary("LOGISTIC"),
    "Slice": cut,
    "Softmax": softmax,
    "Split": split,
    "Sqrt": unary("SQRT"),
    "Squeeze": reshape,
    "Sub": binary("SUB", "SubOptions"),
    "Tanh": unary("TANH"),
    "Transpose": transpose,
    "Unsqueeze": reshape,
}
"""ONNX operator and what writes it."""
