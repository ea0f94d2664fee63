"""The variables of a unit: roundings of its weights, its scales and its biases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mrecg_onnx.network import QuantizedWeight, Simulation
from mrecg_onnx.planning import UnitPlan
from mrecg_onnx.quantizers import ROUNDINGS, Grid, LearnedRounding

__all__ = ["Trainable"]


class Trainable:
    """Everything a unit learns: rounding variables and bias shifts by layer, log-ratios of scales by quantizer.

    ``rounding`` is a row of :data:`mrecg_onnx.quantizers.rounding.ROUNDINGS`, or what makes the variables of a float weight and
    its codes; None leaves weights and biases as they are.
    """

    def __init__(
        self,
        unit: UnitPlan,
        simulation: Simulation,
        made: Sequence[str],
        *,
        learn_scales: bool,
        learn_weight_scales: bool,
        learn_bias: bool,
        rounding: str | Callable[[Tensor, QuantizedWeight], LearnedRounding] | None = "adaround",
    ) -> None:
        self.rounding: dict[str, LearnedRounding] = {}
        self.bias: dict[str, Tensor] = {}
        self.spread: dict[str, Tensor] = {}
        self.shift: dict[str, Tensor] = {}
        self.log_gain: dict[str, Tensor] = {}
        for name in unit.layers:
            module = simulation.network.step(name).module
            if name in simulation.weights and rounding is not None:
                weight: Tensor = module.weight.detach()  # type: ignore[assignment, operator]
                quantized = simulation.weights[name]
                self.rounding[name] = (
                    ROUNDINGS[rounding](weight, quantized.grid)
                    if isinstance(rounding, str)
                    else rounding(weight, quantized)
                )
                scale = quantized.grid.scale
                self.log_gain[name] = torch.zeros_like(scale, requires_grad=learn_weight_scales)
                bias: Tensor | None = simulation.biases.get(name, module.bias)  # type: ignore[arg-type]
                if bias is not None:
                    self.bias[name] = bias.detach()
                    self.spread[name] = self.bias[name].abs().mean().clamp(min=1e-6)
                    self.shift[name] = torch.zeros_like(self.bias[name], requires_grad=learn_bias)
        self.start = {name: simulation.activations[name] for name in made if name in simulation.activations}
        self.zero_point = {name: float(grid.zero_point) for name, grid in self.start.items()}
        device = simulation.network.device
        self.log_ratio = {n: torch.zeros((), device=device, requires_grad=learn_scales) for n in self.start}
        for name in reversed(list(self.start)):
            for copy in simulation.quantizers[name].copies if name in simulation.quantizers else ():
                if copy in self.start and _same(self.start[copy], self.start[name]):
                    self.log_ratio[copy] = self.log_ratio[name]  # one grid stays one

    def scale(self, name: str) -> Tensor:
        """Current scale of a quantizer: a ratio learned in log space stays positive and makes its rate relative."""
        return self.start[name].scale * torch.exp(self.log_ratio[name])

    def grids(self) -> dict[str, Grid]:
        """Learned activation grids."""
        return {n: replace(g, scale=self.scale(n).detach()) for n, g in self.start.items()}

    def biases(self) -> dict[str, Tensor]:
        """Learned biases."""
        return {
            n: (b + self.shift[n] * self.spread[n]).detach()
            for n, b in self.bias.items()
            if self.shift[n].requires_grad
        }

    def current_bias(self, name: str) -> Tensor | None:
        """Differentiable bias: the shift is counted in units of the bias's own spread, so one rate suits all layers."""
        return self.bias[name] + self.shift[name] * self.spread[name] if name in self.bias else None

    def codes(self) -> dict[str, QuantizedWeight]:
        """Hard-rounded weights."""
        return {name: QuantizedWeight(r.hard_codes(), self.weight_grid(name)) for name, r in self.rounding.items()}

    def gain(self, name: str) -> Tensor:
        """Differentiable ratio of a layer's weight scale to the searched one, shaped to multiply the weight."""
        rounding = self.rounding[name]
        return rounding.grid.shaped(torch.exp(self.log_gain[name]), rounding.variables[0].dim())

    def weight_grid(self, name: str) -> Grid:
        """Learned weight grid."""
        grid = self.rounding[name].grid
        return replace(grid, scale=grid.scale * torch.exp(self.log_gain[name].detach()))


def _same(a: Grid, b: Grid) -> bool:
    """True for grids of the same codes: what copies values keeps them, also where an earlier phase learned each by name."""
    return a is b or (
        a.bits == b.bits and bool(torch.equal(a.scale, b.scale)) and bool(torch.equal(a.zero_point, b.zero_point))
    )
