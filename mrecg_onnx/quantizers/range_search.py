"""The search for the range of a grid: the least error of the values that are rounded to it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrecg_onnx.quantizers.fake_quantization import limited_
from mrecg_onnx.quantizers.grids import LEAST_SCALE, Grid, grid_from_range, weight_codes

__all__ = ["P_NORM", "search_range", "search_weight_range"]

#: Exponent of the error that the range search minimises (BRECQ, QDrop and MRECG all use 2.4).
P_NORM = 2.4
#: Candidate ranges (min, max) * (1 - 0.01 i): i = 0..94 for one range per tensor, 0..79 per channel (MQBench observers).
PER_TENSOR_CANDIDATES, PER_CHANNEL_CANDIDATES = 95, 80
#: The coarse net of the search for scale and zero point, how many of its best are refined, and the ratio of scales that is fine.
SCALES, ZERO_POINTS, SEEDS, FINEST = 12, 8, 3, 1.01
#: Values of the coarsest summary of a channel: so many for each code, and at least; each finer one has a multiple of them.
SUMMARY_PER_CODE, LEAST_SUMMARY, FINER = 4, 256, 4
#: Ranges that shrink together of which a finer summary decides, and grids of each kind that are compared on the finest one.
KEPT, FINALISTS = 12, 5
#: Values that are quantized at a time: half a megabyte, which the caches of small machines like; a GPU needs more to be busy.
CHUNK, CHUNK_CUDA = 1 << 17, 1 << 22


def search_range(
    x: Tensor,
    bits: int,
    *,
    axis: int | None = None,
    symmetric: bool = False,
    full: bool = False,
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

    Many values are searched in summaries of them (:func:`_summaries`); the best few grids are compared on the finest.

    Args:
        x: the values, any shape.
        bits: width, 2..8.
        axis: channel axis for one grid per channel, None for one per tensor.
        symmetric: codes around zero with zero_point 0.
        full: those begin at -2^(bits-1) and not one above.
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
    search = _Search(_levels(x, axis, channels, bits), bits, symmetric, p, low, high, full=full)
    shrink = 1.0 - 0.01 * torch.arange(steps, device=x.device, dtype=channels.dtype)[:, None]  # [K, 1]
    shrunk = grid_from_range(low * shrink, high * shrink, bits, symmetric=symmetric, full=full)
    families = [search.foremost(*shrunk, KEPT, level=0)]
    if bool(search.free.any()):
        both = search.zero_points(shrunk[0]) if steps == 1 else search.scales_and_zero_points(float(shrink[-1]))
        families.append(both)
    scale, zero = search.best(families)
    if axis is None:
        scale, zero = scale[0], zero[0]
    return Grid(scale, zero, bits, axis, symmetric, full=full)


def search_weight_range(
    weight: Tensor,
    bits: int,
    *,
    axis: int | None,
    symmetric: bool = False,
    p: float = P_NORM,
    candidates: int | None = None,
) -> Grid:
    """:func:`search_range` of a weight: with the codes that weights of ``bits`` bits have (:func:`weight_codes`)."""
    around, full = weight_codes(bits, symmetric=symmetric)
    return search_range(weight, bits, axis=axis, symmetric=around, full=full, p=p, candidates=candidates)


#: Scales and zero points of some grids of each channel, both of shape [K, C].
_Grids = tuple[Tensor, Tensor]
#: Values [C, n], and the share of each in the mean, None where all count alike.
_Level = tuple[Tensor, Tensor | None]


class _Search:
    """Measures grids on the values of one tensor, or on summaries of them.

    Attributes:
        free: channels with values of both signs on a grid that is not symmetric, shape (C,): the zero point of others is given.
        levels: as given (:func:`_levels`).
    """

    def __init__(
        self,
        levels: list[_Level],
        bits: int,
        symmetric: bool,
        p: float,
        low: Tensor,
        high: Tensor,
        *,
        full: bool = False,
    ) -> None:
        self.p, self.low, self.high = p, low, high
        top = (1 << (bits - 1)) - 1
        self.qmin, self.qmax = -top - full if symmetric else 0, top if symmetric else (1 << bits) - 1
        self.free = (low < 0) & (high > 0) & (not symmetric)
        self.full = grid_from_range(low, high, bits, symmetric=symmetric, full=full)[0]
        self.levels = levels

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
                e = limited_(torch.round(exact), lower[at][:, :, None], upper[at][:, :, None]).sub_(exact)
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
        scale = (most_scale * step ** -torch.arange(SCALES, **like)[:, None]).clamp(min=LEAST_SCALE)
        least, most = self.bounds(scale)
        place = torch.linspace(0.0, 1.0, places, **like)[:, None, None]
        scale, zero = scale.repeat(places, 1), torch.round(least + place * (most - least)).flatten(0, 1)
        scale, zero = self.foremost(scale, zero, SEEDS, level=0)
        stride = (self.qmax + 1) / places
        while step > FINEST or stride > 1:
            step, stride = step**0.25, max(1.0, stride / 2)
            grown = step ** torch.arange(-2.0, 3.0, **like)[:, None, None, None]
            moved = round(stride) * torch.arange(-1.0, 2.0, **like)[:, None, None]
            scale = torch.minimum(scale * grown, most_scale).clamp(min=LEAST_SCALE).expand(-1, 3, -1, -1).flatten(0, 2)
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
    if p == 1.5:
        return e.abs_().mul_(e.sqrt())
    e.square_()
    if p == 2.0:
        return e
    if e.device.type == "cpu":  # numpy takes a third of torch's time
        with np.errstate(divide="ignore"):
            np.log2(e.numpy(), out=e.numpy())
    else:
        e.log2_()
    return e.mul_(p / 2.0).exp2_()


#: The values that were searched last, and their levels: several norms search the same ones.
_last: tuple[weakref.ref[Tensor], tuple[int, int | None, int], list[_Level]] | None = None


def _levels(x: Tensor, axis: int | None, channels: Tensor, bits: int) -> list[_Level]:
    """Summaries of ``channels`` [C, n], the values of ``x``, from the coarsest on, and all values where they are few."""
    global _last  # noqa: PLW0603 - recognized by the tensor itself
    key = (x._version, axis, bits)  # noqa: SLF001 - torch's count of changes in place
    if _last is not None and _last[0]() is x and _last[1] == key:
        return _last[2]
    size = max(LEAST_SUMMARY, SUMMARY_PER_CODE << bits)
    sizes = (size, FINER * size, FINER * FINER * size)
    found: list[_Level] = [*_summaries(channels, sizes)]
    if len(found) == len(sizes):
        _last = weakref.ref(x), key, found
    else:
        found.append((channels, None))
        _last = None
    return found


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
