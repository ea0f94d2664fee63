"""Steps of the network in training: what their weights, biases and activations are while they are learned."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mrecg_onnx.learning.masks import Masks
from mrecg_onnx.learning.trainable import Trainable
from mrecg_onnx.network import Simulation, Step, bias_scale
from mrecg_onnx.quantizers import Grid, learnable_fake_quantize

__all__ = ["TrainingPass"]


@dataclass(kw_only=True)
class TrainingPass:
    """Hooks for :meth:`mrecg_onnx.network.Network.run`.

    Attributes:
        simulation: weights and ranges of all that is not learned here.
        trainable: what is learned.
        masks: drop masks.
        quantize_activations: False trains with float activations.
        rounding_weight: weight of the rounding regularizer.
        beta: exponent of the regularizer in this iteration, None while there is none.
        fixed: dequantized weights of layers that are not learned.
    """

    simulation: Simulation
    trainable: Trainable
    masks: Masks
    quantize_activations: bool = True
    rounding_weight: float = 0.0
    beta: float | Tensor | None = None
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
        return self.quantized(name, value, self.masks.draw(value))

    def quantized(self, name: str, value: Tensor, keep: Tensor | None) -> Tensor:
        """``value`` fake-quantized with its learned scale where ``keep`` is 1 (None: everywhere)."""
        grid = self.trainable.start[name]
        zero_point = self.trainable.zero_point[name]
        return learnable_fake_quantize(value, self.trainable.scale(name), zero_point, grid.qmax, keep)
