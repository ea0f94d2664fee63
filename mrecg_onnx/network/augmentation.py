"""Random variants of images: mirrored, shifted, cropped and brought back to size; and images mixed with each other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Mixing", "augmented", "mirrored"]

#: Largest shift, as a share of the side: 4 pixels of CIFAR's 32, as usual in training there.
SHIFT = 1 / 8
#: Least share of the area that a crop keeps, and how far its proportions are from the image's at most. Training crops down to
#: .08: what a network answers to pieces without an object says little of its work.
AREA, RATIO = 0.5, 4 / 3


def mirrored(images: Tensor, layout: str = "nchw") -> Tensor:
    """``images`` with left and right exchanged; the same shape."""
    return images.flip(2 if layout == "nhwc" else -1)


@dataclass(frozen=True)
class Mixing:
    """Which images of a batch are mixed with which, and how much of each stays (mixup: Zhang et al. 2018, eq. 1).

    Without labels: the float network says what a mixture is (as in Beyer et al. 2022, "function matching").

    Attributes:
        partner: another image for each, int64 of shape [N].
        share: what stays of each image, in [0, 1], float32 of shape [N]; 1 leaves it as it is.
    """

    partner: Tensor
    share: Tensor

    @classmethod
    def draw(cls, count: int, generator: torch.Generator) -> Mixing:
        """One half of ``count`` images mixed with others, each at a share drawn evenly; ``generator`` is of the CPU."""
        partner = torch.randperm(count, generator=generator)
        share = torch.rand(count, generator=generator)
        alone = torch.rand(count, generator=generator) < 0.5
        return cls(partner, torch.where(alone, 1.0, share))

    def mix(self, images: Tensor) -> Tensor:
        """The mixtures of ``images`` [N, ...]; same shape, type and order in memory."""
        share = self.share.to(images.device).view(-1, *[1] * (images.dim() - 1))
        values = images if images.is_floating_point() else images.float()
        made = torch.lerp(values[self.partner.to(images.device)], values, share.to(values.dtype))
        return made if images.is_floating_point() else made.round().to(images.dtype)


def augmented(images: Tensor, kind: str, generator: torch.Generator, layout: str = "nchw") -> Tensor:
    """A random variant of every image.

    Args:
        images: [N, C, H, W], or [N, H, W, C] with ``layout`` "nhwc"; any type and device.
        kind: "flip": half of them mirrored; "shift": also moved by up to an eighth of the side, reflected at the border;
            "crop": also a part of half the area or more, brought back to size (bilinear).
        generator: of the CPU, where all choices are drawn: a seed gives the same variants on every device.
        layout: order of the axes.

    Returns:
        Shape, type and device of ``images``.

    Raises:
        KeyError: there is no such kind.
    """
    x = images.movedim(-1, 1) if layout == "nhwc" else images
    make = {"flip": _moved, "shift": _moved, "crop": _cropped}[kind]
    flip = torch.rand(len(x), generator=generator) < 0.5
    made = make(x, flip, generator, SHIFT if kind == "shift" else 0.0)
    return made.movedim(1, -1) if layout == "nhwc" else made


def _moved(x: Tensor, flip: Tensor, generator: torch.Generator, share: float) -> Tensor:
    """Mirrored where ``flip`` says so, then moved by up to ``share`` of the side: pixels stay as they are."""
    lines = []
    for axis in (2, 3):
        size = x.shape[axis]
        most = int(size * share)
        offsets = torch.randint(-most, most + 1, (len(x), 1), generator=generator)
        lines.append(_reflected(torch.arange(size) + offsets, size))
    lines[1] = torch.where(flip[:, None], x.shape[3] - 1 - lines[1], lines[1])
    rows, columns = (line.to(x.device) for line in lines)
    number = torch.arange(len(x), device=x.device)[:, None, None]
    return x.movedim(1, -1)[number, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def _reflected(places: Tensor, size: int) -> Tensor:
    """``places`` beyond 0..size - 1 reflected at the outermost pixels."""
    period = max(1, 2 * (size - 1))
    places = places.abs() % period
    return torch.minimum(places, period - places).clamp_(max=size - 1)


def _cropped(x: Tensor, flip: Tensor, generator: torch.Generator, _: float) -> Tensor:
    """A part of each image, mirrored where ``flip`` says so, at the size of the whole."""
    share, bend = torch.rand(2, len(x), generator=generator, dtype=torch.float64)
    area, ratio = AREA + (1 - AREA) * share, torch.exp((2 * bend - 1) * math.log(RATIO))
    height, width = (area / ratio).sqrt().clamp(max=1.0), (area * ratio).sqrt().clamp(max=1.0)
    room = torch.stack((1 - height, 1 - width))
    down, right = (2 * torch.rand(2, len(x), generator=generator, dtype=torch.float64) - 1) * room
    zero = torch.zeros_like(height)
    across = torch.where(flip, -width, width)
    maps = torch.stack((torch.stack((across, zero, right), 1), torch.stack((zero, height, down), 1)), 1)
    values = x if x.is_floating_point() else x.float()
    grid = functional.affine_grid(maps.to(x.device, values.dtype), list(x.shape), align_corners=False)
    made = functional.grid_sample(values, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return made if x.is_floating_point() else made.round().to(x.dtype)
