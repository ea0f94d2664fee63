"""What is said where the float model itself is worth nothing on the data: then nothing is compared there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mrecg_onnx.measures import wilson_interval

if TYPE_CHECKING:
    from mrecg_onnx.measures import Metric

__all__ = ["guesses", "worth_nothing"]


def guesses(top1: float | None, images: int, classes: int | None) -> tuple[str, ...]:
    """A sentence where a float model's top-1 on so many ``images`` may be that of chance among so many ``classes``."""
    if top1 is None or classes is None or wilson_interval(round(top1 * images), images)[0] > 1 / classes:
        return ()
    said = f"{top1:.4f} of the images right among {classes} classes"
    return (f"the FP32 model is no better than chance ({said}): labels or preprocessing do not fit it",)


def worth_nothing(metric: Metric | None, score: float | None) -> tuple[str, ...]:
    """A sentence where a float model's ``score``, a share, is shown as 0."""
    if metric is None or score is None or metric.lower_is_better or not metric.percent:
        return ()
    if metric.text(abs(score)) != metric.text(0.0):
        return ()
    said = f"the FP32 model itself has {metric.name} {metric.text(0.0)} here, so that nothing is compared"
    return (
        f"{said}: its outputs, the labels (their numbering, their units) or the preprocessing do not fit each other",
    )
