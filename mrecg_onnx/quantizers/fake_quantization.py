"""Fake quantization: codes of a tensor on a grid and back, and the same with gradients for the values and the scale."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mrecg_onnx.quantizers.grids import Grid

__all__ = [
    "compile_kernels",
    "fake_quantize",
    "fake_quantize_weight",
    "inner",
    "kernels_compiled",
    "learnable_fake_quantize",
    "limited_",
    "quantize_codes",
]

logger = logging.getLogger(__name__)


def quantize_codes(x: Tensor, grid: Grid) -> Tensor:
    """Codes of ``x`` rounded to nearest (ties to even, as ONNX QuantizeLinear), float tensor of x's shape."""
    scale, zero = grid.along(x.dim())
    codes = torch.div(x, scale).round_().add_(zero).clamp_(grid.qmin, grid.qmax)
    return codes if grid.ceiling is None else codes.clamp_(max=grid.top(x.dim()))  # type: ignore[arg-type]


def fake_quantize(x: Tensor, grid: Grid) -> Tensor:
    """``DequantizeLinear(QuantizeLinear(x))`` in float32, no gradient; x's shape."""
    scale, zero = grid.along(x.dim())
    steps, top = torch.div(x, scale).round_(), grid.top(x.dim())
    if zero.numel() == 1 and not isinstance(top, Tensor) and x.device.type == "cpu":
        # Limits in tensors, even in those of one number, take ten times as long; on a GPU asking for them would wait for it.
        steps.clamp_(grid.qmin - float(zero), top - float(zero))
    else:
        limited_(steps, grid.qmin - zero, top - zero)
    return steps.mul_(scale)


def limited_(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """``x.clamp_(lower, upper)`` in a fifth of its time where the limits are broadcast; no gradient."""
    torch.minimum(x, upper, out=x)
    return torch.maximum(x, lower, out=x)


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
            y = torch.clamp(x, lower * step, upper * step).mul_(1.0 / step).round_().mul_(step)
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
        grad_scale = (inner(grad, other) - inner(grad_x, x)) / ctx.step if ctx.needs_input_grad[1] else None
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


def kernels_compiled() -> bool:
    """Whether :func:`compile_kernels` has put its kernels to use."""
    return _kernels is not None


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Sum of products of two tensors of the same strides without gaps (channels-last too: ``reshape`` would copy); shape ()."""
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
