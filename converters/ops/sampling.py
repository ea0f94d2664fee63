"""Operators that read an image at places between its elements, or at others than its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mrecg_onnx.converters.ops.common import (
    OnnxGraph,
    OnnxNode,
    OperationConverterResult,
    rank_of,
    reject,
    result,
)
from mrecg_onnx.converters.ops.elementwise import Elementwise
from mrecg_onnx.converters.ops.shape import Static, list_attribute, static
from mrecg_onnx.converters.registry import converter

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["OnnxCenterCropPad", "OnnxCol2Im"]

_GRID_MODES = {
    "bilinear": "bilinear",
    "linear": "bilinear",
    "nearest": "nearest",
    "bicubic": "bicubic",
    "cubic": "bicubic",
}


@converter("GridSample", 16)
def _grid_sample(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    wanted = str(node.attributes.get("mode", "linear"))
    if wanted not in _GRID_MODES:
        raise reject(node, f"mode {wanted}")
    mode, rank = _GRID_MODES[wanted], rank_of(node, 0, graph)
    if rank not in ({4} if mode == "bicubic" else {4, 5}):
        raise reject(node, f"mode {wanted} and {'unknown' if rank is None else rank - 2} spatial axes")
    padding = node.attributes.get("padding_mode", "zeros")
    align = bool(node.attributes.get("align_corners", 0))

    def sample(x: Tensor, grid: Tensor) -> Tensor:
        return F.grid_sample(x, grid.to(x.dtype), mode, padding, align)

    return result(Elementwise(sample), node)


class OnnxAffineGrid(Static):
    """ONNX AffineGrid.

    Attributes:
        align_corners: -1 and 1 are the centres of the corner elements, not their outer edges.
    """

    align_corners = False

    def compute(self, x: Tensor, *arguments: list[int] | None) -> Tensor:
        """Make the grid of the transformations ``x``, (N, 2, 3) or (N, 3, 4)."""
        (size,) = arguments
        assert size is not None
        return F.affine_grid(x, size, align_corners=self.align_corners)


@converter("AffineGrid", 20)
def _affine_grid(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return static(OnnxAffineGrid, node, graph, [1], align_corners=bool(node.attributes.get("align_corners", 0)))


class OnnxCenterCropPad(Static):
    """ONNX CenterCropPad.

    Attributes:
        axes: The axes the sizes are of; None for all.
    """

    axes: Sequence[int] | None = None

    def compute(self, x: Tensor, *arguments: list[int] | None) -> Tensor:
        """Cut or pad with zeros, evenly on both sides; where the difference is odd, one more at the end."""
        (sizes,) = arguments
        assert sizes is not None
        for axis, wanted in zip(self.axes if self.axes is not None else range(x.ndim), sizes, strict=True):
            missing = wanted - x.shape[axis]
            if missing < 0:
                x = x.narrow(axis, -missing // 2, wanted)
            elif missing:
                margins = [0] * 2 * x.ndim
                place = 2 * (x.ndim - 1 - axis % x.ndim)
                margins[place], margins[place + 1] = missing // 2, missing - missing // 2
                x = F.pad(x, margins)
        return x


@converter("CenterCropPad", 18)
def _center_crop_pad(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return static(OnnxCenterCropPad, node, graph, [1], axes=list_attribute(node, "axes"))


class OnnxCol2Im(Static):
    """ONNX Col2Im over two spatial axes.

    Attributes:
        strides: Steps of the blocks.
        dilations: Distance between the elements of a block.
        pads: Begins, then ends.
    """

    strides: Sequence[int] = (1, 1)
    dilations: Sequence[int] = (1, 1)
    pads: Sequence[int] = (0, 0, 0, 0)

    def compute(self, x: Tensor, *arguments: list[int] | None) -> Tensor:
        """Add the blocks, columns of (N, C * block, L), up to an image."""
        image, block = arguments
        assert image is not None
        assert block is not None
        top, left, bottom, right = self.pads
        padded = [image[0] + top + bottom, image[1] + left + right]
        y = F.fold(x, padded, block, self.dilations, 0, self.strides)
        return y[..., top : top + image[0], left : left + image[1]]


@converter("Col2Im", 18)
def _col2im(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    options = {
        name: given for name in ("strides", "dilations", "pads") if (given := list_attribute(node, name)) is not None
    }
    image = graph.value_info.get(node.input_values[1])
    constant = node.input_values[1] in graph.initializers
    axes = graph.initializers[node.input_values[1]].proto.dims if constant else None
    if axes is None and image is not None:
        axes = [dim.dim_value for dim in image.type.tensor_type.shape.dim]
    if list(axes or ()) != [2]:
        raise reject(node, "other than two spatial axes")
    return static(OnnxCol2Im, node, graph, [1, 2], **options)


@converter("Det", 11)
def _det(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    return result(Elementwise(torch.linalg.det), node)
