"""The table of range estimators: from a sample of a tensor's values to its grid (docs/method.md 11)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import lambertw, ndtr
from torch import Tensor

from mrecg_onnx.methods import METHODS
from mrecg_onnx.quantizers.grids import Grid
from mrecg_onnx.quantizers.range_search import P_NORM, search_range
from mrecg_onnx.quantizers.settings import RangeSettings

__all__ = [
    "NORMS",
    "RANGES",
    "Estimator",
    "Ranges",
    "aciq",
    "chosen_ranges",
    "entropy",
    "gauss_clip",
    "is_laplace",
    "laplace_clip",
    "min_max",
    "mse",
    "percentile",
    "range_name",
    "ranges_of",
]

#: (sample of the values, bits, true minimum, true maximum) -> grid of the tensor. Minimum and maximum have shape ().
Estimator = Callable[[Tensor, int, Tensor, Tensor], Grid]

#: Norms that propose a range where the output decides; the papers' own comes first.
NORMS = (P_NORM, 1.0, 1.5, 2.0)
#: Bins of the histogram behind the entropy range, and candidate ranges tried on it (TensorRT: 2048 bins, every one of them).
BINS, ENTROPY_CANDIDATES = 2048, 128
#: sigma / b from which Laplace's density explains values better than Gauss's: log(2 b) + 1 = log(2 pi e sigma^2) / 2.
LAPLACE_FROM = 2.0 * math.e / math.sqrt(2.0 * math.pi * math.e)


@dataclass(frozen=True)
class Ranges:
    """One row.

    Attributes:
        proposals: estimators; where there are several, the network's output chooses among their grids.
        min_max_weights: weights are not searched either, their grids cover the whole channel.
    """

    proposals: tuple[Estimator, ...]
    min_max_weights: bool = False


def _grid(low: Tensor | float, high: Tensor | float, bits: int, values: Tensor) -> Grid:
    """The grid of a range; of the whole zero points on either side of the range's own the one that suits ``values`` better.

    The nearest one may cut off all values of one sign: at 4 bits that of -0.28 to 10 is 0.
    """
    least, most = (torch.as_tensor(end, dtype=torch.float32, device=values.device) for end in (low, high))
    return search_range(values, bits, low=least, high=most, candidates=1)


def mse(values: Tensor, bits: int, low: Tensor, high: Tensor, *, p: float = P_NORM) -> Grid:
    """The range of least mean |x - Q(x)|^p (the papers' search)."""
    return search_range(values, bits, p=p, low=low, high=high)


def min_max(values: Tensor, bits: int, low: Tensor, high: Tensor) -> Grid:
    """The whole range."""
    return _grid(low, high, bits, values)


def percentile(values: Tensor, bits: int, low: Tensor, high: Tensor, *, share: float = 99.99) -> Grid:
    """The range between the (100 - share)th and the share-th percentile: as much is cut off on either side."""
    x = values.detach().reshape(-1).double().cpu().numpy()
    ends = np.percentile(x, [100.0 - share, share])
    return _grid(max(float(ends[0]), float(low)), min(float(ends[1]), float(high)), bits, values)


def entropy(values: Tensor, bits: int, low: Tensor, high: Tensor) -> Grid:
    """The range whose clipped histogram loses least information on 2^bits levels (Migacz 2017, TensorRT).

    TensorRT takes |x|; here both ends shrink together towards 0, which is the same for values of one sign, and then, where
    values have both, the upper and the lower one alone: most of what SiLU makes lies close to its lower end. Zeros are on
    every grid and do not count: behind a Relu they would outweigh all other bins.
    """
    x = values.detach().reshape(-1).float().cpu().numpy()
    least, most = min(float(low), 0.0), max(float(high), 0.0)
    if not most - least > 0.0 or not np.any(x):
        return _grid(least, most, bits, values)
    counts, _ = np.histogram(x[x != 0.0], BINS, (least, most))
    zero = -least / (most - least) * BINS  # where 0 lies, in bins
    shares = np.linspace(1.0, 2.0**bits / BINS, ENTROPY_CANDIDATES)

    def best(pairs: Iterable[tuple[float, float]]) -> tuple[float, float, float]:
        def loss(below: float, above: float) -> float:
            return _divergence(
                counts, math.floor(zero - zero * below), math.ceil(zero + (BINS - zero) * above), 2**bits
            )

        # Of equals the widest.
        return min((loss(below, above), -below, -above) for below, above in pairs)

    _, below, above = best((share, share) for share in shares)
    if least < 0.0 < most:
        starts = {1.0, -below}
        _, below, above = best([(-below, -above), *((start, share) for start in starts for share in shares)])
        _, below, above = best([(-below, -above), *((share, -above) for share in shares)])
    return _grid(least * -below, most * -above, bits, values)


def _divergence(counts: npt.NDArray[np.int64], first: int, last: int, levels: int) -> float:
    """KL divergence of the histogram cut to bins first..last-1 from itself on ``levels`` levels, in nats.

    What lies outside counts at the ends of the cut histogram, and the coarse one does not know of it: that is the price of
    a narrow range. Each level spreads its count evenly over those of its bins that hold anything.
    """
    inside = counts[first:last]
    if len(inside) < levels or not inside.any():
        return math.inf
    reference = inside.astype(np.float64)
    reference[0] += counts[:first].sum()
    reference[-1] += counts[last:].sum()
    level = np.arange(len(inside)) * levels // len(inside)
    held = np.bincount(level, inside > 0, levels)
    coarse = np.where(inside > 0, (np.bincount(level, inside, levels) / np.maximum(held, 1))[level], 0.0)
    p, q = reference / reference.sum(), coarse / coarse.sum()
    seen = p > 0
    # A bin that only the cut-off values fill has no share in the coarse histogram: smoothed as in TensorRT's samples.
    return float(np.sum(p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-9))))


