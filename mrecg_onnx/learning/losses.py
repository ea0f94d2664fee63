"""The reconstruction loss: how far a unit's output is from the float one, over one output and over several."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mrecg_onnx.machine import Store, Workers
from mrecg_onnx.measures import OutputSums
from mrecg_onnx.quantizers import inner

__all__ = ["output_knees", "output_weights", "reconstruction_loss"]


def reconstruction_loss(
    output: Tensor, target: Tensor, knee: float | None = None, power: float = 2.0, gradient: Tensor | None = None
) -> Tensor:
    """Error of a unit's output, summed over channels (dim 1), mean over batch and space; shape ().

    Args:
        output: the quantized unit's output.
        target: the float one, same shape.
        knee: None for the squared error (docs/method.md 2); else twice the Huber loss: e^2 for errors below d = ``knee`` and
            2 d |e| - d^2 above. Some networks carry values of sixty standard deviations that hardly matter to their
            output; squared, they are all that a unit learns.
        power: exponent of the error where there is no knee; BRECQ learns activation scales with 2.4.
        gradient: magnitude g of the task loss's gradient, the output's shape: squared errors are weighted by (g + 1)^2, the
            diagonal Fisher information with the damping of BRECQ's code.
    """
    if gradient is not None:
        total = ((output - target) * (gradient + 1.0)).square().sum()
    elif power != 2.0:
        total = (output - target).abs().pow(power).sum()
    else:
        total = _RobustError.apply(output, target, knee)  # type: ignore[no-untyped-call]
    return total / (output.numel() / (output.shape[1] if output.dim() > 1 else 1))


class _RobustError(torch.autograd.Function):
    """Sum of squares, or twice Huber's loss: with c = clip(e, -d, d) that is c (2 e - c), and its gradient is 2 c.

    Gradients keep the layout of the output; those of torch's losses are contiguous, and every operation in front of them copies
    (batch of 2 MB, one thread: 0.6 ms against 0.25, and a quarter of that for each copy saved).
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, target: Tensor, knee: float | None) -> Tensor:
        error = output.detach() - target
        clipped = error if knee is None else error.clamp(-knee, knee)
        ctx.save_for_backward(clipped)
        squares = inner(clipped, clipped)
        return squares if knee is None else 2.0 * inner(clipped, error) - squares

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (clipped,) = ctx.saved_tensors
        return clipped * (2.0 * grads[0]), None, None


def output_knees(targets: Mapping[str, Store], share: float | None, workers: Workers) -> dict[str, float | None]:
    """Knee of the loss at each output: ``share`` of the float output's standard deviation, None for squares."""
    if share is None:
        return dict.fromkeys(targets)
    found = {}
    for name, store in targets.items():
        count, total, squares = workers.total(store.moments)
        found[name] = share * max(math.sqrt(max(0.0, squares / count - (total / count) ** 2)), 1e-6)
    return found  # type: ignore[return-value]


def output_weights(targets: Mapping[str, Store], power: float, workers: Workers) -> dict[str, float]:
    """Weight of each output's loss in a unit: 1 where it has one; of several none outweighs another by its unit of measure.

    The loss of an output is divided by the ``power`` of its deviation about its mean, and multiplied by that of the outputs'
    geometric mean: where they are alike nothing changes.
    """
    found = {}
    for name, store in targets.items():
        count, total, squares = workers.total(store.moments)
        found[name] = math.sqrt(OutputSums(count, total, squares).signal or 1.0)
    if len(found) < 2:
        return dict.fromkeys(found, 1.0)
    middle = math.exp(sum(map(math.log, found.values())) / len(found))
    return {name: (middle / spread) ** power for name, spread in found.items()}
