"""Pools over 1 to 3 spatial axes, with asymmetric pads, ceil_mode, dilations and count_include_pad as in ONNX."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrecg_onnx.converters.ops.common import (
    OnnxGraph,
    OnnxNode,
    OperationConverterResult,
    n_outputs,
    reject,
    result,
    same_pads,
)
from mrecg_onnx.converters.ops.elementwise import Elementwise
from mrecg_onnx.converters.registry import converter

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["OnnxAveragePool", "OnnxLpPool", "OnnxMaxPool", "Window"]

_AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAXIMUM = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class Window:
    """A sliding window: kernel, strides, dilations, pads.

    Attributes:
        kernel: Size of the window, one number per spatial axis, as all the others.
        strides: Its steps.
        dilations: Distance between its elements.
        pads: Begins, then ends; None where ``auto_pad`` decides.
        auto_pad: NOTSET, VALID, SAME_UPPER or SAME_LOWER.
        ceil_mode: Round the number of outputs up.
    """

    def __init__(self, node: OnnxNode) -> None:
        attributes = node.attributes
        self.kernel: list[int] = list(attributes["kernel_shape"])
        axes = len(self.kernel)
        if not 1 <= axes <= 3:
            raise reject(node, f"{axes} spatial axes")
        self.strides: list[int] = list(attributes.get("strides") or [1] * axes)
        self.dilations: list[int] = list(attributes.get("dilations") or [1] * axes)
        self.auto_pad: str = attributes.get("auto_pad", "NOTSET")
        self.pads: list[int] = list(attributes.get("pads") or [0] * 2 * axes)
        self.ceil_mode = bool(attributes.get("ceil_mode", 0))

    @property
    def geometry(self) -> dict[str, tuple[int, ...]] | None:
        """Kernel, stride and dilation, as convolutions have them; None where the pads depend on the input's size."""
        if self.auto_pad.startswith("SAME"):
            return None
        return {"kernel": tuple(self.kernel), "stride": tuple(self.strides), "dilation": tuple(self.dilations)}

    def place(self, sizes: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
        """Return begins, ends, and what ceil_mode needs beyond the ends, for an input of the given spatial sizes."""
        axes = len(self.kernel)
        pads = self.pads
        if self.auto_pad != "NOTSET":
            # Without the dilations, which ONNX Runtime leaves out here although the specification has them.
            pads = same_pads(self.auto_pad, sizes, self.kernel, self.strides, [1] * axes)
        begins, ends = pads[:axes], pads[axes:]
        beyond = []
        for axis, size in enumerate(sizes):
            extent = (self.kernel[axis] - 1) * self.dilations[axis] + 1
            room = size + begins[axis] + ends[axis] - extent
            steps = room / self.strides[axis]
            count = (math.ceil(steps) if self.ceil_mode else math.floor(steps)) + 1
            # A window that would start behind the input and its begin pad is left out (ONNX opset 22, torch, ORT).
            if self.ceil_mode and (count - 1) * self.strides[axis] >= size + begins[axis]:
                count -= 1
            beyond.append(max((count - 1) * self.strides[axis] - room, 0))
        return begins, ends, beyond

    def is_plain(self, begins: list[int], ends: list[int], beyond: list[int]) -> bool:
        """Tell whether torch's own pools can do it: even pads of at most half the kernel, nothing beyond."""
        half = all(2 * begin <= kernel for begin, kernel in zip(begins, self.kernel, strict=True))
        return begins == ends and not any(beyond) and half


def _pad(x: Tensor, begins: list[int], ends: list[int], value: float) -> Tensor:
    if not any(begins) and not any(ends):
        return x
    margins = [margin for pair in zip(reversed(begins), reversed(ends), strict=True) for margin in pair]
    return F.pad(x, margins, value=value)


def _add_up(x: Tensor, window: Window) -> Tensor:
    """Sum over the window at each of its places; ``x`` has been padded to fit."""
    axes = len(window.kernel)
    if all(dilation == 1 for dilation in window.dilations):
        return _AVERAGE[axes](x, window.kernel, window.strides) * math.prod(window.kernel)
    ones = torch.ones(1, 1, *window.kernel, dtype=x.dtype, device=x.device)
    flat = x.reshape(-1, 1, *x.shape[2:])
    y = _CONV[axes](flat, ones, None, window.strides, 0, window.dilations)
    return y.reshape(*x.shape[:2], *y.shape[2:])


class OnnxAveragePool(nn.Module):
    """ONNX AveragePool.

    Attributes:
        window: Where the window goes.
        count_include_pad: Padded zeros count as elements (those beyond the pads, which ceil_mode adds, never do).
        geometry: See :attr:`Window.geometry`.
    """

    def __init__(self, window: Window, count_include_pad: bool = False) -> None:
        super().__init__()
        self.window, self.count_include_pad, self.geometry = window, count_include_pad, window.geometry

    def forward(self, x: Tensor) -> Tensor:
        """Average over the window at each of its places."""
        window = self.window
        begins, ends, beyond = window.place(x.shape[2:])
        if window.is_plain(begins, ends, beyond) and all(dilation == 1 for dilation in window.dilations):
            pool = _AVERAGE[len(window.kernel)]
            return pool(x, window.kernel, window.strides, begins, count_include_pad=self.count_include_pad)
        counted = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype, device=x.device)
        counted = _pad(counted, begins, ends, 1.0 if self.count_include_pad else 0.0)
        counted = _pad(counted, [0] * len(beyond), beyond, 0.0)
        total = _pad(x, begins, [end + more for end, more in zip(ends, beyond, strict=True)], 0.0)
        return _add_up(total, window) / _add_up(counted, window)


