"""Integer grids, range search and fake quantization: the arithmetic every method shares.

A grid of ``bits`` bits has the codes 0..2^bits-1, a ``scale`` and a ``zero_point``; code q stands for
``(q - zero_point) * scale`` (method of the MRECG code base, asymmetric, no power-of-two scales).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "P_NORM",
    "Grid",
    "compile_kernels",
    "fake_quantize",
    "fake_quantize_weight",
    "grid_from_range",
    "learnable_fake_quantize",
    "quantize_codes",
    "search_range",
    "symmetric_eight",
    "whole_reciprocal",
]

logger = logging.getLogger(__name__)

#: Exponent of the error that the range search minimises (BRECQ, QDrop and MRECG all use 2.4).
P_NORM = 2.4
#: Candidate ranges (min, max) * (1 - 0.01 i): i = 0..94 for one range per tensor, 0..79 per channel (MQBench observers).
PER_TENSOR_CANDIDATES, PER_CHANNEL_CANDIDATES = 95, 80
#: Smallest scale: below it 1/scale overflows float32 and ONNX Runtime divides by zero.
EPSILON = 1e-8


@dataclass(frozen=True)
class Grid:
    """Scale and zero point of one tensor, or of each channel along ``axis``.

    Attributes:
        scale: float32, shape () per tensor or (C,) per channel, in units of the tensor.
        zero_point: float32 holding integers in [0, 2^bits - 1], shape of ``scale``.
        bits: width of the codes, 2..8, of activations 16, too.
        axis: channel axis, None for one grid per tensor.
        symmetric: the codes are -(2^(bits-1)-1)..2^(bits-1)-1 around zero_point 0 instead of 0..2^bits-1.
        ceiling: largest code of each channel, at most qmax, where channels have widths of their own: shape (C,), along
            ``axis``, or along axis 1 of an activation whose scale is one for the tensor. ``bits`` is then the widest one's.
    """

    scale: Tensor
    zero_point: Tensor
    bits: int
    axis: int | None = None
    symmetric: bool = False
    ceiling: Tensor | None = None

    @property
    def qmin(self) -> int:
        """Smallest code."""
        return 1 - (1 << (self.bits - 1)) if self.symmetric else 0

    @property
    def qmax(self) -> int:
        """Largest code."""
        return (1 << (self.bits - 1)) - 1 if self.symmetric else (1 << self.bits) - 1

    def top(self, rank: int) -> Tensor | int:
        """Largest code, of each channel where they differ: shaped to broadcast over a tensor of ``rank`` dimensions."""
        if self.ceiling is None:
            return self.qmax
        shape = [1] * rank
        shape[1 if self.axis is None else self.axis] = -1
        return self.ceiling.view(shape)

    def along(self, rank: int) -> tuple[Tensor, Tensor]:
        """Scale and zero point shaped to broadcast over a tensor of ``rank`` dimensions."""
        return self.shaped(self.scale, rank), self.shaped(self.zero_point, rank)

    def shaped(self, values: Tensor, rank: int) -> Tensor:
        """``values`` of the scale's shape, shaped to broadcast over a tensor of ``rank`` dimensions."""
        if self.axis is None:
            return values
        shape = [1] * rank
        shape[self.axis] = -1
        return values.view(shape)


