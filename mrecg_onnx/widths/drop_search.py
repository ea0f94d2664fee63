"""The fewest bits that keep what a model may lose: a search over average widths, each tried in full.

Losses do not add up exactly and learned rounding takes much of them back, so that nothing but the finished file tells what it
lost. The loss falls with the average: bisection on a ladder of half bits finds the least that does in four trials at most.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx

from mrecg_onnx.converters.errors import DataError, SettingsError
from mrecg_onnx.converters.metadata_keys import JUDGED_KEY
from mrecg_onnx.machine import plain_zero
from mrecg_onnx.validating import ValidationResult, worth_nothing

__all__ = ["AVERAGES", "Trial", "measured_drop", "most_trials", "note_judged", "search", "tell_doubts"]

logger = logging.getLogger(__name__)

#: Averages tried, in bits a weight.
AVERAGES = tuple(k / 2 for k in range(4, 17))


@dataclass(frozen=True)
class Trial:
    """A file that was made and measured.

    Attributes:
        average: bits a weight that it was given.
        drop: top-1 points lost, or without labels the share of predictions that changed in percent; with a metric what was lost
            of that, shares in points.
        labelled: which of the first two.
        images: how many it was measured on.
        metric: its name; None without one.
    """

    average: float
    drop: float
    labelled: bool
    images: int
    metric: str | None = None

    def lost(self, bound: float | None = None) -> str:
        """The drop for people: three digits, and as many as tell it from a ``bound`` that it exceeds."""
        digits = 3
        while bound is not None and digits < 17 and self.drop > bound >= float(f"{self.drop:.{digits}g}"):
            digits += 1
        unit = self.metric or ("points of top-1" if self.labelled else "% of the predictions")
        return f"{plain_zero(self.drop, f'.{digits}g')} {unit}"


def measured_drop(found: ValidationResult, bound: float) -> tuple[float, bool]:
    """What was lost in points of top-1, and True; without labels predictions changed in percent, and False.

    With a metric what was lost by it, shares in points.

    Raises:
        DataError: the model gives no class scores, and there is no metric.
        SettingsError: by the metric the float model has not even the bound to lose, or nothing at all.
    """
    metric, before, after = found.metric, found.fp32.score, found.quantized.score
    for said in worth_nothing(metric, before):
        raise SettingsError(f"--max-drop {bound:g}: {said}")
    if metric is not None and before is not None and after is not None:
        if not metric.lower_is_better and bound >= metric.drop(before, 0.0) > 0:
            raise SettingsError(
                f"--max-drop {bound:g} counts {metric.unit} here, of which the FP32 model has {metric.text(before)}: "
                "everything might be lost; give less"
            )
        return metric.drop(before, after), True
    if found.drop is not None:
        return 100.0 * found.drop, True
    if found.agreement is None:
        raise DataError("--max-drop needs labels, or a model that gives class scores [N, classes]: use --avg-wbits")
    return 100.0 * (1.0 - found.agreement), False


def note_judged(model: onnx.ModelProto, found: ValidationResult) -> None:
    """Let a file say what it was judged by, and what it and its float model are worth by that; in place."""
    share = {"lower_is_better": False, "percent": True}
    if found.metric is not None:
        entry = found.metric.to_json() | {"fp32": found.fp32.score, "quantized": found.quantized.score}
    elif found.fp32.top1 is not None and found.quantized.top1 is not None:
        entry = {"name": "top-1", **share, "fp32": found.fp32.top1.value, "quantized": found.quantized.top1.value}
    else:
        entry = {"name": "agreement", **share, "fp32": 1.0, "quantized": found.agreement}
    for number in reversed([i for i, one in enumerate(model.metadata_props) if one.key == JUDGED_KEY]):
        del model.metadata_props[number]
    value = json.dumps(entry | {"images": found.images}, separators=(",", ":"))
    model.metadata_props.add(key=JUDGED_KEY, value=value)


def tell_doubts(found: ValidationResult) -> None:
    """Log what makes a drop doubtful: widths are chosen by it, and the same holds for every trial."""
    for warning in found.warnings:
        logger.warning("--data: %s", warning)


def most_trials(count: int, *, tried: bool = False) -> int:
    """How many trials :func:`search` makes at most among ``count`` averages, of which the last one was ``tried`` or not."""
    if count <= 1:
        return 0 if tried else count
    lower = (count - 1) // 2 + 1
    return 1 + max(most_trials(lower, tried=True), most_trials(count - lower, tried=tried))


def search(
    bound: float, trial: Callable[[float], Trial], averages: Sequence[float] = AVERAGES, advice: str = "allow more"
) -> list[Trial]:
    """Find the least of ``averages`` whose drop is within ``bound``.

    Args:
        bound: largest drop allowed, as :func:`measured_drop` counts it.
        trial: makes and measures a file at an average.
        averages: rising.
        advice: what to do where no average keeps the bound.

    Returns:
        All trials in the order they were made; the one wanted is the least average among those within the bound.

    Raises:
        SettingsError: not even the most bits keep the bound; it says the smallest drop that was reached.
    """
    made: list[Trial] = []
    low, high = 0, len(averages) - 1
    while low < high:
        middle = (low + high) // 2
        made.append(trial(averages[middle]))
        if made[-1].drop <= bound:
            high = middle
        else:
            low = middle + 1
    if all(t.average != averages[high] for t in made):
        made.append(trial(averages[high]))
    if all(t.drop > bound for t in made):
        best = min(made, key=lambda t: t.drop)
        raise SettingsError(
            f"--max-drop {bound:g}: the smallest drop reached is {best.lost(bound)}, with weights of {best.average:g} bits "
            f"on average: {advice}"
        )
    return made
