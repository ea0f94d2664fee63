"""Learned roundings of one weight tensor: a table of classes with one interface, in the papers' symbols.

AdaRound (Nagel et al. 2020, eq. 21-25), up or down:

W~ = s * (clip(floor(W / s) + h(V) + z, n, p) - z),  h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1)

FlexRound (Lee et al. 2023, eq. 2), a learned division: W~ = s * (clip(round(W / (s S2 s3)) + z, n, p) - z).

Straight-through (AdaQuant, Hubara et al. 2021), any distance: W~ = s * (clip(round(W' / s) + z, n, p) - z), W' learned.

The scale s is learned outside, for all of them alike (:mod:`mrecg_onnx.learning.trainable`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from mrecg_onnx.quantizers.grids import Grid

__all__ = [
    "ANNEALS",
    "GAMMA",
    "ROUNDINGS",
    "ZETA",
    "BetaSchedule",
    "FlexRounding",
    "LearnedRounding",
    "SoftRounding",
    "StraightRounding",
    "h",
    "regularizer",
]

#: Stretch of the sigmoid (AdaRound, eq. 23).
ZETA, GAMMA = 1.1, -0.1
#: Largest |V| with which a round begins: h is .08 or .88 there, a leaning that gradients still reach.
REOPENED = 1.5


def h(V: Tensor) -> Tensor:
    """Rectified sigmoid, eq. 23: values in [0, 1], V's shape."""
    return torch.clamp(torch.sigmoid(V) * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)


def regularizer(V: Tensor, beta: float) -> Tensor:
    """``sum(1 - |2 h(V) - 1|^beta)``, eq. 24: 0 when every h is 0 or 1; shape ()."""
    return (1.0 - (2.0 * h(V) - 1.0).abs().pow(beta)).sum()


#: Shapes of the way from the first beta to the last, what is left of it by the share that is done.
ANNEALS: dict[str, Callable[[float], float]] = {
    "linear": lambda share: 1.0 - share,
    "cosine": lambda share: 0.5 * (1.0 + math.cos(math.pi * share)),
}


class BetaSchedule:
    """Anneal beta from ``start`` to ``end``, along a row of :data:`ANNEALS`, after a warm-up without regularizer.

    Source: BRECQ, QDrop and MRECG code (20 to 2, linear, warm-up 0.2 of the iterations); AIMET's AdaRound (cosine).
    """

    def __init__(
        self, iters: int, warmup: float = 0.2, start: float = 20.0, end: float = 2.0, anneal: str = "linear"
    ) -> None:
        self.iters, self.begin, self.start, self.end = iters, warmup * iters, start, end
        self.left = ANNEALS[anneal]

    def __call__(self, step: int) -> float | None:
        """Beta at ``step`` (0-based), None while the regularizer is off."""
        if step < self.begin:
            return None
        progress = (step - self.begin) / max(1.0, self.iters - 1 - self.begin)
        return self.end + (self.start - self.end) * self.left(min(1.0, progress))


class _SoftWeight(torch.autograd.Function):
    """``base + h(V) * span``, its backward adding the regularizer's gradient: one pass over V where autograd makes twenty."""

    @staticmethod
    def forward(ctx: Any, V: Tensor, base: Tensor, span: Tensor, beta: float | Tensor | None, weight: float) -> Tensor:
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
            grad.addcmul_(u.abs().pow_(ctx.beta - 1.0), u.sign_().mul_(-2.0 * ctx.beta * ctx.weight))
        slope = torch.ops.aten.sigmoid_backward(grad, sigmoid).mul_(ZETA - GAMMA)
        # The rectified ends are flat: sigmoid where h reaches 0 and 1.
        low, high = -GAMMA / (ZETA - GAMMA), (1.0 - GAMMA) / (ZETA - GAMMA)
        return torch.ops.aten.hardtanh_backward(slope, sigmoid, low, high), None, None, None, None


class LearnedRounding(Protocol):
    """What every learned rounding of one weight tensor offers; its constructor takes the weight and its grid.

    Attributes:
        rate: Adam's rate for the variables, relative to AdaRound's for V.
        decays: the rate falls to 0 along a cosine.
        grid: per-channel grid, fixed.
    """

    rate: ClassVar[float]
    decays: ClassVar[bool]
    grid: Grid

    def __init__(self, weight: Tensor, grid: Grid) -> None: ...

    @property
    def variables(self) -> tuple[Tensor, ...]:
        """What is learned."""
        ...

    def soft(self, beta: float | Tensor | None = None, regularization: float = 0.0) -> Tensor:
        """Differentiable W~, the weight's shape; the arguments are for roundings that have to be driven to a decision."""
        ...

    def hard_codes(self) -> Tensor:
        """Integer codes, float tensor in [qmin, qmax], the weight's shape."""
        ...

    def reopen(self) -> None:
        """Make decisions open again, for another round of learning."""
        ...

    def unsettled(self) -> float:
        """Share of weights whose hard value is not yet the soft one."""
        ...