def grid_from_range(low: Tensor, high: Tensor, bits: int, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the grid that covers [low, high] (made to include 0), elementwise; shapes are kept."""
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    if symmetric:
        scale = torch.maximum(-low, high) / (2 ** (bits - 1) - 1)
        return scale.clamp(min=EPSILON), torch.zeros_like(scale)
    scale = ((high - low) / (2**bits - 1)).clamp(min=EPSILON)
    return scale, torch.round(-low / scale).clamp(0, 2**bits - 1)


def symmetric_eight(grid: Grid) -> Grid:
    """The grid of an 8-bit tensor on which codes minus zero point fit int8, over the same range; others stay as they are.

    Values from 0 on have seven bits there, 0..127; the rest -128..127 around the zero point 128.
    """
    if grid.bits < 8 or grid.symmetric:
        return grid
    low, high = -grid.zero_point * grid.scale, (grid.qmax - grid.zero_point) * grid.scale
    if not bool(grid.zero_point.any()):
        return Grid(high / 127, grid.zero_point, 7, grid.axis)
    scale = torch.maximum(-low / 128, high / 127).clamp(min=EPSILON)
    return Grid(scale, torch.full_like(grid.zero_point, 128.0), 8, grid.axis)


def whole_reciprocal(grid: Grid) -> Grid:
    """The grid with the nearest scale of which floor(1 / scale), in float32, is 1 / scale: that of a whole number."""
    whole = torch.round(1.0 / grid.scale).clamp(min=1.0)
    scale = 1.0 / whole
    short = torch.floor(1.0 / scale) < whole
    return dataclasses.replace(grid, scale=torch.where(short, torch.nextafter(scale, torch.zeros_like(scale)), scale))


def search_range(
    x: Tensor,
    bits: int,
    *,
    axis: int | None = None,
    symmetric: bool = False,
    p: float = P_NORM,
    low: Tensor | None = None,
    high: Tensor | None = None,
    candidates: int | None = None,
) -> Grid:
    """Find the range whose grid has the least mean ``|x - Q(x)|^p`` (docs/method.md 1, MQBench's MSE observer).

    Both ends of [min, max] shrink together in steps of 1 %; every channel makes its own choice.

    Args:
        x: the values, any shape.
        bits: width, 2..8.
        axis: channel axis for one grid per channel, None for one per tensor.
        symmetric: codes around zero with zero_point 0.
        p: exponent of the error.
        low: true minimum where ``x`` is only a sample, shape () or (C,).
        high: true maximum, likewise.
        candidates: number of ranges tried (default 95 per tensor, 80 per channel).

    Returns:
        The best grid.
    """
    channels = x.reshape(1, -1) if axis is None else x.movedim(axis, 0).reshape(x.shape[axis], -1)
    low = channels.amin(1) if low is None else low.reshape(-1).to(channels)
    high = channels.amax(1) if high is None else high.reshape(-1).to(channels)
    steps = candidates or (PER_TENSOR_CANDIDATES if axis is None else PER_CHANNEL_CANDIDATES)
    qmin, qmax = (-(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    shrink = 1.0 - 0.01 * torch.arange(steps, device=x.device, dtype=channels.dtype)  # [K]
    scale, zero = grid_from_range(low[None] * shrink[:, None], high[None] * shrink[:, None], bits, symmetric=symmetric)
    errors = torch.empty(steps, channels.shape[0], device=x.device, dtype=channels.dtype)
    # Candidates are taken a few at a time: [k, C, n] stays near 16 MB, which the caches of small machines like.
    chunk = max(1, 4_000_000 // max(1, channels.numel()))
    for start in range(0, steps, chunk):
        s, z = scale[start : start + chunk, :, None], zero[start : start + chunk, :, None]
        q = torch.div(channels[None], s).round_().add_(z).clamp_(qmin, qmax).sub_(z).mul_(s)
        errors[start : start + chunk] = q.sub_(channels[None]).abs_().pow_(p).mean(2)
    best = errors.argmin(0, keepdim=True)
    scale, zero = scale.gather(0, best)[0], zero.gather(0, best)[0]
    if axis is None:
        scale, zero = scale[0], zero[0]
    return Grid(scale, zero, bits, axis, symmetric)


def quantize_codes(x: Tensor, grid: Grid) -> Tensor:
    """Codes of ``x`` rounded to nearest (ties to even, as ONNX QuantizeLinear), float tensor of x's shape."""
    scale, zero = grid.along(x.dim())
    return (torch.round(x / scale) + zero).clamp(grid.qmin, grid.qmax).clamp(max=grid.top(x.dim()))


def fake_quantize(x: Tensor, grid: Grid) -> Tensor:
    """``DequantizeLinear(QuantizeLinear(x))`` in float32, no gradient; x's shape."""
    scale, zero = grid.along(x.dim())
    lower, upper = grid.qmin - zero, grid.top(x.dim()) - zero
    return torch.round(x / scale).clamp_(lower, upper).mul_(scale)


def fake_quantize_weight(codes: Tensor, grid: Grid) -> Tensor:
    """Weights that the ``codes`` (0..2^bits-1 or symmetric) stand for: ``(codes - zero_point) * scale``."""
    scale, zero = grid.along(codes.dim())
    return (codes - zero) * scale


class _LearnableFakeQuantize(torch.autograd.Function):
    """Fake quantization with the straight-through gradient for x and the LSQ gradient for the scale.

    d y/d scale = q - x/scale inside the grid and the clipped q outside (Esser et al. 2020, eq. 3); elements that QDrop
    leaves in floating point pass their gradient on and have none for the scale (Wei et al. 2022).

    Three ways to compute the same: on the CPU a few vectorized passes in place; elsewhere plain tensor operations, which never
    wait for the device; and those compiled into one pass each (:func:`compile_kernels`). torch's own fake-quantize kernels are
    not vectorized and take ten times as long as the passes (19 MB, one thread: 31 ms against 2.9).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, lower: float, upper: float, keep: Tensor | None) -> Tensor:
        if _kernels is None and x.device.type == "cpu":
            ctx.lower, ctx.upper = lower, upper
            ctx.step = step = float(scale)
            y = torch.clamp(x, lower * step, upper * step).div_(step).round_().mul_(step)
            if keep is not None:
                torch.lerp(x, y, keep, out=y)
            ctx.save_for_backward(x, y, keep)
            return y
        bounds = _bounds(lower, upper, x.dtype, x.device)
        ctx.step = None
        ctx.save_for_backward(x, scale, keep, bounds)
        kernel = _forward_math if _kernels is None else _kernels[0]
        return kernel(x.detach(), scale.detach(), bounds, keep)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, other, keep, *bounds = ctx.saved_tensors
        grad = grads[0]
        if grad.stride() != x.stride():
            grad = torch.empty_like(x).copy_(grad)
        if ctx.step is None:
            kernel = _backward_math if _kernels is None else _kernels[1]
            return *kernel(grad, x.detach(), other.detach(), bounds[0], keep), None, None, None
        # Summed over elements the scale's gradient is (sum g y - sum g_x x) / scale, with g_x the gradient for x.
        grad_x = torch.ops.aten.hardtanh_backward(grad, x, ctx.lower * ctx.step, ctx.upper * ctx.step)
        if keep is not None:
            # A mask of floats and ``lerp`` take a tenth of the time of a boolean ``where``.
            torch.lerp(grad, grad_x, keep, out=grad_x)
        grad_scale = (_inner(grad, other) - _inner(grad_x, x)) / ctx.step if ctx.needs_input_grad[1] else None
        return grad_x if ctx.needs_input_grad[0] else None, grad_scale, None, None, None


@cache
def _bounds(lower: float, upper: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Both as a tensor, so that kernels are compiled once for all grids; kept, as copying them would wait for the device."""
    return torch.tensor((lower, upper), dtype=dtype).to(device)


def _forward_math(x: Tensor, scale: Tensor, bounds: Tensor, keep: Tensor | None) -> Tensor:
    y = torch.round(torch.clamp(x / scale, bounds[0], bounds[1])) * scale
    return y if keep is None else x + keep * (y - x)


def _backward_math(
    grad: Tensor, x: Tensor, scale: Tensor, bounds: Tensor, keep: Tensor | None
) -> tuple[Tensor, Tensor]:
    ratio, lower, upper = x / scale, bounds[0], bounds[1]
    inside = (ratio >= lower) & (ratio <= upper)
    code = torch.round(torch.clamp(ratio, lower, upper))
    grad_x, grad_scale = torch.where(inside, grad, 0.0), grad * torch.where(inside, code - ratio, code)
    if keep is not None:
        grad_x, grad_scale = grad + keep * (grad_x - grad), grad_scale * keep
    return grad_x, grad_scale.sum()


#: Compiled (:func:`_forward_math`, :func:`_backward_math`), None while they are not used.
_kernels: tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, Tensor]]] | None = None