@cache
def laplace_clip(bits: int) -> float:
    """Clipping value alpha / b: minimises 2 b^2 exp(-alpha / b) + alpha^2 / (3 4^bits) (Banner 2019, eq. 5).

    2.83, 3.89 and 5.03 at 2, 3 and 4 bits: the derivative's root t = alpha / b solves t exp(t) = 3 4^bits, Lambert's W.
    """
    return float(lambertw(3.0 * 4.0**bits).real)


@cache
def gauss_clip(bits: int) -> float:
    """Clipping value alpha / sigma of the least clipping and rounding noise for a normal density.

    1.71, 2.15 and 2.55 at 2, 3 and 4 bits. The noise is 2 int_t^inf (x - t)^2 phi(x) dx + t^2 / (3 4^bits) with
    t = alpha / sigma (Banner 2019, appendix).
    """
    from scipy.optimize import brentq  # noqa: PLC0415 - a quarter of a second to load, for one kind of range

    def slope(t: float) -> float:
        density = math.exp(-t * t / 2.0) / math.sqrt(2.0 * math.pi)
        return float(2.0 * t / (3.0 * 4.0**bits) - 4.0 * (density - t * float(ndtr(-t))))

    return float(brentq(slope, 0.0, 20.0))


def is_laplace(b: Tensor, sigma: Tensor) -> Tensor:
    """True where values of mean magnitude b and deviation sigma (around their centre) are more likely Laplace's than Gauss's."""
    return sigma > LAPLACE_FROM * b


def aciq(values: Tensor, bits: int, low: Tensor, high: Tensor) -> Grid:
    """The range [mu - alpha, mu + alpha] of analytic clipping, with the density that fits better (Banner 2019, ACIQ).

    Values of one sign are a folded density: [0, alpha] on 2^bits levels is half of [-alpha, alpha] on 2^(bits + 1), so
    alpha is that of one bit more, with b and sigma taken from what is not 0 (a Relu's zeros are no part of the density).
    No range is wider than the values.
    """
    x = values.detach().reshape(-1).float()
    one_sided = float(low) >= 0.0 or float(high) <= 0.0
    if one_sided:
        x = x[x != 0]
    if not x.numel():
        return min_max(values, bits, low, high)
    centre = x.new_zeros(()) if one_sided else x.mean()
    b, sigma = (x - centre).abs().mean(), (x - centre).square().mean().sqrt()
    width = bits + one_sided
    alpha = b * laplace_clip(width) if bool(is_laplace(b, sigma)) else sigma * gauss_clip(width)
    return _grid(torch.maximum(centre - alpha, low.to(x)), torch.minimum(centre + alpha, high.to(x)), bits, values)


RANGES: dict[str, Ranges] = {
    "output": Ranges(tuple(partial(mse, p=p) for p in NORMS)),
    "mse": Ranges((mse,)),
    "minmax": Ranges((min_max,), min_max_weights=True),
    "percentile": Ranges((percentile,)),
    "entropy": Ranges((entropy,)),
    "aciq": Ranges((aciq,)),
}


def chosen_ranges(settings: RangeSettings) -> Ranges:
    """The row that ``settings`` ask for."""
    return ranges_of(range_name(settings), settings.percentile)


def range_name(settings: RangeSettings) -> str:
    """Name of the row that ``settings`` ask for; with "auto" the method's own."""
    return METHODS[settings.method].ranges if settings.range == "auto" else settings.range


def ranges_of(name: str, share: float) -> Ranges:
    """The row called ``name``, with the percentile ``share`` put in."""
    return Ranges((partial(percentile, share=share),)) if name == "percentile" else RANGES[name]
