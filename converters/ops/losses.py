"""Losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrecg_onnx.converters.ops.common import OnnxGraph, OnnxNode, OperationConverterResult, n_outputs, result
from mrecg_onnx.converters.registry import converter

__all__ = ["OnnxLoss"]

# No class: labels that nobody asked to ignore are not ignored.
_NONE = -(1 << 40)


class OnnxLoss(nn.Module):
    """ONNX NegativeLogLikelihoodLoss and SoftmaxCrossEntropyLoss: scores (N, C, ...), labels (N, ...), weights (C).

    Attributes:
        softmax: The scores are no logarithms of probabilities yet.
        reduction: none, mean or sum.
        ignored: The label whose places do not count; None for none.
        with_log_probabilities: Return those too.
    """

    def __init__(self, softmax: bool, reduction: str, ignored: int | None, with_log_probabilities: bool) -> None:
        super().__init__()
        self.softmax, self.reduction, self.ignored = softmax, reduction, ignored
        self.with_log_probabilities = with_log_probabilities

    def forward(self, scores: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Compute the loss."""
        logs = torch.log_softmax(scores, 1) if self.softmax else scores
        ignored = _NONE if self.ignored is None else self.ignored
        labels = labels.to(torch.int64)
        loss = F.nll_loss(logs, labels, weight, ignore_index=ignored, reduction=self.reduction)
        return (loss, logs) if self.with_log_probabilities else loss


@converter("NegativeLogLikelihoodLoss", 12)
@converter("SoftmaxCrossEntropyLoss", 12)
def _loss(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    get = node.attributes.get
    softmax = node.operation_type == "SoftmaxCrossEntropyLoss"
    return result(OnnxLoss(softmax, get("reduction", "mean"), get("ignore_index"), n_outputs(node) > 1), node)
