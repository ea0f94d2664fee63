"""What a unit is judged by: its mean loss as the simulation has it now."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mrecg_onnx.learning.losses import reconstruction_loss
from mrecg_onnx.learning.prefix import UnitData
from mrecg_onnx.machine import ALONE, Workers
from mrecg_onnx.network import Simulation, Step
from mrecg_onnx.planning import UnitPlan

__all__ = ["evaluate_unit"]


def evaluate_unit(
    unit: UnitPlan,
    steps: list[Step],
    simulation: Simulation,
    data: UnitData,
    index: Tensor,
    *,
    quantize_activations: bool,
    batch_size: int,
    knees: Mapping[str, float | None],
    weights: Mapping[str, float],
    power: float = 2.0,
    workers: Workers = ALONE,
) -> float:
    """Mean reconstruction loss of the unit as ``simulation`` has it now, over the samples ``index``."""
    total, count = 0.0, 0
    for part in torch.split(index, batch_size):
        batch = {name: store.gather(part) for name, store in data.quantized.items()}
        outputs = simulation.run(
            batch, steps, keep=unit.outputs, quantize_activations=quantize_activations, deferred=data.deferred
        )
        gradients = {n: store.gather(part) for n, store in data.gradients.items()}
        losses = [
            weights[n] * reconstruction_loss(outputs[n], store.gather(part), knees[n], power, gradients.get(n))
            for n, store in data.targets.items()
        ]
        total += len(part) * float(torch.stack(losses).sum())
        count += len(part)
    total, samples = workers.total([total, count])
    return total / max(1.0, samples)
