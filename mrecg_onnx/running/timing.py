"""How long runs take, sessions in turn so that a busy machine slows all of them alike."""

from __future__ import annotations

import math
import statistics
import time
from typing import TYPE_CHECKING, Any

from mrecg_onnx.running.batches import run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt
    import onnxruntime as ort

__all__ = ["is_noise", "latency", "medians", "ratio_interval", "speedup_text"]


def latency(
    sessions: Mapping[str, ort.InferenceSession], feeds: Mapping[str, npt.NDArray[Any]], repeats: int, warmup: int = 10
) -> dict[str, list[float]]:
    """Time sessions in turn, one timed run each a round, so that a busy or throttled machine slows all of them alike.

    Each timed run follows an untimed one of the same session: the change of session leaves cold caches and sleeping
    worker threads, which a deployed model does not meet. Measured on 2 cores (ms, FP32 MobileNetV2 and ResNet-20,
    medians of 100): each alone 2.5 and 0.47; taking turns 6.5 and 0.65 (the waiting session's threads spin); with
    :func:`~mrecg_onnx.running.open_session`'s stop of the spinning 2.6 and 4.0 (threads are woken late); with the untimed run
    too 2.5 and 0.57.

    Args:
        sessions: Sessions by name, all taking the same inputs.
        feeds: Inputs by name; the batch is theirs.
        repeats: Timed rounds, >= 1.
        warmup: Rounds before them that are not timed, >= 0.

    Returns:
        Seconds per timed run, ``repeats`` of them for each name, in the order they were taken.

    Raises:
        ModelError: ONNX Runtime fails on the inputs.
        ValueError: ``repeats`` is below 1 or ``warmup`` below 0.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f"{repeats} timed rounds after {warmup} others cannot be run")
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    fed = dict(feeds)
    for _ in range(warmup + repeats):
        for name, session in sessions.items():
            run(session, feeds)
            start = time.perf_counter()
            session.run(None, fed)  # nobody watches how long it takes: that would be measured, too
            seconds[name].append(time.perf_counter() - start)
    return {name: taken[warmup:] for name, taken in seconds.items()}


def ratio_interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Between what the median of ``before`` over ``after``, round by round, lies with 95 %.

    Order statistics, so that it holds however times are distributed; the extremes where there are five rounds or fewer.

    Args:
        before: Seconds by round, shape ``[rounds]``, one or more.
        after: Seconds in the same rounds.

    Returns:
        The lower and the upper end.
    """
    ratios = sorted(a / b for a, b in zip(before, after, strict=True))
    count, below, left_out = len(ratios), 0.0, 0
    while left_out < count // 2:
        below += math.comb(count, left_out) / 2**count
        if 2 * below > 0.05:
            break
        left_out += 1
    place = max(0, left_out - 1)
    return ratios[place], ratios[count - 1 - place]


def is_noise(interval: Sequence[float] | None) -> bool:
    """Tell whether runs with this :func:`ratio_interval` do not say which is faster; False where it is not known."""
    return interval is not None and interval[0] <= 1 <= interval[1]


def speedup_text(speedup: float, interval: Sequence[float] | None) -> str:
    """``1.71x`` for tables; runs that do not say which is faster have no factor."""
    return "same within noise" if is_noise(interval) else f"{speedup:.2f}x"


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each list of :func:`latency`, in seconds."""
    return {name: statistics.median(taken) for name, taken in seconds.items()}
