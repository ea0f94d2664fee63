"""Learned rounding in the symbols of AdaRound (Nagel et al. 2020, eq. 21-25).

W~ = s * (clip(floor(W / s) + h(V) + z, n, p) - z),  h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mrecg_onnx.grids import Grid

__all__ = ["GAMMA", "ZETA", "BetaSchedule", "SoftRounding", "h", "regularizer"]

#: Stretch of the sigmoid (AdaRound, eq. 23).
ZETA, GAMMA = 1.1, -0.1


def h(V: Tensor) -> Tensor:
    """Rectified sigmoid, eq. 23: values in [0, 1], V's shape."""
    return torch.clamp(torch.sigmoid(V) * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)


def regularizer(V: Tensor, beta: float) -> Tensor:
    """``sum(1 - |2 h(V) - 1|^beta)``, eq. 24: 0 when every h is 0 or 1; shape ()."""
    return (1.0 - (2.0 * h(V) - 1.0).abs().pow(beta)).sum()


class BetaSchedule:
    """Anneal beta from ``start`` to ``end``, linearly, after a warm-up in which the regularizer is off.

    Source: BRECQ, QDrop and MRECG code (20 to 2, warm-up 0.2 of the iterations).
    """

    def __init__(self, iters: int, warmup: float = 0.2, start: float = 20.0, end: float = 2.0) -> None:
        self.iters, self.begin, self.start, self.end = iters, warmup * iters, start, end

    def __call__(self, step: int) -> float | None:
        """Beta at ``step`` (0-based), None while the regularizer is off."""
        if step < self.begin:
            return None
        progress = (step - self.begin) / max(1.0, self.iters - 1 - self.begin)
        return self.start + (self.end - self.start) * min(1.0, progress)


class _SoftWeight(torch.autograd.Function):
    """``base + h(V) * span``, its backward adding the regularizer's gradient: one pass over V where autograd makes twenty."""

    @staticmethod
    def forward(ctx: Any, V: Tensor, base: Tensor, span: Tensor, beta: float | None, weight: float) -> Tensor:
        sigmoid = torch.sigmoid(V)
        value = (sigmoid * (ZETA - GAMMA)).add_(GAMMA).clamp_(0.0, 1.0)
        ctx.save_for_backward(sigmoid, value, span)
        ctx.beta, ctx.weight = beta, weight
        return torch.addcmul(base, value, span)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        sigmoid, value, span = ctx.saved_tensors
        grad = grads[0] * span
        if ctx.beta is not None:
            # d(1 - |u|^beta)/dh = -2 beta |u|^(beta-1) sign(u), u = 2 h - 1
            u = value.mul(2.0).sub_(1.0)
            grad.addcmul_(u.abs().pow_(ctx.beta - 1.0), u.sign_(), value=-2.0 * ctx.beta * ctx.weight)
        slope = torch.ops.aten.sigmoid_backward(grad, sigmoid).mul_(ZETA - GAMMA)
        # The rectified ends are flat: sigmoid where h reaches 0 and 1.
        low, high = -GAMMA / (ZETA - GAMMA), (1.0 - GAMMA) / (ZETA - GAMMA)
        return torch.ops.aten.hardtanh_backward(slope, sigmoid, low, high), None, None, None, None


class SoftRounding:
    """Rounding variables of one weight tensor.

    Attributes:
        V: trainable, the weight's shape; h(V) = fraction that is rounded up.
        grid: per-channel grid, fixed.
    """

    def __init__(self, weight: Tensor, grid: Grid) -> None:
        scale, zero = grid.along(weight.dim())
        self.grid = grid
        ratio = weight / scale
        self._floor = torch.floor(ratio)
        # V0 makes the soft value equal to the float weight: h(V0) = W/s - floor(W/s).
        rest = (ratio - self._floor).clamp(1e-4, 1 - 1e-4)
        self.V = torch.log((rest - GAMMA) / (ZETA - rest)).requires_grad_()
        self._zero = zero
        # clip(. + z, n, p) - z, with z taken into the bounds once
        self._lower, self._upper = grid.qmin - zero, grid.qmax - zero
        # clip(floor + h) with 0 <= h <= 1 is a base and, inside the grid, h steps: linear in h, so it need not be clipped again.
        inside = (self._floor >= self._lower) & (self._floor < self._upper)
        self._base = torch.minimum(torch.maximum(self._floor, self._lower), self._upper) * scale
        self._span = inside.to(scale.dtype) * scale

    def soft(self, beta: float | None = None, regularization: float = 0.0) -> Tensor:
        """Differentiable W~, the weight's shape.

        Args:
            beta: exponent of the regularizer, None while it is off.
            regularization: its weight; V's gradient gets that of ``regularization * regularizer(V, beta)`` on top.
        """
        result: Tensor = _SoftWeight.apply(self.V, self._base, self._span, beta, regularization)  # type: ignore[no-untyped-call]
        return result

    def hard_codes(self) -> Tensor:
        """Integer codes after the decision: round up where V >= 0; float tensor in [qmin, qmax]."""
        up = (self.V.detach() >= 0).to(self._floor.dtype)
        return torch.minimum(torch.maximum(self._floor + up, self._lower), self._upper) + self._zero

    def unsettled(self) -> float:
        """Share of variables that are still between 0.05 and 0.95."""
        with torch.no_grad():
            value = h(self.V)
            return float(((value > 0.05) & (value < 0.95)).float().mean())