def compile_kernels(device: torch.device, *, on: bool = True) -> bool:
    """Use kernels of torch.compile for :func:`learnable_fake_quantize`; returns whether they are in use.

    Compiling takes some 20 s once (torch keeps the result on disk) and needs a C++ compiler, on a GPU Triton; where it fails
    nothing is changed, and the log says why. On the CPU one pass instead of five halves the time of fake quantization in the
    processor's cache, but a whole unit's iteration stays what it was (MobileNetV2, two threads: 45 ms against 44).
    """
    global _kernels  # noqa: PLW0603 - one choice for the process, like the number of threads
    _kernels = None
    if not on:
        return False
    kernels = torch.compile(_forward_math, dynamic=True), torch.compile(_backward_math, dynamic=True)
    try:
        x = torch.linspace(-1, 1, 2 * 3 * 5 * 7, device=device).view(2, 3, 5, 7)
        x, scale = x.contiguous(memory_format=torch.channels_last), torch.tensor(0.1, device=device)
        bounds = torch.tensor((-3.0, 12.0), device=device)
        kernels[0](x, scale, bounds, x)
        kernels[1](x, x, scale, bounds, x)
    except Exception as error:  # noqa: BLE001 - a missing compiler shows in many ways
        logger.info("kernels are not compiled, torch's own operations are used: %s", str(error).splitlines()[0])
        return False
    _kernels = kernels
    return True


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Sum of products of two dense tensors of the same strides (channels-last too, hence no reshape, which would copy)."""
    return torch.dot(a.as_strided((a.numel(),), (1,)), b.as_strided((b.numel(),), (1,)))


def learnable_fake_quantize(
    x: Tensor, scale: Tensor, zero_point: float, qmax: int, keep: Tensor | None = None
) -> Tensor:
    """Per-tensor fake quantization with gradients for ``x`` and ``scale``.

    Args:
        x: activations, any shape.
        scale: learned scale, shape ().
        zero_point: fixed integer zero point in [0, qmax].
        qmax: largest code, 2^bits - 1.
        keep: x's shape and type, 1 where the quantized value is used and 0 where x stays (QDrop); None uses it everywhere.
    """
    if not x.is_contiguous() and not x.is_contiguous(memory_format=torch.channels_last):
        x = x.contiguous()
    result: Tensor = _LearnableFakeQuantize.apply(x, scale, -zero_point, qmax - zero_point, keep)  # type: ignore[no-untyped-call]
    return result
