"""A weighted layer as a plain matrix: rows of its input, its weight beside them, and what the two have in common.

Convolutions are matrix products of patches; on large maps a few positions a sample stand for all of them, and of all
the rows only their normal equations are kept, so that memory does not grow with the calibration set.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mrecg_onnx.converters.ops.weighted import OnnxConv, OnnxConvTranspose, OnnxGemm, OnnxMatMulConst
from mrecg_onnx.machine import ALONE, Workers

__all__ = ["Layout", "NormalEquations", "layout_of", "normal_equations"]

#: Rows taken of a sample at most: all of a 14x14 map. More only repeat what neighbouring patches share.
ROWS = 196
#: Elements of one batch's rows.
BATCH_ELEMENTS = 1 << 22


class Layout(ABC):
    """How a module's map becomes y = W x for each of ``groups`` independent groups.

    Attributes:
        groups: number of groups g.
        shared: one scale serves an output channel of all groups together (grouped ConvTranspose).
    """

    def __init__(self, module: Any, groups: int = 1) -> None:
        self.module, self.groups, self.shared = module, groups, False

    @abstractmethod
    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as (g, outputs of a group, inputs of a group)."""

    @abstractmethod
    def weight(self, matrix: Tensor) -> Tensor:
        """Inverse of :meth:`matrix`."""

    @abstractmethod
    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Random positions, at most :data:`ROWS` a sample, for :meth:`rows` of this and other inputs of its shape."""

    @abstractmethod
    def rows(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rows of the layer's input at ``positions``: (g, rows, inputs of a group)."""


class _Product(Layout):
    """Gemm, and MatMul by a constant with two axes."""

    def __init__(self, module: OnnxGemm | OnnxMatMulConst) -> None:
        super().__init__(module)
        if isinstance(module, OnnxGemm):
            self.inputs_last, self.turned = module.trans_b, module.trans_a
        else:
            self.inputs_last = self.turned = module.weight_first

    def matrix(self, weight: Tensor) -> Tensor:
        return (weight if self.inputs_last else weight.t())[None]

    def weight(self, matrix: Tensor) -> Tensor:
        return matrix[0] if self.inputs_last else matrix[0].t()

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        count = math.prod(x.shape) // x.shape[-2 if self.turned and x.dim() > 1 else -1]
        return torch.randperm(count, generator=generator)[: ROWS * max(1, x.shape[0])]

    def rows(self, x: Tensor, positions: Tensor) -> Tensor:
        x = x.transpose(-1, -2) if self.turned and x.dim() > 1 else x
        return x.reshape(1, -1, x.shape[-1])[:, positions.to(x.device)]


