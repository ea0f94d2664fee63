"""Operators that look elements up, pick them out or write them in places given as tensors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from mrecg_onnx.converters.ops.common import (
    OnnxGraph,
    OnnxNode,
    OperationConverterResult,
    constant_ints,
    input_name,
    integers,
    n_outputs,
    result,
    torch_dtype,
)
from mrecg_onnx.converters.ops.elementwise import Elementwise
from mrecg_onnx.converters.ops.shape import Static, static
from mrecg_onnx.converters.registry import converter

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["OnnxTopK"]

_REDUCE = {"add": "sum", "max": "amax", "min": "amin", "mul": "prod"}


class OnnxTopK(Static):
    """ONNX TopK.

    Attributes:
        axis: The axis to search.
        largest: The largest elements, not the smallest.
        outputs: 1 for the values only.
    """

    axis = -1
    largest = True
    outputs = 2

    def compute(self, x: Tensor, *arguments: list[int] | None) -> tuple[Tensor, Tensor] | Tensor:
        """Return the k extreme elements, sorted, and their places; of equal ones the first comes first."""
        (k,) = arguments
        assert k is not None
        # A stable sort rather than torch.topk, which does not say which of equal elements it picks.
        order = torch.argsort(x, dim=self.axis, descending=self.largest, stable=True)
        places = order.narrow(self.axis, 0, k[0])
        values = torch.gather(x, self.axis, places)
        return (values, places) if self.outputs > 1 else values


@converter("TopK", 1, 9)
def _old_top_k(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    module = OnnxTopK([[node.attributes["k"]]])
    module.axis, module.outputs = node.attributes.get("axis", -1), n_outputs(node)
    return result(module, node)


@converter("TopK", 10)
def _top_k(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return static(
        OnnxTopK,
        node,
        graph,
        [1],
        axis=node.attributes.get("axis", -1),
        largest=bool(node.attributes.get("largest", 1)),
        outputs=n_outputs(node),
    )


def _from_front(indices: Tensor, size: int) -> Tensor:
    """Count negative indices from the front, as torch wants them."""
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


@converter("NonZero", 9)
def _non_zero(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    return result(Elementwise(lambda x: torch.nonzero(x).t()), node)


@converter("GatherElements", 11)
def _gather_elements(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    axis = node.attributes.get("axis", 0)
    return result(Elementwise(lambda x, at: torch.gather(x, axis, _from_front(at, x.shape[axis]))), node)


@converter("Scatter", 9)
@converter("ScatterElements", 11)
def _scatter_elements(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    axis, reduction = node.attributes.get("axis", 0), node.attributes.get("reduction", "none")

    def scatter(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        places = _from_front(indices, x.shape[axis])
        if reduction == "none":
            return x.scatter(axis, places, updates)
        return x.scatter_reduce(axis, places, updates, _REDUCE[reduction])

    return result(Elementwise(scatter), node)


@converter("ScatterND", 11)
def _scatter_nd(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    reduction = node.attributes.get("reduction", "none")

    def scatter(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        places = tuple(_from_front(at, x.shape[axis]) for axis, at in enumerate(indices.unbind(-1)))
        if reduction in {"none", "add"}:
            return x.index_put(places, updates, accumulate=reduction == "add")
        # Rows of what the indices leave whole, addressed by one number each.
        row = torch.zeros_like(places[0])
        for axis, at in enumerate(places):
            row = row * x.shape[axis] + at
        rows = x.reshape(math.prod(x.shape[: len(places)]), -1)
        given = updates.reshape(row.numel(), -1)
        return rows.scatter_reduce(0, row.reshape(-1, 1).expand_as(given), given, _REDUCE[reduction]).reshape(x.shape)

    return result(Elementwise(scatter), node)


@converter("GatherND", 11)
def _gather_nd(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    batch = node.attributes.get("batch_dims", 0)

    def gather(x: Tensor, indices: Tensor) -> Tensor:
        places = [_from_front(at, x.shape[batch + axis]) for axis, at in enumerate(indices.unbind(-1))]
        rank = places[0].ndim
        own = [
            torch.arange(size, device=x.device).reshape(-1, *(1,) * (rank - 1 - axis))
            for axis, size in enumerate(x.shape[:batch])
        ]
        return x[(*own, *places)]

    return result(Elementwise(gather), node)


class OnnxOneHot(Static):
    """ONNX OneHot.

    Attributes:
        axis: Where the new axis goes.
    """

    axis = -1

    def forward(self, x: Tensor, *inputs: Tensor) -> Tensor:
        """Return the second of the values (the last input) at the places ``x``, the first elsewhere."""
        *given, values = inputs
        (depth,) = integers(given[0]) if given else self.arguments[0] or [0]
        axis = self.axis % (x.ndim + 1)
        places = x.to(torch.int64).unsqueeze(axis)
        classes = torch.arange(depth, device=x.device).reshape(-1, *(1,) * (x.ndim - axis))
        return torch.where((places == classes) | (places + depth == classes), values[1], values[0])


@converter("OneHot", 9)
def _one_hot(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    depth = constant_ints(node, 1, graph)
    module = OnnxOneHot([depth])
    module.axis = node.attributes.get("axis", -1)
    return result(module, node, [name for place, name in enumerate(node.input_values) if place != 1 or depth is None])


@converter("Compress", 9)
def _compress(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    axis = node.attributes.get("axis")

    def pick(x: Tensor, condition: Tensor) -> Tensor:
        places = torch.nonzero(condition).reshape(-1)
        return x.reshape(-1).index_select(0, places) if axis is None else x.index_select(axis, places)

    return result(Elementwise(pick), node)


@converter("EyeLike", 9)
def _eye_like(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    diagonal, data_type = node.attributes.get("k", 0), node.attributes.get("dtype")

    def eye(x: Tensor) -> Tensor:
        rows, columns = (torch.arange(size, device=x.device) for size in x.shape)
        return (columns - rows.reshape(-1, 1) == diagonal).to(x.dtype if data_type is None else torch_dtype(data_type))

    return result(Elementwise(eye), node)


@converter("ReverseSequence", 10)
def _reverse_sequence(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    batch, time = node.attributes.get("batch_axis", 1), node.attributes.get("time_axis", 0)

    def reverse(x: Tensor, lengths: Tensor) -> Tensor:
        at = torch.arange(x.shape[time], device=x.device)
        ends = lengths.reshape(-1, 1)
        places = torch.where(at < ends, ends - 1 - at, at)  # (batch, time)
        places = places if batch < time else places.t()
        return x.gather(time, places.reshape(*places.shape, *(1,) * (x.ndim - 2)).expand(x.shape))

    return result(Elementwise(reverse), node, [input_name(node, 0), input_name(node, 1)])


@converter("TensorScatter", 24)
def _tensor_scatter(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    axis, circular = node.attributes.get("axis", -2), node.attributes.get("mode", "linear") == "circular"

    def write(past: Tensor, update: Tensor, start: Tensor | None = None) -> Tensor:
        starts = torch.zeros(past.shape[0], dtype=torch.int64, device=past.device) if start is None else start
        places = starts.reshape(-1, 1) + torch.arange(update.shape[axis], device=past.device)  # (batch, length)
        places = places % past.shape[axis] if circular else places
        shape = [1] * past.ndim
        shape[0], shape[axis] = places.shape
        return past.scatter(axis, places.reshape(shape).expand(update.shape), update)

    return result(Elementwise(write), node)


@converter("Trilu", 14)
def _trilu(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    cut = torch.triu if node.attributes.get("upper", 1) else torch.tril

    def triangle(x: Tensor, k: Tensor | None = None) -> Tensor:
        return cut(x, 0 if k is None else int(k))

    return result(Elementwise(triangle), node)
