"""The loop that learns a unit: its pass with soft weights on a batch, and Adam on its variables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mrecg_onnx.learning.losses import reconstruction_loss
from mrecg_onnx.learning.masks import Masks
from mrecg_onnx.learning.prefix import UnitData
from mrecg_onnx.learning.trainable import Trainable
from mrecg_onnx.learning.windows import Window, WindowPlan
from mrecg_onnx.machine import Batch, Iterations, Workers
from mrecg_onnx.network import Simulation, Step, bias_scale
from mrecg_onnx.planning import UnitPlan
from mrecg_onnx.quantizers import BetaSchedule, Grid, fake_quantize, learnable_fake_quantize

__all__ = ["Group", "Loop", "learn"]

#: Devices on which torch's Adam takes one pass over a variable.
FUSED = frozenset({"cpu", "cuda"})
#: Iterations between reports: asking a GPU for the loss makes it wait.
REPORTED, REPORTED_CUDA = 10, 100


@dataclass
class Loop:
    """The pass of a unit in training and its loss.

    Attributes:
        unit: what is learned.
        steps: its part of the network.
        simulation: nearest-rounded weights and searched ranges, of all that is not learned here.
        data: inputs and targets.
        trainable: what is learned.
        masks: drop masks.
        quantize_activations: False trains with float activations.
        knees: knee of the loss at each output, None for squares.
        weights: weight of each output's loss.
        rounding_weight: weight of the rounding regularizer.
        power: exponent of the error.
        beta: exponent of the regularizer in this iteration, None while there is none.
        window: part of the maps this iteration sees, None for whole maps.
        recorded: iterations are recorded on a GPU, they read all that changes from tensors.
        fixed: dequantized weights of layers that are not learned.
    """

    unit: UnitPlan
    steps: list[Step]
    simulation: Simulation
    data: UnitData
    trainable: Trainable
    masks: Masks
    quantize_activations: bool
    knees: dict[str, float | None]
    weights: dict[str, float]
    rounding_weight: float = 0.0
    power: float = 2.0
    beta: float | Tensor | None = None
    window: Window | None = None
    recorded: bool = False
    fixed: dict[str, Tensor] = field(default_factory=dict)

    def weight(self, step: Step) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a layer: soft where its rounding is learned, quantized or float elsewhere."""
        rounding = self.trainable.rounding.get(step.node)
        module = step.module
        if rounding is None and step.node in self.simulation.weights:
            quantized = self.simulation.weights[step.node]
            if step.node not in self.fixed:
                self.fixed[step.node] = quantized.dequantize()
            return self.fixed[step.node], self._integer_bias(step, self.simulation.bias(step), quantized.grid)
        if rounding is None:
            return module.weight, module.bias  # type: ignore[return-value]
        grid = self.trainable.weight_grid(step.node)
        weight = rounding.soft(self.beta, self.rounding_weight) * self.trainable.gain(step.node)
        return weight, self._integer_bias(step, self.trainable.current_bias(step.node), grid)

    def _integer_bias(self, step: Step, bias: Tensor | None, weight: Grid) -> Tensor | None:
        """``bias`` rounded to the int32 grid of the file, straight-through.

        At 4 bits its steps s_x * s_w are as wide as those of the layer's output where a channel's weights are large
        (1.3 in MobileNetV2's first depthwise layer): what is learned has to know.
        """
        if bias is None or not self.quantize_activations:
            return bias
        layer = self.simulation.layer(step.node)
        name = self.simulation.quantizer_of(layer.input)
        if name is None:
            return bias
        learned = name in self.trainable.start
        scale = self.trainable.scale(name) if learned else self.simulation.activations[name].scale
        unit = bias_scale(scale, weight, layer).detach()
        return bias + (torch.round(bias / unit) * unit - bias).detach()

    def activation(self, name: str, value: Tensor) -> Tensor:
        """``value`` fake-quantized with its learned scale, but for what is dropped."""
        if not self.quantize_activations or name not in self.trainable.start:
            return value
        return self._quantized(name, value, self.masks.draw(value))

    def _quantized(self, name: str, value: Tensor, keep: Tensor | None) -> Tensor:
        grid = self.trainable.start[name]
        zero_point = self.trainable.zero_point[name]
        return learnable_fake_quantize(value, self.trainable.scale(name), zero_point, grid.qmax, keep)

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
                x = self._quantized(name, x, None) if learned else fake_quantize(x, self.simulation.activations[name])
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


@dataclass(frozen=True)
class Group:
    """Variables with one rate of Adam; ``decays``: it falls to 0 along a cosine."""

    params: list[Tensor]
    rate: float
    decays: bool


class _Number:
    """A number that changes from one iteration to the next: what is recorded on a GPU reads it from there."""

    def __init__(self, device: torch.device, *, recorded: bool) -> None:
        self.tensor = torch.zeros((), device=device) if recorded else None

    def set(self, value: float) -> float | Tensor:
        """``value``, as iterations read it."""
        return value if self.tensor is None else self.tensor.fill_(value)


def _records(device: torch.device, workers: Workers) -> bool:
    """Iterations are recorded: on a GPU, where no other process takes part in them."""
    return device.type == "cuda" and workers.size == 1


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
) -> None:
    """Adam on ``groups`` for ``iters`` batches of the training samples."""
    device = loop.simulation.network.device
    loop.recorded = record = _records(device, workers)
    rates, beta = [_Number(device, recorded=record) for _ in groups], _Number(device, recorded=record)
    optimizer = torch.optim.Adam(
        [{"params": g.params, "lr": number.set(g.rate)} for g, number in zip(groups, rates, strict=True)],
        fused=device.type in FUSED,
        capturable=record,
    )

    def iterate(batch: Batch) -> Tensor:
        loss = loop.loss(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        workers.mean_([t.grad for group in groups for t in group.params if t.grad is not None])
        optimizer.step()
        return loss.detach()

    masks, training = loop.masks, loop.data.training
    iterations = Iterations(iterate, device, record=record, generators=lambda: masks.local, restart=masks.restart)
    every = REPORTED_CUDA if device.type == "cuda" else REPORTED
    with iterations.stream():
        for step in range(iters):
            index = training[torch.randint(0, len(training), (batch_size,), generator=generator)]
            if windows is not None:
                loop.window = windows.draw(generator)
            for group, entry, number in zip(groups, optimizer.param_groups, rates, strict=True):
                if group.decays:
                    entry["lr"] = number.set(group.rate * 0.5 * (1 + math.cos(math.pi * step / iters)))
            now = beta_at(step)
            loop.beta = now if now is None else beta.set(now)
            loss = iterations(now is None, loop.batch(index))
            if report is not None and (step % every == every - 1 or step == iters - 1):
                report(step + 1, float(loss))
        optimizer.zero_grad(set_to_none=True)
