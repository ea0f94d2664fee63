"""Spatial windows: large maps are trained on random windows instead of whole.

The loss is a mean over space and convolution is local, so a window drawn at random, with a halo of context that is run but
not counted, is an unbiased sample of the loss at a fraction of its cost. True borders keep their padding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mrecg_onnx.machine import Region
from mrecg_onnx.network import Step
from mrecg_onnx.planning import LOCAL_OPS, POINTWISE_OPS

__all__ = ["Window", "WindowPlan", "plan_windows"]


@dataclass(frozen=True)
class _Reach:
    """Geometry of a tensor relative to the unit's input: its stride, and how many of its pixels an input edge spoils."""

    stride: int
    spoiled: int


@dataclass(frozen=True)
class Window:
    """Rows and columns for one iteration, each ((row start, row stop), (column start, column stop)).

    ``read`` of the inputs, ``use`` of the outputs that come of them, ``aim`` of the whole outputs.
    """

    read: Region
    use: Region
    aim: Region


@dataclass(frozen=True)
class WindowPlan:
    """How windows are cut for one unit.

    Attributes:
        size: output rows and columns that count.
        whole: the output's height and width.
        source: the input's height and width.
        stride: input pixels per output pixel.
        halo: output pixels on each side that a cut spoils.
    """

    size: tuple[int, int]
    whole: tuple[int, int]
    source: tuple[int, int]
    stride: int
    halo: int

    def draw(self, generator: torch.Generator) -> Window:
        """A window drawn uniformly; windows beyond a border move inside, so that borders are seen as often as the rest.

        All windows read as much: at a border what would lie beyond it is read on the other side. One recording on a GPU then does
        for all of them.
        """
        parts = [self._line(axis, generator) for axis in (0, 1)]
        read, use, aim = (tuple(part[k] for part in parts) for k in range(3))
        return Window(read, use, aim)  # type: ignore[arg-type]

    def _line(self, axis: int, generator: torch.Generator) -> tuple[tuple[int, int], ...]:
        size, whole, source = self.size[axis], self.whole[axis], self.source[axis]
        room = whole - size
        if room == 0:
            return (0, source), (0, whole), (0, whole)
        start = int(torch.randint(-(size // 2), room + size // 2 + 1, (), generator=generator))
        start = min(max(start, 0), room)
        span = size + 2 * self.halo
        first = max(0, min(start - self.halo, whole - span))
        stop = first + span
        end = source if stop >= whole else min(source, stop * self.stride)
        return (first * self.stride, end), (start - first, start - first + size), (start, start + size)


def _kernel(module: Any, op: str, argument: Tensor) -> tuple[int, int, int] | None:
    """(kernel, stride, dilation) of a square local op, None if it is not that simple."""
    if op == "Conv":
        if module.auto_pad.startswith("SAME"):  # pads that depend on the size: a cut would shift what lies behind it
            return None
        sizes = {k: tuple(getattr(module, k)) for k in ("stride", "dilation")} | {
            "kernel": tuple(module.weight.shape[2:])
        }
    else:
        found = getattr(module, "geometry", None)
        if found is None:
            return None
        sizes = found
    if argument.dim() != 4 or any(len(set(v)) != 1 for v in sizes.values()):
        return None
    return int(sizes["kernel"][0]), int(sizes["stride"][0]), int(sizes["dilation"][0])


def plan_windows(
    steps: Sequence[Step],
    shapes: Mapping[str, tuple[int, ...]],
    inputs: Sequence[str],
    outputs: Sequence[str],
    side: int,
) -> WindowPlan | None:
    """Decide whether a unit is trained on windows.

    Args:
        steps: the unit's steps.
        shapes: shape of every tensor in the unit on a batch, and of constants.
        inputs: tensors fed to the unit.
        outputs: tensors at which the loss is taken.
        side: wanted side of the largest map inside, in pixels; 0 for whole maps.

    Returns:
        None where the maps are small or an op looks further than its neighbourhood.
    """
    if side == 0 or len(outputs) != 1 or len({shapes[n][2:] for n in inputs}) != 1:
        return None
    source = shapes[inputs[0]][2:]
    if len(source) != 2:
        return None
    reach = {name: _Reach(1, 0) for name in inputs}
    for step in steps:
        known = [name for name in step.arguments if name is not None and name in reach]
        if not known or any(len(shapes[n]) != 4 for n in (*known, *step.outputs)):
            return None
        strides = {reach[n].stride for n in known}
        if len(strides) != 1:
            return None
        stride, spoiled = strides.pop(), max(reach[n].spoiled for n in known)
        if step.op in LOCAL_OPS:
            example = torch.empty(shapes[known[0]], device="meta")
            geometry = _kernel(step.module, step.op, example)
            if geometry is None:
                return None
            kernel, step_stride, dilation = geometry
            spoiled = math.ceil((spoiled + (kernel - 1) * dilation) / step_stride)
            stride *= step_stride
        elif step.op not in POINTWISE_OPS or len({shapes[n][2:] for n in (*known, *step.outputs)}) != 1:
            return None
        elif any(set(shapes.get(n, (0,))[-2:]) - {1} for n in step.arguments if n is not None and n not in reach):
            return None  # a constant that differs from place to place
        for name in step.outputs:
            reach[name] = _Reach(stride, spoiled)
    out = reach.get(outputs[0])
    whole = shapes[outputs[0]][2:]
    if out is None or any(math.ceil(s / out.stride) != w for s, w in zip(source, whole, strict=True)):
        return None
    size = max(4, side // out.stride)
    if all(w <= size + 2 * out.spoiled for w in whole):
        return None
    return WindowPlan(
        (min(size, whole[0]), min(size, whole[1])),
        (whole[0], whole[1]),
        (source[0], source[1]),
        out.stride,
        out.spoiled,
    )
