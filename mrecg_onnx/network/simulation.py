"""The quantized network in torch: what the exported file computes, value by value."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mrecg_onnx.network.steps import ActivationHook, Network, Step, WeightHook
from mrecg_onnx.planning import ActivationPlan, LayerPlan, Plan, UnitPlan
from mrecg_onnx.quantizers import LEAST_SCALE, Grid, fake_quantize, fake_quantize_weight, whole_reciprocal

__all__ = ["INT32_MAX", "QuantizedWeight", "Simulation", "State", "bias_scale"]


#: Largest code of an int32 bias: the other half of the type is for the products that it is added to, and for what is learned.
BIAS_MAX = 1 << 30
#: What int32 holds: a bias beyond it stays in float.
INT32_MAX = (1 << 31) - 1
#: Largest scale that a weight is given for its bias: 2^7 of it are a finite float32.
LARGEST_SCALE = 2.0**120


@dataclass(frozen=True)
class QuantizedWeight:
    """Codes of a weight (float tensor of integers, the weight's shape) and the grid they are on."""

    codes: Tensor
    grid: Grid

    def dequantize(self) -> Tensor:
        """Float weight, the weight's shape."""
        return fake_quantize_weight(self.codes, self.grid)

    def coarser(self, least: Tensor) -> QuantizedWeight:
        """The weight with scales not below ``least`` (of the scale's shape); codes are rounded again where a scale grows."""
        scale = torch.maximum(self.grid.scale, least)
        zero = self.grid.shaped(self.grid.zero_point, self.codes.dim())
        steps = (self.codes - zero) * self.grid.shaped(self.grid.scale / scale, self.codes.dim())
        return QuantizedWeight(torch.round(steps) + zero, replace(self.grid, scale=scale))


def bias_scale(input_scale: Tensor, weight: Grid, layer: LayerPlan) -> Tensor:
    """Scale of a layer's int32 bias, s_x * s_w per output channel: float32 of shape (C,) or ()."""
    scale = input_scale.to(torch.float32) * weight.scale.to(torch.float32)
    return scale.repeat(layer.bias_copies) if layer.bias_copies > 1 else scale


@dataclass
class State:
    """What was learned: grids of activations by quantizer, weights and biases by layer."""

    activations: dict[str, Grid] = field(default_factory=dict)
    weights: dict[str, QuantizedWeight] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Simulation:
    """Grids and codes of a network under calibration; it grows as units are finished.

    Attributes:
        network: the float network.
        plan: who is quantized.
        activations: grid of each activation quantizer by its name.
        weights: quantized weights by layer name.
        biases: learned float biases by layer name; a layer without an entry has the network's.
    """

    network: Network
    plan: Plan
    activations: dict[str, Grid] = field(default_factory=dict)
    weights: dict[str, QuantizedWeight] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._layer: dict[str, LayerPlan] = {layer.name: layer for layer in self.plan.layers}
        self._quantizer_of: dict[str, str] = {m: a.name for a in self.plan.activations for m in a.members}
        self.quantizers: dict[str, ActivationPlan] = {a.name: a for a in self.plan.activations}

    def state(self, unit: UnitPlan | None = None) -> State:
        """What was learned so far, of everything or of ``unit``."""
        if unit is None:
            return State(dict(self.activations), dict(self.weights), dict(self.biases))
        # A unit may have learned the scales of what it reads, too.
        made = {*unit.inputs, *(name for node in unit.nodes for name in self.network.step(node).outputs)}
        return State(
            {n: g for n, g in self.activations.items() if n in made},
            {n: w for n, w in self.weights.items() if n in unit.layers},
            {n: b for n, b in self.biases.items() if n in unit.layers},
        )

    def restore(self, state: State) -> None:
        """Make all of it what ``state`` has, which :meth:`state` gave of everything."""
        self.activations, self.weights, self.biases = dict(state.activations), dict(state.weights), dict(state.biases)

    def adopt(self, state: State) -> None:
        """Put ``state`` over what is there."""
        self.activations.update(state.activations)
        self.weights.update(state.weights)
        self.biases.update(state.biases)

    def settle(self) -> None:
        """Give the outputs of Softmax scales that ONNX Runtime's integer kernel for it can count in (export, rule 8)."""
        for step in self.network.steps:
            name = step.outputs[0]
            if step.op == "Softmax" and name in self.activations:
                self.activations[name] = whole_reciprocal(self.activations[name])

    def fit_biases(self) -> None:
        """Let the scale of a weight grow where the layer's bias would not fit int32 at s_x * s_w (docs/method.md 6).

        That happens where a channel's weights are next to nothing beside its bias. The weights lose at most half a step of the
        new grid, which is 2^-31 of the bias for each step of the input. A product below the normal float32 numbers grows to
        them, with bias or without. To be called whenever scales or biases have moved.
        """
        for layer in self.plan.quantized_layers:
            grid, quantized = self.input_grid(layer), self.weights.get(layer.name)
            if grid is None or quantized is None:
                continue
            scale = quantized.grid.scale
            least = (LEAST_SCALE / grid.scale).expand_as(scale)
            bias = self.bias(self.network.step(layer.name))
            if bias is not None:
                size = bias.detach().abs().reshape(-1)
                if scale.numel() == 1:
                    size = size.amax()
                elif size.numel() == scale.numel() * layer.bias_copies:
                    size = size.view(layer.bias_copies, -1).amax(0)
                if size.numel() == scale.numel():  # else it is not int32 in the file
                    fitting = (size / (grid.scale * BIAS_MAX)).view_as(scale)
                    # Where no scale is large enough the bias stays in float, and the weights what they are.
                    least = torch.maximum(least, torch.where(fitting < LARGEST_SCALE, fitting, 0.0))
            if bool((least > scale).any()):
                self.weights[layer.name] = quantized.coarser(least)

    def layer(self, name: str) -> LayerPlan:
        """The weighted layer called ``name``; KeyError without."""
        return self._layer[name]

    def quantizer_of(self, tensor: str) -> str | None:
        """Name of the quantizer whose grid ``tensor`` is on, None if it is float."""
        name = self._quantizer_of.get(tensor)
        return name if name in self.activations else None

    @property
    def float_outputs(self) -> set[str]:
        """Outputs of the network that leave it as they are in front of any quantizer."""
        behind = {n for plan in self.plan.activations if plan.name in self.activations for n in plan.outputs}
        return set(self.network.outputs) - behind

    def input_grid(self, layer: LayerPlan) -> Grid | None:
        """Grid of the tensor a layer reads, None if that is float."""
        name = self.quantizer_of(layer.input)
        return self.activations[name] if name is not None else None

    def activation_hook(self, only: Collection[str] | None = None) -> ActivationHook:
        """Hook that fake-quantizes at every quantizer (or those in ``only``)."""

        def hook(name: str, value: Tensor) -> Tensor:
            grid = self.activations.get(name)
            if grid is None or (only is not None and name not in only):
                return value
            return fake_quantize(value, grid)

        return hook

    def weight_hook(self, only: Collection[str] | None = None, *, integer_bias: bool = True) -> WeightHook:
        """Hook that gives quantized weights and, with ``integer_bias``, biases rounded as the int32 ones of the file."""
        cache: dict[str, tuple[Tensor, Tensor | None]] = {}

        def hook(step: Step) -> tuple[Tensor, Tensor | None]:
            module = step.module
            if step.node not in cache:
                quantized = self.weights.get(step.node)
                if quantized is None or (only is not None and step.node not in only):
                    cache[step.node] = (module.weight, module.bias)  # type: ignore[assignment]
                else:
                    cache[step.node] = (quantized.dequantize(), self._bias(step, quantized, integer=integer_bias))
            return cache[step.node]

        return hook

    def bias(self, step: Step) -> Tensor | None:
        """Float bias of a layer: the learned one, else the network's own."""
        own: Tensor | None = step.module.bias  # type: ignore[assignment]
        return self.biases.get(step.node, own)

    def _bias(self, step: Step, quantized: QuantizedWeight, *, integer: bool) -> Tensor | None:
        bias = self.bias(step)
        layer = self._layer[step.node]
        grid = self.input_grid(layer)
        if bias is None or grid is None or not integer:
            return bias
        scale = bias_scale(grid.scale, quantized.grid, layer)
        codes = torch.round(bias.double() / scale.double())
        if bool((codes.abs() > INT32_MAX).any()):
            return bias  # float in the file as well
        return codes.float() * scale

    def run(
        self,
        values: Mapping[str, Tensor],
        steps: Sequence[Step] | None = None,
        *,
        keep: Iterable[str] | None = None,
        quantize_activations: bool = True,
        deferred: Collection[str] = (),
        weight: WeightHook | None = None,
    ) -> dict[str, Tensor]:
        """Run the quantized network (or some steps of it) without gradients; see :meth:`Network.run`.

        Without ``steps`` and ``keep`` it is the file that is run: its outputs are quantized where the plan says so.
        Tensors in ``deferred`` are quantized where they enter ``steps``, not where they are made. ``weight`` is a
        :meth:`weight_hook` that serves several runs.
        """
        hook = self.activation_hook() if quantize_activations else None
        values = dict(values)
        if deferred and hook is not None:
            values = {name: hook(name, value) if name in deferred else value for name, value in values.items()}
            hook = self.activation_hook(self.activations.keys() - set(deferred))
        outputs: dict[str, Tensor] = {}
        if steps is None and hook is not None:
            values = {name: hook(name, value) for name, value in values.items()}
        if steps is None and keep is None and hook is not None:
            hook = _noting(hook, self.float_outputs, outputs)
        with torch.no_grad():
            found = self.network.run(values, steps, keep=keep, activation=hook, weight=weight or self.weight_hook())
        # Hooks see whole batches; what comes of images that were put in to fill one is cut off behind them.
        return found | {name: x[: len(found[name])] if x.dim() else x for name, x in outputs.items()}


def _noting(hook: ActivationHook, names: Collection[str], values: dict[str, Tensor]) -> ActivationHook:
    """``hook``, writing the values of ``names`` into ``values`` as they are before it."""

    def noting(name: str, value: Tensor) -> Tensor:
        if name in names:
            values[name] = value
        return hook(name, value)

    return noting
