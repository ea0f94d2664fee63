"""How far a network's outputs are from the float ones, seen by its task; needs no labels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["task_loss"]


def task_loss(outputs: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> Tensor:
    """KL divergence of the first output where that is class scores [N, C] (C > 1), else the relative mean squared error.

    KL(softmax(reference) || softmax(outputs)), the mean over samples, in nats; without class scores the squared error of all
    outputs over the energy of the float ones. Differentiable in ``outputs``, float32, shape ().

    Args:
        outputs: the network's outputs by name.
        reference: those of the float network, the same names; the first one decides about class scores.
    """
    name, scores = next(iter(reference.items()))
    if scores.dim() == 2 and scores.shape[1] > 1:
        float_logs, logs = F.log_softmax(scores.float(), 1), F.log_softmax(outputs[name].float(), 1)
        return F.kl_div(logs, float_logs, reduction="batchmean", log_target=True)
    noise = torch.stack([(outputs[n].float() - r.float()).square().sum() for n, r in reference.items()]).sum()
    power = torch.stack([r.float().square().sum() for r in reference.values()]).sum()
    return noise / power.clamp(min=torch.finfo(torch.float32).tiny)
