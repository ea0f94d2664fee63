"""Resize and Upsample: per axis, each output is a weighted sum of a few inputs.

Coordinates, rounding and weights follow the ONNX operator specification (Resize 19); they are computed in float32 as
ONNX Runtime does, since rounding to nearest depends on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from mrecg_onnx.converters.ops.common import (
    OnnxGraph,
    OnnxNode,
    OperationConverterResult,
    constant_of,
    has_input,
    input_name,
    reject,
    result,
)
from mrecg_onnx.converters.ops.shape import list_attribute
from mrecg_onnx.converters.registry import converter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Indices = NDArray[np.int64]

__all__ = ["OnnxResize", "ResizeSettings"]

_F = np.float32


@dataclass(frozen=True)
class ResizeSettings:
    """The attributes of Resize, with the specification's defaults."""

    mode: str = "nearest"
    coordinates: str = "half_pixel"
    nearest_mode: str = "round_prefer_floor"
    cubic_coeff_a: float = -0.75
    exclude_outside: bool = False
    extrapolation_value: float = 0.0
    antialias: bool = False
    axes: tuple[int, ...] | None = None
    policy: str = "stretch"


class OnnxResize(nn.Module):
    """ONNX Resize.

    Attributes:
        settings: The node's attributes.
        scales: Factor per axis, None where sizes are given or the factors are an input.
        sizes: Size per axis of the result, likewise.
        roi: Starts, then ends, of the region cut out by ``tf_crop_and_resize``, as fractions; None where it is an input.
        takes: What the second argument of ``forward`` is: "scales", "sizes", or "" if there is none.
    """

    def __init__(
        self,
        settings: ResizeSettings,
        scales: list[float] | None = None,
        sizes: list[int] | None = None,
        roi: list[float] | None = None,
        takes: str = "",
    ) -> None:
        super().__init__()
        self.settings, self.scales, self.sizes, self.roi, self.takes = settings, scales, sizes, roi, takes

    def forward(self, x: Tensor, given: Tensor | None = None, roi: Tensor | None = None) -> Tensor:
        """Resize ``x`` along its axes."""
        scales, sizes = self.scales, self.sizes
        bounds = self.roi if roi is None else [float(value) for value in roi.tolist()]
        if given is not None and self.takes == "scales":
            scales = [float(value) for value in given.tolist()]
        elif given is not None:
            sizes = [int(value) for value in given.tolist()]
        axes = list(range(x.ndim)) if self.settings.axes is None else [axis % x.ndim for axis in self.settings.axes]
        factors, lengths = self._targets([x.shape[axis] for axis in axes], scales, sizes)
        outside: Tensor | None = None
        for place, axis in enumerate(axes):
            size = x.shape[axis]
            region = (0.0, 1.0) if not bounds else (bounds[place], bounds[place + len(axes)])
            if lengths[place] == size and factors[place] == 1 and region == (0.0, 1.0):
                continue
            positions = _positions(self.settings.coordinates, size, lengths[place], factors[place], region)
            indices, weights = _taps(self.settings, positions, size, factors[place])
            x = _combine(x, axis, indices, weights)
            if self.settings.coordinates == "tf_crop_and_resize":
                missed = torch.from_numpy((positions < 0) | (positions > size - 1)).to(x.device)
                missed = missed.reshape(-1, *(1,) * (x.ndim - 1 - axis))
                outside = missed if outside is None else outside | missed
        if outside is not None:
            x = torch.where(outside, torch.tensor(self.settings.extrapolation_value, dtype=x.dtype), x)
        return x

    def _targets(
        self, current: list[int], scales: Sequence[float] | None, sizes: Sequence[int] | None
    ) -> tuple[list[float], list[int]]:
        """Return the factor and the resulting length of each axis."""
        if sizes is None:
            assert scales is not None
            return list(scales), [math.floor(size * factor) for size, factor in zip(current, scales, strict=True)]
        factors = [wanted / size for wanted, size in zip(sizes, current, strict=True)]
        if self.settings.policy == "stretch":
            return factors, list(sizes)
        factor = min(factors) if self.settings.policy == "not_larger" else max(factors)
        return [factor] * len(current), [math.floor(size * factor + 0.5) for size in current]


def _positions(mode: str, size: int, length: int, factor: float, region: tuple[float, float]) -> Floats:
    """Return where each of ``length`` outputs lies on an axis of ``size`` inputs."""
    at = np.arange(length, dtype=_F)
    half, last = _F(0.5), _F(size - 1)
    centres = (at + half) / _F(factor)
    start, end = (_F(bound) for bound in region)
    rule = {
        "half_pixel": lambda: centres - half,
        "pytorch_half_pixel": lambda: centres - half if length > 1 else np.zeros(length, _F),
        "half_pixel_symmetric": lambda: _F(size) / _F(2) * (1 - _F(length) / _F(factor * size)) + centres - half,
        "align_corners": lambda: at * last / _F(max(length - 1, 1)),
        "tf_half_pixel_for_nn": lambda: centres,
        "asymmetric": lambda: at / _F(factor),
        "tf_crop_and_resize": lambda: (
            start * last + at * (end - start) * last / _F(length - 1)
            if length > 1
            else np.full(length, half * (start + end) * last, _F)
        ),
    }[mode]
    positions: Floats = rule().astype(_F)  # type: ignore[no-untyped-call]
    return positions


