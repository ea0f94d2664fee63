"""Integer grids, range search and fake quantization: the arithmetic every method shares.

A grid of ``bits`` bits has the codes 0..2^bits-1, a ``scale`` and a ``zero_point``; code q stands for
``(q - zero_point) * scale`` (method of the MRECG code base, asymmetric, no power-of-two scales).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
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
#: The coarse net of the search for scale and zero point, how many of its best are refined, and the ratio of scales that is fine.
SCALES, ZERO_POINTS, SEEDS, FINEST = 12, 8, 3, 1.01
#: Values of the coarser summary of a channel: so many for each code, and at least; the finer one has a multiple of them.
SUMMARY_PER_CODE, LEAST_SUMMARY, FINER = 4, 256, 4
#: Ranges that shrink together of which the finer summary decides, and grids of each kind that are compared on all values.
KEPT, FINALISTS = 12, 5
#: Values that are quantized at a time: half a megabyte, which the caches of small machines like; a GPU needs more to be busy.
CHUNK, CHUNK_CUDA = 1 << 17, 1 << 22
#: Smallest scale: the scale of a bias is the product of two, and that of smaller ones is no normal float32.
EPSILON = 1e-16


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
    """Find the grid with the least mean ``|x - Q(x)|^p`` (docs/method.md 1); every channel makes its own choice.

    First both ends of [min, max] shrink together in steps of 1 % (MQBench's MSE observer). Where values have both signs and the
    grid is not symmetric, scale and zero point are then searched together, from coarse to fine (QDrop's observer tries all of
    them): ends that shrink together round the zero point of a range such as SiLU's, -0.28 to 10, to 0 at 4 bits, and all that is
    negative is cut. The result is never worse than the best of the first kind.

    Many values are searched in summaries of them (:func:`_summaries`); the best few grids are compared on all.

    Args:
        x: the values, any shape.
        bits: width, 2..8.
        axis: channel axis for one grid per channel, None for one per tensor.
        symmetric: codes around zero with zero_point 0.
        p: exponent of the error.
        low: true minimum where ``x`` is only a sample, shape () or (C,).
        high: true maximum, likewise.
        candidates: number of ranges whose ends shrink together (default 95 per tensor, 80 per channel); 1 keeps the whole
            range, of which only the zero point is chosen.

    Returns:
        The best grid.
    """
    channels = x.detach().reshape(1, -1) if axis is None else x.detach().movedim(axis, 0).reshape(x.shape[axis], -1)
    low = channels.amin(1) if low is None else low.reshape(-1).to(channels)
    high = channels.amax(1) if high is None else high.reshape(-1).to(channels)
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    steps = candidates or (PER_TENSOR_CANDIDATES if axis is None else PER_CHANNEL_CANDIDATES)
    search = _Search(channels, bits, symmetric, p, low, high)
    shrink = 1.0 - 0.01 * torch.arange(steps, device=x.device, dtype=channels.dtype)[:, None]  # [K, 1]
    shrunk = grid_from_range(low * shrink, high * shrink, bits, symmetric=symmetric)
    families = [search.foremost(*shrunk, KEPT, level=0)]
    if bool(search.free.any()):
        both = search.zero_points(shrunk[0]) if steps == 1 else search.scales_and_zero_points(float(shrink[-1]))
        families.append(both)
    scale, zero = search.best(families)
    if axis is None:
        scale, zero = scale[0], zero[0]
    return Grid(scale, zero, bits, axis, symmetric)


#: Scales and zero points of some grids of each channel, both of shape [K, C].
_Grids = tuple[Tensor, Tensor]


class _Search:
    """Measures grids on the values of one tensor, on all of them and on two summaries.

    Attributes:
        free: channels with values of both signs on a grid that is not symmetric, shape (C,): the zero point of others is given.
        levels: (values [C, n], share of each in the mean or None), from the coarsest to all of them.
    """

    def __init__(self, x: Tensor, bits: int, symmetric: bool, p: float, low: Tensor, high: Tensor) -> None:
        self.p, self.low, self.high = p, low, high
        top = (1 << (bits - 1)) - 1
        self.qmin, self.qmax = -top if symmetric else 0, top if symmetric else (1 << bits) - 1
        self.free = (low < 0) & (high > 0) & (not symmetric)
        self.full = grid_from_range(low, high, bits, symmetric=symmetric)[0]
        size = max(LEAST_SUMMARY, SUMMARY_PER_CODE << bits)
        self.levels = [*_summaries(x, (size, FINER * size)), (x, None)]

    def errors(self, scale: Tensor, zero: Tensor, level: int) -> Tensor:
        """Mean error of each grid, [K, C], in units of the full range's step."""
        x, share = self.levels[level]
        result = torch.empty_like(scale)
        lower, upper, inverse = self.qmin - zero, self.qmax - zero, 1.0 / scale
        # A few channels and candidates at a time, so that all passes over them find them in the cache.
        room = CHUNK if x.device.type == "cpu" else CHUNK_CUDA
        across = max(1, min(len(x), room // x.shape[1]))
        along = max(1, room // (across * x.shape[1]))
        for c in range(0, len(x), across):
            part = x[None, c : c + across]
            weight = None if share is None else share[c : c + across]
            for k in range(0, len(scale), along):
                at = slice(k, k + along), slice(c, c + across)
                exact = part * inverse[at][:, :, None]
                e = torch.round(exact).clamp_(lower[at][:, :, None], upper[at][:, :, None]).sub_(exact)
                e = _powers_(e, self.p)
                result[at] = e.mean(2) if weight is None else e.mul_(weight).sum(2)
        return result * (scale / self.full) ** self.p

    def foremost(self, scale: Tensor, zero: Tensor, count: int, level: int) -> _Grids:
        """The ``count`` best grids of each channel."""
        if len(scale) <= count:
            return scale, zero
        best = self.errors(scale, zero, level).topk(count, 0, largest=False).indices
        return scale.gather(0, best), zero.gather(0, best)

    def best(self, families: Sequence[_Grids]) -> _Grids:
        """The best grid of each channel, shape (C,); the families are narrowed one by one, and of equals the first is taken.

        All but the first family are for free channels only.
        """
        if len(self.levels) > 1:
            families = [self.foremost(*family, FINALISTS, level=-2) for family in families]
        scale, zero = (torch.cat(parts) for parts in zip(*families, strict=True))
        errors = self.errors(scale, zero, level=-1)
        errors[len(families[0][0]) :].masked_fill_(~self.free, torch.inf)
        chosen = errors.argmin(0, keepdim=True)
        return scale.gather(0, chosen)[0], zero.gather(0, chosen)[0]

    def bounds(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Least and largest zero point of use at ``scale``: beyond them codes are idle at one end and lack at the other."""
        least = torch.floor(self.qmax - self.high / scale).clamp(0, self.qmax)
        most = torch.ceil(-self.low / scale).clamp(0, self.qmax)
        return torch.minimum(least, most), torch.maximum(least, most)

    def zero_points(self, scale: Tensor) -> _Grids:
        """``scale``, [1, C], with the whole zero points on either side of the range's own."""
        return scale.expand(2, -1), torch.cat(self.bounds(scale))

    def scales_and_zero_points(self, smallest: float) -> _Grids:
        """Scales from ``smallest`` times the full range's up to where the range fits any zero point, and zero points of use.

        A coarse net of both, then a finer one around each of its best, until scales are about 1 % apart and zero points 1.
        """
        places = min(self.qmax + 1, ZERO_POINTS)
        largest = self.qmax / max(1, self.qmax - 1)
        step = (largest / smallest) ** (1.0 / (SCALES - 1))
        like: dict[str, Any] = {"device": self.full.device, "dtype": self.full.dtype}
        most_scale = self.full * largest
        scale = (most_scale * step ** -torch.arange(SCALES, **like)[:, None]).clamp(min=EPSILON)
        least, most = self.bounds(scale)
        place = torch.linspace(0.0, 1.0, places, **like)[:, None, None]
        scale, zero = scale.repeat(places, 1), torch.round(least + place * (most - least)).flatten(0, 1)
        scale, zero = self.foremost(scale, zero, SEEDS, level=0)
        stride = (self.qmax + 1) / places
        while step > FINEST or stride > 1:
            step, stride = step**0.25, max(1.0, stride / 2)
            grown = step ** torch.arange(-2.0, 3.0, **like)[:, None, None, None]
            moved = round(stride) * torch.arange(-1.0, 2.0, **like)[:, None, None]
            scale = torch.minimum(scale * grown, most_scale).clamp(min=EPSILON).expand(-1, 3, -1, -1).flatten(0, 2)
            zero = (zero + moved).expand(5, -1, -1, -1).flatten(0, 2)
            least, most = self.bounds(scale)
            zero = torch.minimum(torch.maximum(zero, least), most)
            last = step <= FINEST and stride <= 1
            scale, zero = self.foremost(scale, zero, FINALISTS if last else 1, level=min(1, len(self.levels) - 1))
        return scale, zero


def _powers_(e: Tensor, p: float) -> Tensor:
    """``|e|^p`` in place. Logarithm and exponential of base 2 take half the time of a general power on a CPU."""
    if p == 1.0:
        return e.abs_()
    e.square_()
    return e if p == 2.0 else e.log2_().mul_(p / 2.0).exp2_()


def _summaries(x: Tensor, sizes: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """For each of ``sizes`` that many values for each channel of ``x`` [C, n] and what share of all they stand for, [C, size].

    Values are means of neighbours in order of size. Half of the borders between them have equally many values in between, the
    others stand equally far apart: neither the many small values nor the few in a long tail are thrown together. Sizes that
    save little are left out.
    """
    n = x.shape[1]
    sizes = [size for size in sizes if n >= 2 * size]
    if not sizes:
        return []
    # numpy sorts 20 times as fast as torch on a CPU.
    ordered = torch.from_numpy(np.sort(x.numpy(), axis=1)) if x.device.type == "cpu" else x.sort(1).values
    sums = torch.nn.functional.pad(ordered.cumsum(1, dtype=torch.float64), (1, 0))
    found = []
    for size in sizes:
        many = torch.linspace(0, n, size // 2 + 1, device=x.device, dtype=torch.float64).round().long()
        place = torch.linspace(0.0, 1.0, size // 2 + 2, device=x.device, dtype=x.dtype)[1:-1]
        far = torch.searchsorted(ordered, (ordered[:, :1] + place * (ordered[:, -1:] - ordered[:, :1])).contiguous())
        edges = torch.cat([many.expand(len(x), -1), far], 1).sort(1).values
        counts = edges.diff(dim=1)
        means = sums.gather(1, edges).diff(dim=1) / counts.clamp(min=1)
        found.append((means.to(x.dtype), (counts / n).to(x.dtype)))
    return found


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
