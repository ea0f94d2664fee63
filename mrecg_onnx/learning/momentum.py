"""Momentum with steps as long as a variable's gradients are, each against the root mean square of all in its tensor.

Adam gives every element a step of one length, also those whose gradient is noise: among millions of weights that are rounded
straight-through, noise then moves more codes than the loss asks for. Here an element moves as far as its gradient is larger than
its tensor's usual one (layer-wise normalized momentum: You et al. 2017, LARS, eq. 6, with the gradient's own spread in place of
the weight's norm, since weights are counted in steps of their grid).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["LayerMomentum"]

#: Decays of the mean gradient and of the mean square, Adam's.
MEAN, SQUARE = 0.9, 0.999
#: Farthest that an element goes, in rates.
LONGEST = 10.0
#: Least root mean square: a gradient of zeros gives no step.
TINY = 1e-20


class LayerMomentum(torch.optim.Optimizer):
    """Moves every tensor by ``lr * m / r``: ``m`` its mean gradient, ``r`` the root of its mean squared gradient, a number.

    Args:
        params: groups as torch's optimizers take them; ``lr`` may be a tensor, as for iterations that are recorded on a GPU.
    """

    def __init__(self, params: Iterable[dict[str, Any]]) -> None:
        super().__init__(list(params), {"lr": 1e-3})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002 - torch's signature
        """One step along the gradients that are there."""
        for group in self.param_groups:
            for variable in group["params"]:
                if variable.grad is not None:
                    self._move(variable, variable.grad, group["lr"])

    def _move(self, variable: Tensor, grad: Tensor, rate: float | Tensor) -> None:
        state = self.state[variable]
        if not state:
            state["mean"], state["square"] = torch.zeros_like(variable), grad.new_zeros(())
            # What the means have of their full weight: they begin at zero.
            state["mean_known"], state["square_known"] = grad.new_zeros(()), grad.new_zeros(())
        mean, square = state["mean"], state["square"]
        mean.lerp_(grad, 1.0 - MEAN)
        square.lerp_(grad.square().mean(), 1.0 - SQUARE)
        mean_known = state["mean_known"].mul_(MEAN).add_(1.0 - MEAN)
        square_known = state["square_known"].mul_(SQUARE).add_(1.0 - SQUARE)
        spread = (square / square_known).sqrt().clamp(min=TINY)
        variable.sub_((mean / (mean_known * spread)).clamp_(-LONGEST, LONGEST) * rate)
