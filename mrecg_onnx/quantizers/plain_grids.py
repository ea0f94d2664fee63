"""Grids as plain JSON data."""

from __future__ import annotations

import math
from typing import Any

import torch

from mrecg_onnx.quantizers.grids import Grid

__all__ = ["plain_grid", "restored_grid"]


def plain_grid(grid: Grid) -> dict[str, Any]:
    """``grid``, without widths a channel, as plain JSON data: float32 comes back as it was."""
    assert grid.ceiling is None
    return {
        "scale": grid.scale.tolist(),
        "zero_point": grid.zero_point.tolist(),
        "bits": grid.bits,
        "axis": grid.axis,
        "symmetric": grid.symmetric,
        "full": grid.full,
    }


def restored_grid(
    plain: Any, *, bits: int, axis: int | None = None, channels: int | None = None, device: torch.device | str = "cpu"
) -> Grid:
    """The grid of ``bits`` bits that :func:`plain_grid` gave, of one scale, or of ``channels`` along ``axis``.

    Raises:
        ValueError: it is another's, or no grid.
        TypeError: likewise.
        KeyError: likewise.
    """
    scales, zeros = ([x] if channels is None else list(x) for x in (plain["scale"], plain["zero_point"]))
    symmetric, full = plain["symmetric"], plain["full"]
    if (plain["bits"], plain["axis"]) != (bits, axis) or not isinstance(symmetric, bool) or not isinstance(full, bool):
        raise ValueError("the grid of another tensor")
    if len(scales) != (channels or 1) or len(zeros) != len(scales):
        raise ValueError("a grid of another size")
    if not all(isinstance(x, float) and math.isfinite(x) for x in (*scales, *zeros)):
        raise ValueError("a grid without numbers")
    least, most = (0, 0) if symmetric else (0, 2**bits - 1)
    if full and not symmetric:
        raise ValueError("no such codes")
    if min(scales) <= 0.0 or not all(least <= z <= most and z.is_integer() for z in zeros):
        raise ValueError("no grid")
    scale, zero_point = (torch.tensor(x if channels else x[0], device=device) for x in (scales, zeros))
    return Grid(scale, zero_point, bits, axis, symmetric, full=full)
