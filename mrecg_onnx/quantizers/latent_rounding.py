"""Rounding that goes on from codes that were learned before: weights move freely, from inside the step where they are."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from mrecg_onnx.quantizers.grids import Grid

__all__ = ["LatentRounding"]

#: Beyond the outermost codes a weight goes no farther, in steps: it could not come back before the end.
BEYOND = 0.45


class LatentRounding:
    """Straight-through rounding that starts at given codes.

    A weight starts where the float one is, but no farther from its code than ``reach``: those that learned rounding moved to the
    farther code would else begin on the edge between both, and go back at the first step. Gradients go straight through, outside
    the grid, too, so that what is clipped can come back.

    Attributes:
        latent: trainable, W' / s in steps of the grid, the weight's shape.
        grid: per-channel grid, fixed.
    """

    rate: ClassVar[float] = 1.0
    decays: ClassVar[bool] = True

    def __init__(self, weight: Tensor, codes: Tensor, grid: Grid, reach: float) -> None:
        self.grid = grid
        self._scale, self._zero = grid.along(weight.dim())
        lower, upper = grid.qmin - self._zero, grid.top(weight.dim()) - self._zero
        self._lower, self._upper = (
            torch.as_tensor(x, dtype=weight.dtype, device=weight.device) for x in (lower, upper)
        )
        start = codes - self._zero
        offset = (weight / self._scale - start).clamp(-reach, reach)
        self.latent = self._inside(start + offset, 0.0).requires_grad_()

    def _inside(self, x: Tensor, beyond: float) -> Tensor:
        return torch.minimum(torch.maximum(x, self._lower - beyond), self._upper + beyond)

    @property
    def variables(self) -> tuple[Tensor, ...]:
        """The weights."""
        return (self.latent,)

    def steps(self) -> Tensor:
        """Weights in steps of the grid as they are rounded now, the weight's shape, no gradient."""
        return torch.round(self._inside(self.latent.detach(), 0.0))

    def soft(self, beta: float | Tensor | None = None, regularization: float = 0.0) -> Tensor:  # noqa: ARG002 - nothing to drive
        """Differentiable W~, the weight's shape: the rounded value, as in the file."""
        return (self.latent + (self.steps() - self.latent).detach()) * self._scale

    def hard_codes(self) -> Tensor:
        """Integer codes, float tensor in [qmin, qmax]."""
        return self.steps() + self._zero

    def reopen(self) -> None:
        """Nothing: weights move on from where they are."""

    def unsettled(self) -> float:
        """0: what is learned from is rounded all along."""
        return 0.0

    def confine(self) -> None:
        """Bring weights that went far beyond the grid back to where a step of theirs still counts."""
        with torch.no_grad():
            self.latent.copy_(self._inside(self.latent, BEYOND))

    def hold(self, where: Tensor, steps: Tensor) -> None:
        """Put weights back on ``steps`` (of :meth:`steps`) where the boolean ``where`` says so; both of the weight's shape."""
        with torch.no_grad():
            self.latent.copy_(torch.where(where, steps, self.latent))
