"""How far a network's outputs are from the float ones, seen by its task; needs no labels."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from mrecg_onnx.measures.output_errors import OutputScales, output_sums

__all__ = ["task_loss"]


def task_loss(
    outputs: Mapping[str, Tensor], reference: Mapping[str, Tensor], scales: OutputScales | None = None
) -> Tensor:
    """KL divergence where the network gives class scores and nothing else, else the relative mean squared error.

    KL(softmax(reference) || softmax(outputs)), the mean over samples, in nats. Else every float output's mean squared error over
    its variance, the mean over outputs: scores and boxes in pixels then count alike. Differentiable in ``outputs``, float32,
    shape ().

    Args:
        outputs: the network's outputs by name, or some of them.
        reference: those of the float network, the same names.
        scales: of the whole network's outputs on all images where ``reference`` is only a part; made of it by default.
    """
    if scales is None:
        scales = OutputScales.of(output_sums(reference, reference), reference, {})
    if scales.scores is not None and scales.scores in reference:
        float_logs, logs = (F.log_softmax(x[scales.scores].float().flatten(1), 1) for x in (reference, outputs))
        return F.kl_div(logs, float_logs, reduction="batchmean", log_target=True)
    return scales.error(outputs, reference)