def _taps(settings: ResizeSettings, positions: Floats, size: int, factor: float) -> tuple[Indices, Floats | None]:
    """Return, for each output, the inputs it is made of and their weights (None: a single one with weight 1)."""
    if settings.mode == "nearest":
        return _nearest(settings.nearest_mode, positions).clip(0, size - 1)[:, None], None
    support = 1 if settings.mode == "linear" else 2
    stretch = min(factor, 1.0) if settings.antialias else 1.0
    reach = math.ceil(support / stretch)
    low = np.floor(positions).astype(np.int64)
    indices = low[:, None] + np.arange(1 - reach, reach + 1)
    distance = np.abs(indices - positions[:, None]) * _F(stretch)
    linear = settings.mode == "linear"
    weights = np.clip(1 - distance, 0, None) if linear else _cubic(distance, settings.cubic_coeff_a)
    if settings.exclude_outside:
        weights = np.where((indices < 0) | (indices >= size), 0, weights)
    if settings.exclude_outside or settings.antialias:
        weights = weights / weights.sum(axis=1, keepdims=True)
    return indices.clip(0, size - 1), weights.astype(_F)


def _nearest(mode: str, positions: Floats) -> Indices:
    rounded = {
        "round_prefer_floor": lambda: np.ceil(positions - _F(0.5)),
        "round_prefer_ceil": lambda: np.floor(positions + _F(0.5)),
        "floor": lambda: np.floor(positions),
        "ceil": lambda: np.ceil(positions),
    }[mode]
    found: Indices = rounded().astype(np.int64)  # type: ignore[no-untyped-call]
    return found


def _cubic(distance: Floats, a: float) -> Floats:
    """Return the weights of cubic convolution (Keys 1981, as cited in the ONNX operator specification)."""
    d = distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((d - 5) * d + 8) * d * a - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def _combine(x: Tensor, axis: int, indices: Indices, weights: Floats | None) -> Tensor:
    """Gather along ``axis`` and sum with the weights."""
    taps = torch.from_numpy(indices).to(x.device)
    if weights is None:
        return x.index_select(axis, taps[:, 0])
    factors = torch.from_numpy(weights).to(x.device, x.dtype)
    shape = (-1, *(1,) * (x.ndim - 1 - axis))
    total = x.index_select(axis, taps[:, 0]) * factors[:, 0].reshape(shape)
    for tap in range(1, taps.shape[1]):
        total = total + x.index_select(axis, taps[:, tap]) * factors[:, tap].reshape(shape)
    return total


def _settings(node: OnnxNode) -> ResizeSettings:
    attributes = node.attributes
    axes = list_attribute(node, "axes")
    settings = ResizeSettings(
        mode=attributes.get("mode", "nearest"),
        coordinates=attributes.get("coordinate_transformation_mode", "half_pixel"),
        nearest_mode=attributes.get("nearest_mode", "round_prefer_floor"),
        cubic_coeff_a=attributes.get("cubic_coeff_a", -0.75),
        exclude_outside=bool(attributes.get("exclude_outside", 0)),
        extrapolation_value=attributes.get("extrapolation_value", 0.0),
        antialias=bool(attributes.get("antialias", 0)),
        axes=None if axes is None else tuple(axes),
        policy=attributes.get("keep_aspect_ratio_policy", "stretch"),
    )
    if settings.mode not in {"nearest", "linear", "cubic"}:
        raise reject(node, f"mode {settings.mode}")
    return settings


def _make(
    node: OnnxNode, graph: OnnxGraph, settings: ResizeSettings, scales_at: int, sizes_at: int | None
) -> OperationConverterResult:
    """Make the module; whichever of scales and sizes is computed by the graph becomes its second argument."""
    uses_sizes = sizes_at is not None and has_input(node, sizes_at)
    index = sizes_at if uses_sizes and sizes_at is not None else scales_at
    given = constant_of(node, index, graph)
    crops = settings.coordinates == "tf_crop_and_resize"
    roi = constant_of(node, 1, graph) if crops else None
    if crops and not has_input(node, 1):
        raise reject(node, "no roi")
    if given is None:
        if not has_input(node, index):
            raise reject(node, "neither scales nor sizes")
        module = OnnxResize(settings, takes="sizes" if uses_sizes else "scales")
    elif uses_sizes:
        module = OnnxResize(settings, sizes=[int(value) for value in given.tolist()])
    else:
        module = OnnxResize(settings, scales=[float(value) for value in given.tolist()])
    if roi is not None:
        module.roi = [float(value) for value in roi.tolist()]
    names = ["" if given is not None else input_name(node, index), input_name(node, 1) if crops and roi is None else ""]
    return result(module, node, [input_name(node, 0), *names])


@converter("Resize", 11)
def _resize(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return _make(node, graph, _settings(node), 2, 3)


@converter("Resize", 10, 10)
@converter("Upsample", 9, 9)
def _old_resize(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    settings = ResizeSettings(node.attributes.get("mode", "nearest"), "asymmetric", "floor")
    return _make(node, graph, settings, 1, None)