class SoftRounding:
    """AdaRound: every weight goes up or down, a soft choice that the regularizer drives to a hard one.

    Attributes:
        V: trainable, the weight's shape; h(V) = fraction that is rounded up.
        grid: per-channel grid, fixed.
    """

    rate: ClassVar[float] = 1.0
    decays: ClassVar[bool] = False

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
        self._lower, self._upper = grid.qmin - zero, grid.top(weight.dim()) - zero
        # clip(floor + h) with 0 <= h <= 1 is a base and, inside the grid, h steps: linear in h, so it need not be clipped again.
        inside = (self._floor >= self._lower) & (self._floor < self._upper)
        self._base = torch.minimum(torch.maximum(self._floor, self._lower), self._upper) * scale
        self._span = inside.to(scale.dtype) * scale

    @property
    def variables(self) -> tuple[Tensor, ...]:
        """V."""
        return (self.V,)

    def soft(self, beta: float | Tensor | None = None, regularization: float = 0.0) -> Tensor:
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

    def reopen(self) -> None:
        """Decided weights go back to where they lean, inside the flat ends of h: from there they may change their mind."""
        with torch.no_grad():
            self.V.clamp_(-REOPENED, REOPENED)

    def unsettled(self) -> float:
        """Share of variables that are still between 0.05 and 0.95."""
        with torch.no_grad():
            value = h(self.V)
            return float(((value > 0.05) & (value < 0.95)).float().mean())


def _round(x: Tensor) -> Tensor:
    """Rounding to nearest whose gradient is 1."""
    return x + (torch.round(x) - x).detach()


def _limited(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """``x`` between the limits, whose gradient is 1 at them, too.

    Of a few bits many codes lie at the grid's ends, where torch.clamp's gradient is 1 up to torch 2.13, from 2.14 on 0, or .5
    where the limits are tensors (findings/torch_clamp_gradient_at_limits.sh).
    """
    now = x.detach()
    within = torch.minimum(torch.maximum(now, lower), upper)
    return torch.where(now == within, x, within)


class StraightRounding:
    """AdaQuant's: weights move freely, rounding is to nearest with a straight-through gradient.

    The gradient of a weight outside the grid's range is 0, as that of the clipping is.

    Attributes:
        ratio: trainable, W' / s in steps of the grid, the weight's shape: one rate suits all layers.
        grid: per-channel grid, fixed.
    """

    rate: ClassVar[float] = 0.1
    decays: ClassVar[bool] = True

    def __init__(self, weight: Tensor, grid: Grid) -> None:
        self.grid = grid
        self._scale, self._zero = grid.along(weight.dim())
        self._lower, self._upper = grid.qmin - self._zero, grid.qmax - self._zero
        self.ratio = (weight / self._scale).requires_grad_()

    @property
    def variables(self) -> tuple[Tensor, ...]:
        """The weights."""
        return (self.ratio,)

    def _steps(self) -> Tensor:
        """Differentiable weights in steps, before rounding."""
        return self.ratio

    def soft(self, beta: float | Tensor | None = None, regularization: float = 0.0) -> Tensor:  # noqa: ARG002 - nothing to drive
        """Differentiable W~, the weight's shape: the rounded value, as in the file."""
        return _limited(_round(self._steps()), self._lower, self._upper) * self._scale

    def hard_codes(self) -> Tensor:
        """Integer codes, float tensor in [qmin, qmax]."""
        with torch.no_grad():
            return torch.clamp(torch.round(self._steps()), self._lower, self._upper) + self._zero

    def reopen(self) -> None:
        """Nothing: weights move on from where they are."""

    def unsettled(self) -> float:
        """0: what is learned from is rounded all along."""
        return 0.0


class FlexRounding(StraightRounding):
    """FlexRound: weights are divided by what is learned, then rounded; large weights move farther than small ones.

    The divisors are kept as logarithms, so that they stay positive, and start at 1: as rounding to nearest. The paper's s1 is
    the grid's scale times the gain that reconstruction learns; inside the division that gain is part of s3.

    Attributes:
        log_element: trainable, log S2, the weight's shape.
        log_channel: trainable, log s3, one value an output channel.
        grid: per-channel grid, fixed.
    """

    rate: ClassVar[float] = 0.1

    def __init__(self, weight: Tensor, grid: Grid) -> None:
        super().__init__(weight, grid)
        self.ratio = self.ratio.detach()
        self.log_element = torch.zeros_like(self.ratio, requires_grad=True)
        self.log_channel = torch.zeros_like(self._scale, requires_grad=True)

    @property
    def variables(self) -> tuple[Tensor, ...]:
        """Both logarithms."""
        return (self.log_element, self.log_channel)

    def _steps(self) -> Tensor:
        return self.ratio * torch.exp(-self.log_element - self.log_channel)


#: Learned roundings by name.
ROUNDINGS: dict[str, type[LearnedRounding]] = {
    "adaround": SoftRounding,
    "flexround": FlexRounding,
    "ste": StraightRounding,
}