class OnnxLpPool(nn.Module):
    """ONNX LpPool: the p-norm over the window."""

    def __init__(self, window: Window, p: float = 2) -> None:
        super().__init__()
        self.window, self.p = window, p

    def forward(self, x: Tensor) -> Tensor:
        """Take the norm over the window at each of its places."""
        begins, ends, beyond = self.window.place(x.shape[2:])
        padded = _pad(x.abs() ** self.p, begins, [end + more for end, more in zip(ends, beyond, strict=True)], 0.0)
        # The sum over equal non-negative numbers may come out as a tiny negative one where it is 0.
        return _add_up(padded, self.window).clamp_min(0) ** (1 / self.p)


class OnnxMaxPool(nn.Module):
    """ONNX MaxPool.

    Attributes:
        window: Where the window goes.
        with_indices: Return the places of the maxima too, counted over the whole flattened input.
        geometry: See :attr:`Window.geometry`; None with indices.
    """

    def __init__(self, window: Window, with_indices: bool = False) -> None:
        super().__init__()
        self.window, self.with_indices = window, with_indices
        self.geometry = None if with_indices else window.geometry

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Take the maximum over the window at each of its places."""
        window = self.window
        begins, ends, beyond = window.place(x.shape[2:])
        pool = _MAXIMUM[len(window.kernel)]
        if window.is_plain(begins, ends, beyond) and not self.with_indices:
            return pool(x, window.kernel, window.strides, begins, window.dilations)
        lowest = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
        ends = [end + more for end, more in zip(ends, beyond, strict=True)]
        y, indices = pool(
            _pad(x, begins, ends, lowest), window.kernel, window.strides, 0, window.dilations, return_indices=True
        )
        if not self.with_indices:
            return y
        return y, self._unpadded(indices, x.shape, begins, ends)

    @staticmethod
    def _unpadded(indices: Tensor, shape: torch.Size, begins: list[int], ends: list[int]) -> Tensor:
        """Turn indices into one padded map into indices into the whole unpadded input."""
        sizes = shape[2:]
        padded = [size + begin + end for size, begin, end in zip(sizes, begins, ends, strict=True)]
        flat, factor, rest = torch.zeros_like(indices), 1, indices
        for axis in reversed(range(len(sizes))):
            flat = flat + (rest % padded[axis] - begins[axis]) * factor
            rest = rest // padded[axis]
            factor *= sizes[axis]
        maps = torch.arange(shape[0] * shape[1], device=indices.device)
        return flat + maps.reshape(shape[0], shape[1], *(1,) * len(sizes)) * factor


@converter("AveragePool", 7)
def _average_pool(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    return result(OnnxAveragePool(Window(node), bool(node.attributes.get("count_include_pad", 0))), node)


@converter("MaxPool", 1)
def _max_pool(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    with_indices = n_outputs(node) > 1
    if with_indices and node.attributes.get("storage_order", 0):
        raise reject(node, "indices in column-major order")
    return result(OnnxMaxPool(Window(node), with_indices), node)


@converter("LpPool", 2)
def _lp_pool(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    return result(OnnxLpPool(Window(node), node.attributes.get("p", 2)), node)


def _spatial(x: Tensor) -> list[int]:
    return list(range(2, x.ndim))


def _global_average(x: Tensor) -> Tensor:
    return x.mean(_spatial(x), keepdim=True)


def _global_maximum(x: Tensor) -> Tensor:
    return x.amax(_spatial(x), keepdim=True)


@converter("GlobalAveragePool")
def _global_average_pool(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    return result(Elementwise(_global_average), node)


@converter("GlobalMaxPool")
def _global_max_pool(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    return result(Elementwise(_global_maximum), node)


@converter("GlobalLpPool", 2)
def _global_lp_pool(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    p = node.attributes.get("p", 2)
    return result(Elementwise(lambda x: (x.abs() ** p).sum(_spatial(x), keepdim=True) ** (1 / p)), node)
