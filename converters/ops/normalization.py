"""Normalizations, in inference."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrecg_onnx.converters.ops.common import (
    OnnxGraph,
    OnnxNode,
    OperationConverterResult,
    input_name,
    n_outputs,
    refuse_training,
    result,
)
from mrecg_onnx.converters.ops.elementwise import Elementwise
from mrecg_onnx.converters.ops.shape import list_attribute
from mrecg_onnx.converters.registry import converter

__all__ = ["OnnxLayerNorm"]

_EPSILON = 1e-5  # default of all of them in the ONNX operator specification


@converter("BatchNormalization", 7)
def _batch_norm(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    if n_outputs(node) > 1 or node.attributes.get("training_mode", 0):
        raise refuse_training(node)
    epsilon = node.attributes.get("epsilon", _EPSILON)

    def normalize(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return F.batch_norm(x, mean, var, scale, bias, training=False, eps=epsilon)

    return result(Elementwise(normalize), node)


@converter("InstanceNormalization", 6)
def _instance_norm(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    epsilon = node.attributes.get("epsilon", _EPSILON)

    def normalize(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        axes = list(range(2, x.ndim))
        mean = x.mean(axes, keepdim=True)
        var = x.var(axes, unbiased=False, keepdim=True)
        shape = (1, -1, *(1,) * (x.ndim - 2))
        return (x - mean) / torch.sqrt(var + epsilon) * scale.reshape(shape) + bias.reshape(shape)

    return result(Elementwise(normalize), node)


class OnnxLayerNorm(nn.Module):
    """ONNX LayerNormalization.

    Attributes:
        axis: The first of the axes normalized over.
        epsilon: Added to the variance.
        outputs: How many of result, mean and inverse standard deviation are returned.
    """

    def __init__(self, axis: int, epsilon: float, outputs: int) -> None:
        super().__init__()
        self.axis, self.epsilon, self.outputs = axis, epsilon, outputs

    def forward(self, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        """Normalize ``x`` over its last axes."""
        axes = list(range(self.axis % x.ndim, x.ndim))
        mean = x.mean(axes, keepdim=True)
        centred = x - mean
        inverse = torch.rsqrt((centred * centred).mean(axes, keepdim=True) + self.epsilon)
        y = centred * inverse * scale
        y = y if bias is None else y + bias
        return y if self.outputs == 1 else (y, mean, inverse)


@converter("LayerNormalization", 17)
def _layer_norm(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    attributes = node.attributes
    module = OnnxLayerNorm(attributes.get("axis", -1), attributes.get("epsilon", _EPSILON), len(node.output_values))
    return result(module, node)


def _group_norm(node: OnnxNode, per_group: bool) -> OperationConverterResult:
    groups, epsilon = node.attributes["num_groups"], node.attributes.get("epsilon", _EPSILON)

    def normalize(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        if per_group:
            repeats = x.shape[1] // groups
            scale, bias = scale.repeat_interleave(repeats), bias.repeat_interleave(repeats)
        return F.group_norm(x, groups, scale, bias, epsilon)

    return result(Elementwise(normalize), node)


@converter("GroupNormalization", 18, 20)
def _old_group_norm(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    return _group_norm(node, per_group=True)


@converter("GroupNormalization", 21)
def _new_group_norm(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    return _group_norm(node, per_group=False)


@converter("LRN")
def _lrn(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    size = node.attributes["size"]
    alpha, beta = node.attributes.get("alpha", 1e-4), node.attributes.get("beta", 0.75)
    bias = node.attributes.get("bias", 1.0)

    def normalize(x: Tensor) -> Tensor:
        # The window spans floor((size - 1) / 2) channels before and ceil((size - 1) / 2) behind.
        before, behind = (size - 1) // 2, size // 2
        squares = F.pad((x * x).flatten(2), (0, 0, before, behind))
        total = squares.unfold(1, size, 1).sum(-1).reshape(x.shape)
        y: Tensor = x / (bias + alpha / size * total) ** beta
        return y

    return result(Elementwise(normalize), node)


@converter("LpNormalization")
def _lp_normalization(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    axis, p = node.attributes.get("axis", -1), node.attributes.get("p", 2)

    def normalize(x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, ord=p, dim=axis, keepdim=True)
        return torch.where(norm == 0, torch.zeros_like(x), x / norm)

    return result(Elementwise(normalize), node)


@converter("RMSNormalization", 23)
def _rms_norm(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    axis, epsilon = node.attributes.get("axis", -1), node.attributes.get("epsilon", _EPSILON)

    def normalize(x: Tensor, scale: Tensor) -> Tensor:
        axes = list(range(axis % x.ndim, x.ndim))
        return x * torch.rsqrt((x * x).mean(axes, keepdim=True) + epsilon) * scale

    return result(Elementwise(normalize), node, [input_name(node, 0), input_name(node, 1)])


@converter("MeanVarianceNormalization", 9)
def _mean_variance_norm(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    axes = list_attribute(node, "axes") or [0, 2, 3]

    def normalize(x: Tensor) -> Tensor:
        centred = x - x.mean(axes, keepdim=True)
        # The constant is the operator specification's.
        return centred / ((centred * centred).mean(axes, keepdim=True).sqrt() + 1e-9)

    return result(Elementwise(normalize), node)
