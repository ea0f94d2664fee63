"""How close two models are, and how sure one can be of it: accuracy, intervals, tests and signal-to-noise ratios."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "OutputSums",
    "add_sums",
    "agreement",
    "combined_error",
    "decibels",
    "mcnemar_p",
    "sqnr_db",
    "topk_correct",
    "wilson_interval",
]

Array = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]

#: An output whose variance is at most this share of its mean square is a constant, but for the rounding of float32.
CONSTANT = 1e-12


def decibels(signal: float, noise: float) -> float:
    """The ratio of two energies, ``10 log10(signal / noise)``, in dB.

    Args:
        signal: Energy of the signal, >= 0.
        noise: Energy of the error, >= 0.

    Returns:
        The ratio in dB; ``inf`` without noise, ``-inf`` for noise without a signal, ``nan`` where either is not finite.
    """
    if not (math.isfinite(signal) and math.isfinite(noise)):
        return math.nan
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


@dataclass
class OutputSums:
    """One output against the float one, summed up over batches: the one measure of outputs here (docs/method.md 19).

    The error of an output counts relative to the variance of the float output about its mean over all its values. Boxes in pixels
    then weigh as much as scores, and adding a constant to an output changes nothing.

    Attributes:
        count: values.
        total: sum of the float output's values.
        squares: sum of their squares.
        noise: sum of squared differences; of an output that holds no floats the number of values that differ.
        floating: False for integers and booleans, whose differences mean nothing (the indices of an ArgMax, say).
    """

    count: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    noise: float = 0.0
    floating: bool = True

    @classmethod
    def of(cls, reference: Array, other: Array) -> OutputSums:
        """The sums of ``reference`` (float model) and ``other``, of the same shape; float64.

        Raises:
            ValueError: The shapes differ.
        """
        if reference.shape != other.shape:
            raise ValueError(f"cannot compare shape {reference.shape} with shape {other.shape}")
        if reference.dtype.kind != "f":
            return cls(reference.size, noise=float(np.count_nonzero(reference != other)), floating=False)
        r = reference.astype(np.float64)
        return cls(r.size, float(r.sum()), float(np.square(r).sum()), float(np.square(r - other).sum()))

    def __add__(self, other: OutputSums) -> OutputSums:
        return OutputSums(
            self.count + other.count,
            self.total + other.total,
            self.squares + other.squares,
            self.noise + other.noise,
            self.floating,
        )

    @property
    def signal(self) -> float:
        """Variance of the float output about its mean over all its values; its mean square where it is constant."""
        if not self.count:
            return 0.0
        energy = self.squares / self.count
        variance = energy - (self.total / self.count) ** 2
        return variance if variance > CONSTANT * energy else energy

    @property
    def error(self) -> float:
        """Mean squared error over :attr:`signal` (over 1 where all is 0); without floats the share of values that differ."""
        if not self.count:
            return 0.0
        mean = self.noise / self.count
        return mean / (self.signal or 1.0) if self.floating else mean

    @property
    def equal(self) -> float:
        """Share of equal values of an output without floats, in ``[0, 1]``."""
        return 1.0 - self.noise / self.count if self.count else 1.0

    @property
    def sqnr_db(self) -> float:
        """Signal-to-quantization-noise ratio in dB, see :func:`decibels`; ``nan`` without floats."""
        return decibels(self.signal * self.count, self.noise) if self.floating else math.nan


def add_sums(sums: dict[str, OutputSums], more: Mapping[str, OutputSums]) -> None:
    """Add what another batch has to ``sums``, output by output, in place."""
    for name, found in more.items():
        sums[name] = sums[name] + found if name in sums else found


def combined_error(sums: Iterable[OutputSums]) -> float:
    """One figure for all outputs of a network: the root of the mean of their relative squared errors.

    Outputs without floats count only where there are no others: they follow from what the others hold, and jump.
    """
    known = list(sums)
    errors = [x.error for x in known if x.floating] or [x.error for x in known]
    return math.sqrt(sum(errors) / len(errors)) if errors else 0.0


def sqnr_db(reference: Array, other: Array) -> float:
    """Signal-to-quantization-noise ratio, ``10 log10(sum (r - mean r)^2 / sum (r - o)^2)``, in dB, summed in float64.

    The signal is what ``reference`` has beyond its mean, as in :class:`OutputSums`; all of it where it is constant.

    Args:
        reference: The float model's values, any shape; integers are taken as numbers.
        other: The quantized model's values, the same shape.

    Returns:
        The ratio in dB; ``inf`` where the two are equal (see :func:`decibels`).

    Raises:
        ValueError: The shapes differ.
    """
    return OutputSums.of(reference.astype(np.float64), other).sqnr_db


def topk_correct(logits: Array, labels: Array, k: int) -> Flags:
    """Which rows have their label among the ``k`` largest logits.

    Equal logits rank by index, lowest first, so that ``k=1`` says the same as ``argmax``: coarse quantization does
    produce ties, and an order that favoured the label would flatter it.

    Args:
        logits: Scores, shape ``[N, classes]``.
        labels: Class indices, integers in ``[0, classes)``, shape ``[N]``.
        k: How many guesses count, >= 1.

    Returns:
        Shape ``[N]``, True where the label is among the ``k`` largest.

    Raises:
        ValueError: Shapes do not fit, a label is out of range, ``k`` is below 1 or a logit is NaN.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"logits [N, classes] and labels [N] wanted, got {logits.shape} and {labels.shape}")
    if k < 1:
        raise ValueError(f"k = {k}: at least one guess is needed")
    classes = logits.shape[1]
    if labels.size and not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(f"labels from {labels.min()} to {labels.max()} do not fit {classes} classes")
    if np.isnan(logits).any():
        raise ValueError("logits hold NaN: they have no order")
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    ahead = (logits > own) | ((logits == own) & (np.arange(classes) < labels[:, None]))
    return np.asarray(ahead.sum(axis=1) < k)


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (E. B. Wilson 1927, JASA 22:209), without continuity correction.

    Args:
        correct: Successes, ``0 <= correct <= n``.
        n: Trials, >= 1.
        confidence: Coverage, in ``(0, 1)``.

    Returns:
        Lower and upper end, both in ``[0, 1]``.

    Raises:
        ValueError: ``n`` is below 1, ``correct`` is not in ``[0, n]`` or ``confidence`` is not in ``(0, 1)``.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence} is not between 0 and 1")
    if not 0 <= correct <= n or n < 1:
        raise ValueError(f"{correct} successes in {n} trials have no interval")
    from scipy.stats import binomtest  # noqa: PLC0415 - takes half a second to load, and quantize does without

    interval = binomtest(correct, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar_p(a_right: Flags, b_right: Flags) -> float:
    """McNemar's exact two-sided p-value for "two models are equally accurate" (Q. McNemar 1947), on the same images.

    Only the images that exactly one of the two gets right count; under the hypothesis each falls to either with
    probability 1/2, so the p-value is that of a binomial test. Two models that are right on the same images give 1.

    Args:
        a_right: Which images model a gets right, shape ``[N]``.
        b_right: The same for model b, in the same order.

    Returns:
        The p-value, in ``(0, 1]``.

    Raises:
        ValueError: The shapes differ.
    """
    if a_right.shape != b_right.shape:
        raise ValueError(f"the same images are wanted, got {a_right.shape} and {b_right.shape}")
    only_a = int(np.count_nonzero(a_right & ~b_right))
    only_b = int(np.count_nonzero(~a_right & b_right))
    from scipy.stats import binomtest  # noqa: PLC0415 - as above

    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0


def agreement(a: Array, b: Array) -> float:
    """The share of rows whose largest logit is at the same index, the first one where several are equal.

    Args:
        a: Scores, shape ``[N, classes]``, ``N >= 1``.
        b: Scores of the other model, the same shape.

    Returns:
        A share in ``[0, 1]``.

    Raises:
        ValueError: The shapes differ, are not of rank 2 or hold no row.
    """
    if a.shape != b.shape or a.ndim != 2 or not a.size:
        raise ValueError(f"two arrays of the same shape [N, classes] wanted, got {a.shape} and {b.shape}")
    return float(np.mean(a.argmax(axis=1) == b.argmax(axis=1)))
