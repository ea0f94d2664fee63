"""How long runs take: models in turn, in several sittings, so that what a machine does meanwhile meets all of them alike."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from typing import TYPE_CHECKING, Any

from mrecg_onnx.machine import ratio
from mrecg_onnx.running.batches import run
from mrecg_onnx.running.sessions import open_session

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt
    import onnxruntime as ort

    from mrecg_onnx.running.models import Model

__all__ = [
    "SITTINGS",
    "InTurn",
    "Seconds",
    "all_runs",
    "interval_text",
    "is_noise",
    "is_wide",
    "latency",
    "medians",
    "ratio_interval",
    "speedup_text",
]

#: Seconds of timed runs by sitting.
Seconds = list[list[float]]

#: Times that measuring begins anew. Of 17 the fifth smallest and the fifth largest hold the median with 95 %, so that four
#: sittings may go wrong either way.
SITTINGS = 17
#: Seconds that go into opening models again for them.
REOPENING_S = 0.5
#: Rounds at the beginning of a sitting that are not timed: in sessions just opened, at most for so many seconds, and in others.
FRESH, FRESH_S, GOING_ON = 10, 0.2, 1
#: Ends of an interval that lie further apart say nothing, not even that times are the same.
WIDE = 1.5


class InTurn:
    """Models that are timed against each other, open, and opened anew where that is cheap.

    Attributes:
        sessions: The open ones, by the models' names.
    """

    def __init__(self, models: Mapping[str, Model], threads: int | None = None, device: str = "cpu") -> None:
        """Open ``models``; raises as :func:`~mrecg_onnx.running.open_session` does."""
        self._models, self._threads, self._device = dict(models), threads, device
        self.sessions: dict[str, ort.InferenceSession] = {}
        self.reopen()

    @property
    def opened(self) -> int:
        """How often all of them may be opened for one measurement, the time that is over included."""
        return 1 + int(REOPENING_S / max(self._seconds, 1e-9))

    def reopen(self) -> None:
        """Open them anew, in place of those that are open."""
        start = time.perf_counter()
        self.sessions = {
            name: open_session(model, threads=self._threads, device=self._device)
            for name, model in self._models.items()
        }
        self._seconds = time.perf_counter() - start


def latency(models: InTurn, feeds: Mapping[str, npt.NDArray[Any]], repeats: int) -> dict[str, Seconds]:
    """Time models in turn, one timed run each a round, so that a busy or throttled machine slows all of them alike.

    Each timed run follows an untimed one of the same session: the change of session leaves cold caches and sleeping
    worker threads, which a deployed model does not meet. Measured on 2 cores (ms, FP32 MobileNetV2 and ResNet-20,
    medians of 100): each alone 2.5 and 0.47; taking turns 6.5 and 0.65 (the waiting session's threads spin); with
    :func:`~mrecg_onnx.running.open_session`'s stop of the spinning 2.6 and 4.0 (threads are woken late); with the untimed run
    too 2.5 and 0.57.

    Rounds are spread over sittings. All rounds of a network that takes 10 microseconds lie within one slice of the
    scheduler, and what worker threads do there they do in all of them: the one file takes 8.5 or 15 microseconds on two idle
    cores. Fifty rounds that agree are then one measurement, of that slice. Where memory of a session happens to lie counts,
    too (a tenth, from one session of a file to the next). So every sitting opens the models anew where they open quickly, and
    what is said of the times (:func:`medians`, :func:`ratio_interval`) counts sittings, not rounds.

    Args:
        models: What is timed, all taking the same inputs.
        feeds: Inputs by name; the batch is theirs.
        repeats: Timed rounds, >= 1.

    Returns:
        Seconds per timed run, ``repeats`` of them for each name, by sitting, in the order they were taken.

    Raises:
        ModelError: ONNX Runtime fails on the inputs.
        ValueError: ``repeats`` is below 1.
    """
    if repeats < 1:
        raise ValueError(f"{repeats} timed rounds cannot be run")
    sittings = min(SITTINGS, repeats)
    opened = min(models.opened, sittings)
    seconds: dict[str, Seconds] = {name: [] for name in models.sessions}
    for sitting in range(sittings):
        fresh = sitting * opened // sittings > (sitting - 1) * opened // sittings
        if fresh and sitting:
            models.reopen()
        if fresh:
            for session in models.sessions.values():
                run(session, feeds)  # watched: what fails or hangs does so here
        begin = time.perf_counter()
        for _ in range(FRESH if fresh else GOING_ON):
            _round(models, feeds)
            if time.perf_counter() - begin > FRESH_S:
                break
        rounds = (sitting + 1) * repeats // sittings - sitting * repeats // sittings
        timed = [_round(models, feeds) for _ in range(rounds)]
        for name, sittings_of in seconds.items():
            sittings_of.append([taken[name] for taken in timed])
    return seconds


def _round(models: InTurn, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, float]:
    """The seconds of a run of each model, behind another one.

    Nobody watches these runs, nor the untimed ones: a watched run is another thread's, from which this one is woken late and on
    cold caches. A network of 8 microseconds took 33 behind one.
    """
    fed, seconds = dict(feeds), {}
    for name, session in models.sessions.items():
        session.run(None, fed)
        start = time.perf_counter()
        session.run(None, fed)
        seconds[name] = time.perf_counter() - start
    return seconds


def ratio_interval(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Between what the time of ``before`` over that of ``after`` lies with 95 %, by the medians of each sitting.

    Order statistics, so that it holds however times are distributed; the extremes where there are five sittings or fewer. The
    ratio of :func:`medians` is always in it.

    Args:
        before: Seconds of runs by sitting, one or more.
        after: Seconds in the same sittings.

    Returns:
        The lower and the upper end.
    """
    ratios = sorted(statistics.median(a) / statistics.median(b) for a, b in zip(before, after, strict=True))
    count, below, left_out = len(ratios), 0.0, 0
    while left_out < count // 2:
        below += math.comb(count, left_out) / 2**count
        if 2 * below > 0.05:
            break
        left_out += 1
    place = max(0, left_out - 1)
    found = medians({"before": before, "after": after})
    ratio = found["before"] / found["after"]
    return min(ratios[place], ratio), max(ratios[count - 1 - place], ratio)


def is_noise(interval: Sequence[float] | None) -> bool:
    """Tell whether runs with this :func:`ratio_interval` do not say which is faster; False where it is not known."""
    return interval is not None and interval[0] <= 1 <= interval[1]


def is_wide(interval: Sequence[float] | None) -> bool:
    """Tell whether the ends of a :func:`ratio_interval` lie so far apart that the factor between them is no figure."""
    return interval is not None and interval[1] > WIDE * interval[0]


def interval_text(interval: Sequence[float]) -> str:
    """``0.94 to 1.08 times as fast``."""
    return f"{interval[0]:.2f} to {interval[1]:.2f} times as fast"


def speedup_text(speedup: float, interval: Sequence[float] | None) -> str:
    """``1.71x faster`` for tables; where the interval is wide that alone, and no factor where runs do not say which is faster."""
    if interval is not None and is_wide(interval):
        return f"noisy: {interval_text(interval)}"
    return "same within noise" if is_noise(interval) else ratio(speedup, 1.0, "faster", "slower")


def medians(seconds: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, float]:
    """Of each list of :func:`latency` the median over its sittings' medians, in seconds."""
    return {name: statistics.median(map(statistics.median, taken)) for name, taken in seconds.items()}


def all_runs(seconds: Sequence[Sequence[float]]) -> list[float]:
    """The runs of all sittings."""
    return list(itertools.chain.from_iterable(seconds))
