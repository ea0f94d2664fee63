"""How close two models are, and how sure one can be of it: accuracy, intervals, tests and signal-to-noise ratios."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

__all__ = ["agreement", "decibels", "mcnemar_p", "sqnr_db", "topk_correct", "wilson_interval"]

Array = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]


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


def sqnr_db(reference: Array, other: Array) -> float:
    """Signal-to-quantization-noise ratio, ``10 log10(sum r^2 / sum (r - o)^2)``, in dB, summed in float64.

    Args:
        reference: The float model's values, any shape.
        other: The quantized model's values, the same shape.

    Returns:
        The ratio in dB; ``inf`` where the two are equal (see :func:`decibels`).

    Raises:
        ValueError: The shapes differ.
    """
    if reference.shape != other.shape:
        raise ValueError(f"cannot compare shape {reference.shape} with shape {other.shape}")
    r = reference.astype(np.float64)
    return decibels(float(np.square(r).sum()), float(np.square(r - other).sum()))


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
