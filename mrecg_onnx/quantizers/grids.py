"""Integer grids: a grid of ``bits`` bits has the codes 0..2^bits-1, a ``scale`` and a ``zero_point``.

Code q stands for ``(q - zero_point) * scale`` (method of the MRECG code base, asymmetric, no power-of-two scales).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "EPSILON",
    "LEAST_SCALE",
    "Grid",
    "around_zero",
    "grid_from_range",
    "symmetric_eight",
    "weight_codes",
    "whole_reciprocal",
]

#: Scale of what has no range: any would be right, and products of two such are normal float32.
EPSILON = 1e-16
#: Smallest scale, ten times the least normal float32: its reciprocal is finite, and below it digits are lost.
LEAST_SCALE = 1e-37
#: From this width on weights are symmetric: the shifted asymmetric codes would not fit int8 (docs/method.md 6).
SYMMETRIC_FROM = 8


@dataclass(frozen=True)
class Grid:
    """Scale and zero point of one tensor, or of each channel along ``axis``.

    Attributes:
        scale: float32, shape () per tensor or (C,) per channel, in units of the tensor.
        zero_point: float32 holding integers in [0, 2^bits - 1], shape of ``scale``.
        bits: width of the codes, 2..8, of activations 16, too.
        axis: channel axis, None for one grid per tensor.
        symmetric: the codes are -(2^(bits-1)-1)..2^(bits-1)-1 around zero_point 0 instead of 0..2^bits-1.
        full: symmetric codes begin one lower, at -2^(bits-1): all that a signed integer of ``bits`` bits has.
        ceiling: largest code of each channel, at most qmax, where channels have widths of their own: shape (C,), along
            ``axis``, or along axis 1 of an activation whose scale is one for the tensor. ``bits`` is then the widest one's.
    """

    scale: Tensor
    zero_point: Tensor
    bits: int
    axis: int | None = None
    symmetric: bool = False
    ceiling: Tensor | None = None
    full: bool = False

    @property
    def qmin(self) -> int:
        """Smallest code."""
        return (0 if self.full else 1) - (1 << (self.bits - 1)) if self.symmetric else 0

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


def weight_codes(bits: int, *, symmetric: bool) -> tuple[bool, bool]:
    """:attr:`Grid.symmetric` and :attr:`Grid.full` of a weight of ``bits`` bits; ``symmetric`` is what is asked for.

    Symmetric codes of up to 7 bits have the full range, as LSQ, BRECQ and QDrop give it to them: of 2 bits the narrow one would
    leave three values. From 8 bits on all weights are symmetric, and narrow: kernels that add products of two in 16 bits
    (x86 before VNNI) overflow with -128.
    """
    around = symmetric or bits >= SYMMETRIC_FROM
    return around, around and bits < SYMMETRIC_FROM


def grid_from_range(
    low: Tensor, high: Tensor, bits: int, *, symmetric: bool, full: bool = False
) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the grid that covers [low, high] (made to include 0), elementwise; shapes are kept."""
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    if symmetric:
        top = 2 ** (bits - 1) - 1
        scale = _normal(torch.maximum(-low / (top + full), high / top))
        return scale, torch.zeros_like(scale)
    steps = 2**bits - 1
    width = high - low
    scale = _normal(torch.where(torch.isfinite(width), width / steps, high / steps - low / steps))
    return scale, torch.round(-low / scale).clamp(0, steps)


def _normal(scale: Tensor) -> Tensor:
    """Scales as they may be: not below :data:`LEAST_SCALE`, and :data:`EPSILON` where they are 0."""
    return torch.where(scale > 0.0, scale.clamp(min=LEAST_SCALE), EPSILON)


def symmetric_eight(grid: Grid) -> Grid:
    """The grid of an 8-bit tensor on which codes minus zero point fit int8, over the same range; others stay as they are.

    Values from 0 on have seven bits there, 0..127; the rest -128..127 around the zero point 128.
    """
    if grid.bits < 8 or grid.symmetric:
        return grid
    low, high = -grid.zero_point * grid.scale, (grid.qmax - grid.zero_point) * grid.scale
    if not bool(grid.zero_point.any()):
        return Grid(high / 127, grid.zero_point, 7, grid.axis)
    scale = _normal(torch.maximum(-low / 128, high / 127))
    return Grid(scale, torch.full_like(grid.zero_point, 128.0), 8, grid.axis)


def around_zero(grid: Grid) -> Grid:
    """The grid over the same range whose zero point is 0, or the middle code where it has values below 0, of any width."""
    if grid.symmetric or not bool(grid.zero_point.any()):
        return grid
    half = 1 << (grid.bits - 1)
    low, high = -grid.zero_point * grid.scale, (grid.qmax - grid.zero_point) * grid.scale
    scale = _normal(torch.maximum(-low / half, high / (half - 1)))
    return dataclasses.replace(grid, scale=scale, zero_point=torch.full_like(grid.zero_point, float(half)))


def whole_reciprocal(grid: Grid) -> Grid:
    """The grid with the nearest scale of which floor(1 / scale), in float32, is 1 / scale: that of a whole number."""
    whole = torch.round(1.0 / grid.scale).clamp(min=1.0)
    scale = 1.0 / whole
    short = torch.floor(1.0 / scale) < whole
    return dataclasses.replace(grid, scale=torch.where(short, torch.nextafter(scale, torch.zeros_like(scale)), scale))
