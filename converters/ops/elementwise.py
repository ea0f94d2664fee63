"""Operators that work element by element, with numpy's broadcasting."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrecg_onnx.converters.ops.common import (
    OnnxGraph,
    OnnxNode,
    OperationConverterResult,
    constant_of,
    has_input,
    input_name,
    refuse_training,
    result,
    torch_dtype,
)
from mrecg_onnx.converters.registry import converter

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Elementwise", "OnnxCast", "OnnxClip", "OnnxSoftmax", "overwriting"]


class Elementwise(nn.Module):
    """A function of its inputs without parameters or state."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(*inputs)

    def extra_repr(self) -> str:
        """Name the function."""
        return str(getattr(self.function, "__name__", self.function))


class OnnxCast(nn.Module):
    """ONNX Cast to a type that torch has."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Convert ``x``."""
        return x.to(self.dtype)

    def extra_repr(self) -> str:
        """Name the type."""
        return str(self.dtype)


class OnnxClip(nn.Module):
    """ONNX Clip; bounds that are constant are numbers here, others are inputs."""

    def __init__(self, min: float | None = None, max: float | None = None) -> None:  # noqa: A002 - ONNX's names
        super().__init__()
        self.min, self.max = min, max

    def forward(self, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        """Limit ``x``; where the bounds cross, the upper one holds."""
        least = self.min if low is None else low
        most = self.max if high is None else high
        if isinstance(least, float) and isinstance(most, float) and least < most and x.dtype == torch.float32:
            # The same values as two clamps, and a gradient that costs one vectorized pass instead of several.
            return nn.functional.hardtanh(x, least, most)
        if least is not None:
            x = torch.clamp(x, min=least)
        return x if most is None else torch.clamp(x, max=most)

    def extra_repr(self) -> str:
        """Show the bounds."""
        return f"min={self.min}, max={self.max}"


def overwriting(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """What computes the same as ``module`` and writes it over its only argument, of float32; None without."""
    if isinstance(module, OnnxClip):
        least, most = module.min, module.max
        if least is None or most is None or not least < most:
            return None
        return functools.partial(F.hardtanh_, min_val=least, max_val=most)
    return torch.relu_ if isinstance(module, Elementwise) and module.function is F.relu else None


class OnnxSoftmax(nn.Module):
    """ONNX Softmax, LogSoftmax and Hardmax.

    Attributes:
        axis: The axis along which the result sums to 1.
        flatten: Opset 12 and below: that axis and all behind it are one.
    """

    def __init__(self, function: Callable[..., Tensor], axis: int, flatten: bool) -> None:
        super().__init__()
        self.function, self.axis, self.flatten = function, axis, flatten

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function along the axis."""
        if not self.flatten:
            return self.function(x, dim=self.axis)
        axis = self.axis % max(x.ndim, 1)
        rows = 1
        for size in x.shape[:axis]:
            rows *= size
        return self.function(x.reshape(rows, -1), dim=1).reshape(x.shape)


def _hardmax(x: Tensor, dim: int) -> Tensor:
    return torch.zeros_like(x).scatter_(dim, x.argmax(dim, keepdim=True), 1)


def _divide(a: Tensor, b: Tensor) -> Tensor:
    # ONNX rounds integer quotients towards zero, as C does.
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


def _power(a: Tensor, b: Tensor) -> Tensor:
    """Raise to a power; the result has the type of the base."""
    return torch.pow(a, b).to(a.dtype)


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def _sum(*inputs: Tensor) -> Tensor:
    return functools.reduce(torch.add, inputs)


def _mean(*inputs: Tensor) -> Tensor:
    return _sum(*inputs) / len(inputs)


def _largest(*inputs: Tensor) -> Tensor:
    return functools.reduce(torch.maximum, inputs)


def _smallest(*inputs: Tensor) -> Tensor:
    return functools.reduce(torch.minimum, inputs)


def _identity(x: Tensor) -> Tensor:
    return x


def _is_infinite(x: Tensor, positive: bool, negative: bool) -> Tensor:
    return (torch.isposinf(x) & positive) | (torch.isneginf(x) & negative)


_UNSIGNED = frozenset({torch.uint16, torch.uint32, torch.uint64})


def _widened(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compute as int64 on unsigned types, for which torch has next to no arithmetic; the cast back cuts to size.

    For uint64, int64 has the same bits: right where the result's lowest bits depend on nothing else.
    """

    def compute(*inputs: Tensor) -> Tensor:
        if not any(x.dtype in _UNSIGNED for x in inputs):
            return function(*inputs)
        found = function(*(x.to(torch.int64) if x.dtype in _UNSIGNED else x for x in inputs))
        return found if found.dtype == torch.bool else found.to(inputs[0].dtype)

    compute.__name__ = getattr(function, "__name__", "")
    return compute


_FUNCTIONS: dict[str, tuple[int, Callable[..., Tensor]]] = {
    "Abs": (1, torch.abs),
    "Acos": (7, torch.acos),
    "Acosh": (9, torch.acosh),
    "Add": (7, _widened(torch.add)),
    "And": (7, torch.logical_and),
    "Asin": (7, torch.asin),
    "Asinh": (9, torch.asinh),
    "Atan": (7, torch.atan),
    "Atanh": (9, torch.atanh),
    "Ceil": (1, torch.ceil),
    "Cos": (7, torch.cos),
    "Cosh": (9, torch.cosh),
    "Div": (7, _widened(_divide)),
    "Equal": (7, _widened(torch.eq)),
    "Erf": (9, torch.erf),
    "Exp": (1, torch.exp),
    "Floor": (1, torch.floor),
    "Greater": (7, _widened(torch.gt)),
    "GreaterOrEqual": (12, _widened(torch.ge)),
    "BitwiseAnd": (18, _widened(torch.bitwise_and)),
    "BitwiseNot": (18, _widened(torch.bitwise_not)),
    "BitwiseOr": (18, _widened(torch.bitwise_or)),
    "BitwiseXor": (18, _widened(torch.bitwise_xor)),
    "HardSwish": (14, F.hardswish),
    "Identity": (1, _identity),
    "IsNaN": (9, torch.isnan),
    "Less": (7, _widened(torch.lt)),
    "LessOrEqual": (12, _widened(torch.le)),
    "Log": (1, torch.log),
    "Max": (6, _widened(_largest)),
    "Mean": (6, _mean),
    "Min": (6, _widened(_smallest)),
    "Mish": (18, F.mish),
    "Mul": (7, _widened(torch.mul)),
    "Neg": (1, torch.neg),
    "Not": (1, torch.logical_not),
    "Or": (7, torch.logical_or),
    "PRelu": (7, _prelu),
    "Pow": (7, _widened(_power)),
    "Reciprocal": (1, torch.reciprocal),
    "Relu": (1, F.relu),
    "Round": (11, torch.round),
    "Sigmoid": (1, torch.sigmoid),
    "Sign": (9, torch.sign),
    "Sin": (7, torch.sin),
    "Sinh": (9, torch.sinh),
    "Softplus": (1, F.softplus),
    "Softsign": (1, F.softsign),
    "Sqrt": (1, torch.sqrt),
    "Sub": (7, _widened(torch.sub)),
    "Sum": (6, _sum),
    "Tan": (7, torch.tan),
    "Tanh": (1, torch.tanh),
    "Where": (9, torch.where),
    "Xor": (7, torch.logical_xor),
}
"""Operator: the first version that works by numpy's rules, and what it computes."""


def _register_functions() -> None:
    def convert(function: Callable[..., Tensor], node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
        return result(Elementwise(function), node)

    for op_type, (first, function) in _FUNCTIONS.items():
        converter(op_type, first)(functools.partial(convert, function))


_register_functions()


def _leaky_relu(node: OnnxNode) -> Callable[..., Tensor]:
    slope = node.attributes.get("alpha", 0.01)
    # Slope 1, a branch of a plan, is no work: torch would make two passes over the map, forward and back.
    return _same if slope == 1.0 else functools.partial(F.leaky_relu, negative_slope=slope)


def _same(x: Tensor) -> Tensor:
    return x


def _elu(node: OnnxNode) -> Callable[..., Tensor]:
    return functools.partial(F.elu, alpha=node.attributes.get("alpha", 1.0))


def _celu(node: OnnxNode) -> Callable[..., Tensor]:
    return functools.partial(F.celu, alpha=node.attributes.get("alpha", 1.0))


def _selu(node: OnnxNode) -> Callable[..., Tensor]:
    # Defaults: ONNX operator specification, Selu.
    alpha = node.attributes.get("alpha", 1.67326319217681884765625)
    gamma = node.attributes.get("gamma", 1.05070102214813232421875)
    return lambda x: gamma * F.elu(x, alpha=alpha)


def _hard_sigmoid(node: OnnxNode) -> Callable[..., Tensor]:
    alpha, beta = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    return lambda x: torch.clamp(x * alpha + beta, 0, 1)


def _thresholded_relu(node: OnnxNode) -> Callable[..., Tensor]:
    alpha = node.attributes.get("alpha", 1.0)
    return lambda x: torch.where(x > alpha, x, torch.zeros_like(x))


def _shrink(node: OnnxNode) -> Callable[..., Tensor]:
    bound, bias = node.attributes.get("lambd", 0.5), node.attributes.get("bias", 0.0)
    return lambda x: torch.where(x < -bound, x + bias, torch.where(x > bound, x - bias, torch.zeros_like(x)))


def _gelu(node: OnnxNode) -> Callable[..., Tensor]:
    return functools.partial(F.gelu, approximate=node.attributes.get("approximate", "none"))


def _swish(node: OnnxNode) -> Callable[..., Tensor]:
    alpha = node.attributes.get("alpha", 1.0)
    return lambda x: x * torch.sigmoid(alpha * x)


def _swiglu(node: OnnxNode) -> Callable[..., Tensor]:
    alpha = node.attributes.get("alpha", 1.0)
    return lambda a, b: a * torch.sigmoid(alpha * a) * b


def _mod(node: OnnxNode) -> Callable[..., Tensor]:
    return _widened(torch.fmod if node.attributes.get("fmod", 0) else torch.remainder)


def _is_inf(node: OnnxNode) -> Callable[..., Tensor]:
    positive = bool(node.attributes.get("detect_positive", 1))
    negative = bool(node.attributes.get("detect_negative", 1))
    return functools.partial(_is_infinite, positive=positive, negative=negative)


_MAKERS: dict[str, tuple[int, Callable[[OnnxNode], Callable[..., Tensor]]]] = {
    "Celu": (12, _celu),
    "Elu": (1, _elu),
    "Gelu": (20, _gelu),
    "HardSigmoid": (1, _hard_sigmoid),
    "IsInf": (10, _is_inf),
    "LeakyRelu": (1, _leaky_relu),
    "Mod": (10, _mod),
    "Selu": (1, _selu),
    "Shrink": (9, _shrink),
    "SwiGLU": (28, _swiglu),
    "Swish": (24, _swish),
    "ThresholdedRelu": (10, _thresholded_relu),
}
"""Operator: its first version, and how its function follows from the node's attributes."""


def _register_makers() -> None:
    def convert(
        make: Callable[[OnnxNode], Callable[..., Tensor]], node: OnnxNode, _graph: OnnxGraph
    ) -> OperationConverterResult:
        return result(Elementwise(make(node)), node)

    for op_type, (first, make) in _MAKERS.items():
        converter(op_type, first)(functools.partial(convert, make))


_register_makers()


_SOFTMAX: dict[str, Callable[..., Tensor]] = {
    "Hardmax": _hardmax,
    "LogSoftmax": torch.log_softmax,
    "Softmax": torch.softmax,
}


def _softmax(node: OnnxNode, flatten: bool) -> OperationConverterResult:
    axis = node.attributes.get("axis", 1 if flatten else -1)
    return result(OnnxSoftmax(_SOFTMAX[node.operation_type], axis, flatten), node)


@converter("Softmax", 1, 12)
@converter("LogSoftmax", 1, 12)
@converter("Hardmax", 1, 12)
def _old_softmax(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    return _softmax(node, flatten=True)


@converter("Softmax", 13)
@converter("LogSoftmax", 13)
@converter("Hardmax", 13)
def _new_softmax(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    return _softmax(node, flatten=False)


@converter("Clip", 1, 10)
def _old_clip(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    return result(OnnxClip(node.attributes.get("min"), node.attributes.get("max")), node)


@converter("Clip", 11)
def _clip(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    bounds = [constant_of(node, index, graph) for index in (1, 2)]
    names = ["" if bound is not None else input_name(node, index) for index, bound in enumerate(bounds, 1)]
    numbers = [None if bound is None else bound.reshape(-1)[0].item() for bound in bounds]
    return result(OnnxClip(*numbers), node, [input_name(node, 0), *names])


@converter("Cast", 6)
def _cast(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    dtype = torch_dtype(node.attributes["to"])
    return result(OnnxCast(dtype), node)


@converter("CastLike", 15)
def _cast_like(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    return result(Elementwise(lambda x, like: x.to(like.dtype)), node)


_SIGNED = {torch.uint8: torch.int16, torch.uint16: torch.int32, torch.uint32: torch.int64}


def _shift(x: Tensor, by: Tensor, left: bool) -> Tensor:
    """Shift the bits of ``x``; by their number or more, or by less than none, leaves the sign alone."""
    bits = x.element_size() * 8
    if x.dtype == torch.uint64:
        # Halves of 32 bits: torch cannot shift 64 without a sign.
        words, steps = x.view(torch.int64), by.view(torch.int64)
        inside = (steps >= 0) & (steps < bits)
        steps = steps.clamp(0, bits - 1)
        # Rightwards the sign bit would be copied: the bits it was copied to are cut off.
        kept = torch.where(steps > 0, ~(torch.full_like(words, -1) << (bits - steps).clamp(max=bits - 1)), -1)
        moved = words << steps if left else (words >> steps) & kept
        return torch.where(inside, moved, torch.zeros_like(moved)).view(torch.uint64)
    wide = x.to(_SIGNED.get(x.dtype, x.dtype))
    steps = by.to(wide.dtype)
    inside = (steps >= 0) & (steps < bits)
    steps = steps.clamp(0, bits - 1)
    nothing = torch.zeros_like(wide)
    moved = wide << steps if left else wide >> steps
    return torch.where(inside, moved, nothing if left else torch.where(wide < 0, nothing - 1, nothing)).to(x.dtype)


@converter("BitShift", 11)
def _bit_shift(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    return result(Elementwise(functools.partial(_shift, left=node.attributes["direction"] == "LEFT")), node)


@converter("BitCast", 26)
def _bit_cast(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    dtype = torch_dtype(node.attributes["to"])
    return result(Elementwise(lambda x: x.contiguous().view(dtype)), node)


@converter("Dropout", 7)
def _dropout(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    """Dropout in inference passes its input on; the mask, where it is asked for, is all True."""
    if has_input(node, 2):
        training = constant_of(node, 2, graph)
        if training is None or bool(training.any()):
            raise refuse_training(node)
    names = [input_name(node, 0)]
    if len(node.output_values) > 1 and node.output_values[1]:
        return result(_DropoutWithMask(), node, names)
    return result(Elementwise(_identity), node, names)


class _DropoutWithMask(nn.Module):
    """Dropout in inference with its mask."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the input and which elements of it are kept: all."""
        return x, torch.ones_like(x, dtype=torch.bool)
