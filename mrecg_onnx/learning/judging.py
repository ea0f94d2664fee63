"""What a unit is judged by, its mean loss on held-out samples, and the choice: what was learned, or rounding to nearest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from mrecg_onnx.learning.losses import reconstruction_loss
from mrecg_onnx.learning.prefix import UnitData
from mrecg_onnx.machine import ALONE, Workers
from mrecg_onnx.network import Simulation, Step
from mrecg_onnx.planning import UnitPlan

__all__ = ["Judge", "evaluate_unit"]


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


@dataclass
class Judge:
    """Keeps of a unit what is better; made before anything is learned, when ``simulation`` holds rounding to nearest.

    Attributes:
        unit: what is learned.
        steps: its part of the network.
        simulation: holds what is judged.
        data: inputs and targets; held-out samples judge where there are any, else those that are learned from.
        batch_size: samples run at a time.
        knees: knee of the loss at each output (:func:`mrecg_onnx.learning.losses.reconstruction_loss`).
        weights: weight of each output's loss.
        quantize_activations: False judges with float activations.
        power: exponent of the error.
        workers: processes with other samples.
        nearest: loss of rounding to nearest.
    """

    unit: UnitPlan
    steps: list[Step]
    simulation: Simulation
    data: UnitData
    batch_size: int
    knees: Mapping[str, float | None]
    weights: Mapping[str, float]
    _: KW_ONLY
    quantize_activations: bool
    power: float = 2.0
    workers: Workers = ALONE

    def __post_init__(self) -> None:
        self._before = self._held = self.simulation.state()
        self.best: float | None = None
        self.nearest = self._loss()

    def _loss(self) -> float:
        return evaluate_unit(
            self.unit,
            self.steps,
            self.simulation,
            self.data,
            self.data.held_out if len(self.data.held_out) else self.data.training,
            quantize_activations=self.quantize_activations,
            batch_size=self.batch_size,
            knees=self.knees,
            weights=self.weights,
            power=self.power,
            workers=self.workers,
        )

    def offer(self) -> float:
        """Loss of what ``simulation`` holds now; it is kept in mind where it is the least so far."""
        found = self._loss()
        if self.best is None or found < self.best:
            self.best, self._held = found, self.simulation.state()
        return found

    def choose(self) -> tuple[float, str]:
        """Least loss that was offered, and "learned"; "nearest" where that is no worse: then it is put back.

        Where nothing was, what ``simulation`` holds now is.
        """
        best = self.offer() if self.best is None else self.best
        if best < self.nearest:
            self.simulation.adopt(self._held)
            return best, "learned"
        for name in self.simulation.biases.keys() - self._before.biases.keys():
            del self.simulation.biases[name]
        self.simulation.adopt(self._before)
        return best, "nearest"
