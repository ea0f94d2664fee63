"""A sample of a tensor's values that knows their channels: for the range that the tensor has once it is rescaled or shifted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mrecg_onnx.quantizers import Grid, search_range

__all__ = ["ChannelSample"]

#: Values kept of each tensor.
SAMPLED_VALUES = 1 << 16


class ChannelSample:
    """What is kept of a tensor's values: an evenly spread sample, and the range and power of each channel."""

    def __init__(self, count: int) -> None:
        self.count = count  # images
        self.parts: list[tuple[Tensor, Tensor]] = []  # values, and the channels that they are of
        self.low, self.high = torch.tensor(math.inf), torch.tensor(-math.inf)
        self.fourth, self.seen = torch.tensor(0.0), 0

    def add(self, value: Tensor) -> None:
        """Values of some of the images, [n, C, ...]."""
        flat = value.flatten(2) if value.dim() > 2 else value[:, :, None]
        self.low = torch.minimum(self.low.to(flat), flat.amin((0, 2)))
        self.high = torch.maximum(self.high.to(flat), flat.amax((0, 2)))
        self.fourth = self.fourth.to(flat) + flat.square().square_().sum((0, 2))
        _, channels, places = flat.shape
        self.seen += len(flat) * places
        # A stride without a common factor with any extent walks through all channels, rows and columns.
        stride = max(1, self.count * channels * places // SAMPLED_VALUES)
        while math.gcd(stride, math.prod(value.shape[1:])) > 1:
            stride += 1
        first = flat.is_contiguous()  # else the channels are behind
        chosen = (flat if first else flat.transpose(1, 2)).reshape(-1)[::stride].clone()
        at = torch.arange(len(chosen), device=flat.device) * stride
        self.parts.append((chosen, (at // places if first else at) % channels))

    def grids(
        self, bits: int, norms: Sequence[float], scale: Tensor | float = 1.0, shift: Tensor | float = 0.0
    ) -> list[Grid]:
        """The grid of each norm for the values divided by ``scale``, or for what they are above ``shift``; both of shape (C,)."""
        values, channels = (torch.cat(parts) for parts in zip(*self.parts, strict=True))
        each, moved = torch.as_tensor(scale).to(self.low), torch.as_tensor(shift).to(self.low)
        ends = ((end - moved) / each for end in (self.low, self.high))
        low, high = (x.expand(len(self.low)) for x in ends)
        each, moved = each.expand_as(low), moved.expand_as(low)
        found = (values - moved[channels]) / each[channels]
        if moved.any():
            found, low, high = (x.clamp(min=0.0) for x in (found, low, high))
        return [search_range(found, bits, p=p, low=low.amin(), high=high.amax()) for p in norms]
