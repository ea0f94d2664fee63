"""Operators that look elements up, pick them out or write them in places given as tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mrecg_onnx.converters.ops.common import (
    OnnxGraph,
    OnnxNode,
    OperationConverterResult,
    n_outputs,
    reject,
    result,
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
    if reduction not in {"none", "add"}:
        raise reject(node, f"reduction {reduction}")

    def scatter(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        places = tuple(_from_front(at, x.shape[axis]) for axis, at in enumerate(indices.unbind(-1)))
        return x.index_put(places, updates, accumulate=reduction == "add")

    return result(Elementwise(scatter), node)


@converter("Trilu", 14)
def _trilu(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    cut = torch.triu if node.attributes.get("upper", 1) else torch.tril

    def triangle(x: Tensor, k: Tensor | None = None) -> Tensor:
        return cut(x, 0 if k is None else int(k))

    return result(Elementwise(triangle), node)