class _Convolution(Layout):
    """Conv over any number of spatial axes, and ConvTranspose as the Conv it is on an input with zeros in between."""

    def __init__(self, module: OnnxConv | OnnxConvTranspose) -> None:
        super().__init__(module, module.groups)
        self.transposed = isinstance(module, OnnxConvTranspose)
        self.shared = self.transposed and module.groups > 1
        self.kernel = tuple(module.weight.shape[2:])

    def matrix(self, weight: Tensor) -> Tensor:
        if not self.transposed:
            return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)
        per_group = weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1)
        return per_group.transpose(1, 2).flatten(2)

    def weight(self, matrix: Tensor) -> Tensor:
        shape = self.module.weight.shape
        if not self.transposed:
            return matrix.reshape(shape)
        inputs = shape[0] // self.groups
        return matrix.reshape(self.groups, shape[1], inputs, -1).transpose(1, 2).reshape(shape)

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        count = math.prod(self._sizes(self._padded(x[:1])))
        return torch.randperm(count, generator=generator)[:ROWS]

    def rows(self, x: Tensor, positions: Tensor) -> Tensor:
        x = self._padded(x)
        taps = self._taps(x, positions).to(x.device)  # [P, k]
        patches = x.reshape(*x.shape[:2], -1)[:, :, taps]  # [N, C, P, k]
        count, channels, places, size = patches.shape
        patches = patches.reshape(count, self.groups, channels // self.groups, places, size)
        return patches.permute(1, 0, 3, 2, 4).reshape(self.groups, count * places, -1)

    def _padded(self, x: Tensor) -> Tensor:
        """The input that a Conv without padding would read."""
        module = self.module
        begins, ends = module._pads(x)  # noqa: SLF001 - the layer's own rule, auto_pad included
        if self.transposed:
            for axis, step in enumerate(module.stride, start=2):
                shape = list(x.shape)
                shape[axis] = (shape[axis] - 1) * step + 1
                index = torch.arange(0, shape[axis], step, device=x.device)
                x = x.new_zeros(shape).index_copy_(axis, index, x)
            reach = [(k - 1) * d for k, d in zip(self.kernel, module.dilation, strict=True)]
            begins = [r - b for r, b in zip(reach, begins, strict=True)]
            ends = [r - e + o for r, e, o in zip(reach, ends, module.output_padding, strict=True)]
        return functional.pad(x, [p for pair in zip(reversed(begins), reversed(ends), strict=True) for p in pair])

    def _sizes(self, padded: Tensor) -> list[int]:
        """Sizes of the output map."""
        module = self.module
        strides = [1] * len(self.kernel) if self.transposed else module.stride
        numbers = zip(padded.shape[2:], self.kernel, module.dilation, strides, strict=True)
        return [(size - (k - 1) * d - 1) // s + 1 for size, k, d, s in numbers]

    def _taps(self, padded: Tensor, positions: Tensor) -> Tensor:
        """Flat index into the padded map of every kernel tap at every position: [P, k]."""
        sizes, strides = self._sizes(padded), [1] * len(self.kernel) if self.transposed else self.module.stride
        places = torch.unravel_index(positions, sizes)
        taps = torch.unravel_index(torch.arange(math.prod(self.kernel)), self.kernel)
        flat = torch.zeros(len(positions), math.prod(self.kernel), dtype=torch.int64)
        for axis, size in enumerate(padded.shape[2:]):
            offset = taps[axis]
            if self.transposed:  # the kernel is turned round
                offset = self.kernel[axis] - 1 - offset
            flat = flat * size + places[axis][:, None] * strides[axis] + offset[None] * self.module.dilation[axis]
        return flat


def layout_of(module: nn.Module) -> Layout | None:
    """The layout of a weighted module; None for a MatMul by a stack of matrices, which is none."""
    if isinstance(module, OnnxConv | OnnxConvTranspose):
        return _Convolution(module)
    if isinstance(module, OnnxGemm | OnnxMatMulConst) and module.weight.dim() == 2:
        return _Product(module)
    return None


@dataclass(frozen=True)
class NormalEquations:
    """Second moments of a layer's rows x (quantized input) and y (float response); float64.

    Attributes:
        gram: E[x x^T], (g, K, K).
        cross: E[y x^T], (g, O, K).
        power: E[y^2], (g, O).
        x_mean: E[x], (g, K).
        y_mean: E[y], (g, O).
    """

    gram: Tensor
    cross: Tensor
    power: Tensor
    x_mean: Tensor
    y_mean: Tensor

    def centred(self) -> NormalEquations:
        """The same with both means taken out: what is left to the weight once the bias takes care of the mean."""
        x, y = self.x_mean, self.y_mean
        return NormalEquations(
            self.gram - x[:, :, None] * x[:, None, :],
            self.cross - y[:, :, None] * x[:, None, :],
            self.power - y.square(),
            torch.zeros_like(x),
            torch.zeros_like(y),
        )

    def error(self, weight: Tensor) -> Tensor:
        """E ||y - W x||^2 of each output, (g, O), for a matrix W of shape (g, O, K)."""
        w = weight.double()
        return self.power - 2 * (self.cross * w).sum(2) + (w @ self.gram * w).sum(2)


def normal_equations(
    layout: Layout,
    weight: Tensor,
    pairs: Iterable[tuple[Tensor, Tensor]],
    generator: torch.Generator,
    workers: Workers = ALONE,
) -> NormalEquations:
    """Normal equations of the layer's response to the float input, expressed in its quantized input.

    Args:
        layout: of the layer.
        weight: its float weight.
        pairs: batches of the layer's input, quantized and float.
        generator: draws positions on large maps.
        workers: processes with other samples.
    """
    matrix = layout.matrix(weight)
    sums: list[Tensor] = []
    count = 0
    for quantized, floating in pairs:
        positions = layout.draw(floating, generator)
        per_sample = max(1, matrix.shape[0] * matrix.shape[2] * len(positions))
        # Products of whole batches draw their rows over the batch: they are not cut.
        size = len(floating) if isinstance(layout, _Product) else max(1, BATCH_ELEMENTS // per_sample)
        for q, f in zip(torch.split(quantized, size), torch.split(floating, size), strict=True):
            x, y = layout.rows(q, positions), layout.rows(f, positions) @ matrix.transpose(1, 2)
            parts = (x.transpose(1, 2) @ x, y.transpose(1, 2) @ x, y.square().sum(1), x.sum(1), y.sum(1))
            count += x.shape[1]
            doubles = [part.double() for part in parts]
            sums = [total.add_(part) for total, part in zip(sums, doubles, strict=True)] if sums else doubles
    rows = torch.tensor([float(count)], dtype=torch.float64, device=matrix.device)
    workers.mean_([*sums, rows])
    return NormalEquations(*(total / rows for total in sums))
