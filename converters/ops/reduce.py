"""Operators that reduce axes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mrecg_onnx.converters.ops.common import OnnxGraph, OnnxNode, OperationConverterResult, result
from mrecg_onnx.converters.ops.elementwise import Elementwise
from mrecg_onnx.converters.ops.shape import Static, list_attribute, static
from mrecg_onnx.converters.registry import converter

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OnnxReduce"]


def _sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep, dtype=x.dtype)


def _mean(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keepdim=keep)
    # Integers: the exact mean, cut towards zero.
    return torch.div(_sum(x, axes, keep), math.prod(x.shape[axis] for axis in axes), rounding_mode="trunc")


def _prod(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


def _extreme(function: Callable[..., Tensor]) -> Callable[[Tensor, tuple[int, ...], bool], Tensor]:
    def reduce(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
        if not x.numel():
            return _extreme_of_nothing(x, axes, keep, largest=function is torch.amax)
        if x.dtype == torch.bool:
            return function(x.to(torch.uint8), axes, keepdim=keep).to(torch.bool)
        return function(x, axes, keepdim=keep)

    return reduce


def _extreme_of_nothing(x: Tensor, axes: tuple[int, ...], keep: bool, *, largest: bool) -> Tensor:
    """Return what the specification has for empty sets: the smallest value of the type, or the largest."""
    if x.is_floating_point():
        value: float | bool = -math.inf if largest else math.inf
    elif x.dtype == torch.bool:
        value = not largest
    else:
        value = torch.iinfo(x.dtype).min if largest else torch.iinfo(x.dtype).max
    return torch.full_like(x.sum(axes, keepdim=keep), value, dtype=x.dtype)


_REDUCTIONS: dict[str, Callable[[Tensor, tuple[int, ...], bool], Tensor]] = {
    "ReduceL1": lambda x, axes, keep: _sum(x.abs(), axes, keep),
    "ReduceL2": lambda x, axes, keep: _sum(x * x, axes, keep).sqrt().to(x.dtype),
    "ReduceLogSum": lambda x, axes, keep: _sum(x, axes, keep).log().to(x.dtype),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
    "ReduceMax": _extreme(torch.amax),
    "ReduceMean": _mean,
    "ReduceMin": _extreme(torch.amin),
    "ReduceProd": _prod,
    "ReduceSum": _sum,
    "ReduceSumSquare": lambda x, axes, keep: _sum(x * x, axes, keep),
}

# From these opsets on, axes is an input; before, it is an attribute.
_AXES_INPUT_SINCE = {op_type: 13 if op_type == "ReduceSum" else 18 for op_type in _REDUCTIONS}


class OnnxReduce(Static):
    """One of ONNX's Reduce operators.

    Attributes:
        function: (x, axes, keepdims) -> reduced x.
        keepdims: Keep the reduced axes with length 1.
        noop_with_empty_axes: Without axes, change nothing; otherwise reduce all.
    """

    function: Callable[[Tensor, tuple[int, ...], bool], Tensor]
    keepdims = True
    noop_with_empty_axes = False

    def compute(self, x: Tensor, *arguments: list[int] | None) -> Tensor:
        """Reduce ``x`` along the axes."""
        (axes,) = arguments
        if not axes:
            if self.noop_with_empty_axes:
                # The elementwise part of the operator (square, log, ...) applies all the same.
                return self.function(x.unsqueeze(0), (0,), False)
            axes = list(range(x.ndim))
        if not x.ndim:
            return self.function(x.reshape(1), (0,), False)
        return self.function(x, tuple(axes), self.keepdims)


def _convert_old(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    module = OnnxReduce([list_attribute(node, "axes")])
    module.function = _REDUCTIONS[node.operation_type]
    module.keepdims = bool(node.attributes.get("keepdims", 1))
    return result(module, node)


def _convert(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return static(
        OnnxReduce,
        node,
        graph,
        [1],
        function=_REDUCTIONS[node.operation_type],
        keepdims=bool(node.attributes.get("keepdims", 1)),
        noop_with_empty_axes=bool(node.attributes.get("noop_with_empty_axes", 0)),
    )


for _op_type, _since in _AXES_INPUT_SINCE.items():
    converter(_op_type, 1, _since - 1)(_convert_old)
    converter(_op_type, _since)(_convert)


@converter("ArgMax")
@converter("ArgMin")
def _arg_extreme(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    axis = node.attributes.get("axis", 0)
    keepdims = bool(node.attributes.get("keepdims", 1))
    last = bool(node.attributes.get("select_last_index", 0))
    largest = node.operation_type == "ArgMax"

    def find(x: Tensor) -> Tensor:
        # torch does not promise which of equal elements it finds, so the first that equals the extreme is looked up.
        best = x.amax(axis, keepdim=True) if largest else x.amin(axis, keepdim=True)
        hits = (x == best).flip(axis) if last else x == best
        place = hits.to(torch.uint8).cumsum(axis).clamp(max=1).eq(0).sum(axis, keepdim=True)
        place = x.shape[axis] - 1 - place if last else place
        return place if keepdims else place.squeeze(axis)

    return result(Elementwise(find), node)


class OnnxScan(Static):
    """ONNX CumSum and CumProd.

    Attributes:
        function: (x, axis) -> running result along the axis.
        neutral: What the running result starts from.
        exclusive: Leave each element itself out.
        reverse: Run from the end.
    """

    function: Callable[[Tensor, int], Tensor]
    neutral = 0
    exclusive = False
    reverse = False

    def compute(self, x: Tensor, *arguments: list[int] | None) -> Tensor:
        """Run along the axis."""
        ((axis,),) = arguments  # type: ignore[misc]
        x = x.flip(axis) if self.reverse else x
        if self.exclusive:
            first = torch.full_like(x.narrow(axis, 0, 1), self.neutral)
            x = torch.cat([first, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
        y = self.function(x, axis)
        return y.flip(axis) if self.reverse else y


@converter("CumSum", 11)
@converter("CumProd", 26)
def _running(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    total = node.operation_type == "CumSum"
    return static(
        OnnxScan,
        node,
        graph,
        [1],
        function=(lambda x, axis: x.cumsum(axis, dtype=x.dtype))
        if total
        else lambda x, axis: x.cumprod(axis, dtype=x.dtype),
        neutral=0 if total else 1,
        exclusive=bool(node.attributes.get("exclusive", 0)),
        reverse=bool(node.attributes.get("reverse", 0)),
    )
