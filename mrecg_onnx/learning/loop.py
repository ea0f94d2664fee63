"""The loop that learns a unit: its pass with soft weights on a batch, and Adam on its variables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mrecg_onnx.learning.descent import Descent, Group, Number
from mrecg_onnx.learning.losses import reconstruction_loss
from mrecg_onnx.learning.prefix import UnitData
from mrecg_onnx.learning.training_pass import TrainingPass
from mrecg_onnx.learning.windows import Window, WindowPlan
from mrecg_onnx.machine import Batch, Iterations, Workers
from mrecg_onnx.network import Step
from mrecg_onnx.planning import UnitPlan
from mrecg_onnx.quantizers import BetaSchedule, fake_quantize

__all__ = ["Loop", "learn"]

#: Iterations between reports: asking a GPU for the loss makes it wait.
REPORTED, REPORTED_CUDA = 10, 100


@dataclass(kw_only=True)
class Loop(TrainingPass):
    """The pass of a unit in training and its loss.

    Attributes:
        unit: what is learned.
        steps: its part of the network.
        data: inputs and targets.
        knees: knee of the loss at each output, None for squares.
        weights: weight of each output's loss.
        power: exponent of the error.
        window: part of the maps this iteration sees, None for whole maps.
        recorded: iterations are recorded on a GPU, they read all that changes from tensors.
    """

    unit: UnitPlan
    steps: list[Step]
    data: UnitData
    knees: dict[str, float | None]
    weights: dict[str, float]
    power: float = 2.0
    window: Window | None = None
    recorded: bool = False

    def batch(self, index: Tensor) -> Batch:
        """What an iteration reads of the samples ``index``, in the current window."""
        read, aim = (None, None) if self.window is None else (self.window.read, self.window.aim)
        data, mixed = self.data, self.data.floating if self.masks.active else {}
        places = {store.place: index.to(store.place, non_blocking=True) for store in data.targets.values()}
        found: Batch = {}
        for part, stores, region in (
            ("quantized", data.quantized, read),
            ("floating", mixed, read),
            ("target", data.targets, aim),
            ("gradient", data.gradients, aim),
        ):
            found |= {
                (part, name): store.gather(places.get(store.place, index), region) for name, store in stores.items()
            }
        if self.window is not None and self.recorded:  # what is recorded cannot read numbers from Python
            for part, (first, stop) in zip(("rows", "columns"), self.window.use, strict=True):
                found["use", part] = torch.arange(first, stop, device=self.simulation.network.device)
        return found

    def _used(self, output: Tensor, batch: Batch) -> Tensor:
        """The part of an output that counts."""
        if ("use", "rows") in batch:
            return output.index_select(2, batch["use", "rows"]).index_select(3, batch["use", "columns"])
        if self.window is not None:
            (top, bottom), (left, right) = self.window.use
            return output[:, :, top:bottom, left:right]
        return output

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """The unit's inputs, quantized and float ones mixed element by element."""
        result = {}
        for name in self.data.quantized:
            x = batch["quantized", name]
            if name in self.data.deferred and self.quantize_activations:
                learned = name in self.trainable.start  # the drop of an input is the one below
                x = self.quantized(name, x, None) if learned else fake_quantize(x, self.simulation.activations[name])
            mask = self.masks.draw(x) if x.is_floating_point() else None
            result[name] = x if mask is None else torch.lerp(batch["floating", name], x, mask)
        return result

    def loss(self, batch: Batch) -> Tensor:
        """Reconstruction loss on a batch of the current window."""
        outputs = self.simulation.network.run(
            self.inputs(batch), self.steps, keep=self.unit.outputs, activation=self.activation, weight=self.weight
        )
        total = torch.zeros((), device=self.simulation.network.device)
        for name in self.data.targets:
            output = self._used(outputs[name], batch)
            gradient = batch.get(("gradient", name))
            loss = reconstruction_loss(output, batch["target", name], self.knees[name], self.power, gradient)
            total = total + self.weights[name] * loss
        return total


def learn(
    loop: Loop,
    groups: Sequence[Group],
    windows: WindowPlan | None,
    iters: int,
    batch_size: int,
    generator: torch.Generator,
    beta_at: BetaSchedule,
    workers: Workers,
    report: Callable[[int, float], None] | None,
    parts: int = 1,
) -> None:
    """Adam on ``groups`` for ``iters`` batches of the training samples, each in ``parts``."""
    device = loop.simulation.network.device
    descent = Descent(groups, device, workers, record=parts == 1)
    loop.recorded = record = descent.recorded
    size = -(-batch_size // parts)
    if parts > 1:  # each adds the regularizer's gradient
        loop.rounding_weight /= -(-batch_size // size)
    beta = Number(device, recorded=record)

    def iterate(batch: Batch) -> Tensor:
        return descent.step([lambda: loop.loss(batch)])

    def iterate_in_parts(index: Tensor) -> Tensor:
        pieces = torch.split(index, size)
        shares = [(piece, len(piece) / len(index)) for piece in pieces]
        return descent.step([lambda p=p, share=share: share * loop.loss(loop.batch(p)) for p, share in shares])  # type: ignore[misc]

    masks, training = loop.masks, loop.data.training
    iterations = Iterations(iterate, device, record=record, generators=lambda: masks.local, restart=masks.restart)
    every = REPORTED_CUDA if device.type == "cuda" else REPORTED
    with iterations.stream():
        for step in range(iters):
            index = training[torch.randint(0, len(training), (batch_size,), generator=generator)]
            if windows is not None:
                loop.window = windows.draw(generator)
            descent.schedule(step / iters)
            now = beta_at(step)
            loop.beta = now if now is None else beta.set(now)
            loss = iterations(now is None, loop.batch(index)) if parts == 1 else iterate_in_parts(index)
            if report is not None and (step % every == every - 1 or step == iters - 1):
                report(step + 1, float(loss))
        descent.forget()
    if parts > 1:
        loop.rounding_weight *= -(-batch_size // size)
