"""Differences that are shown as nothing have no minus."""

from __future__ import annotations

import pytest

from mrecg_onnx.machine import plain_zero, points
from mrecg_onnx.measures import Metric


@pytest.mark.parametrize(
    ("value", "form", "said"),
    [
        (-0.0, ".2g", "0"),
        (-0.0, "+.3g", "+0"),
        (-1e-9, "+.4f", "+0.0000"),
        (-1e-3, "+.4f", "-0.0010"),
        (-3e-9, ".2g", "-3e-09"),
        (float("-inf"), "g", "-inf"),
        (0.25, "+.3g", "+0.25"),
    ],
)
def test_what_is_shown_as_zero_has_no_minus(value: float, form: str, said: str) -> None:
    assert plain_zero(value, form) == said


def test_points_and_changes_of_a_metric_have_none_either() -> None:
    assert points(-1e-7) == points(-0.0) == "+0.00 points"
    metric = Metric(lambda outputs, targets: 0.0, "loss")
    assert metric.change(0.1 + 0.2, 0.3) == "+0"  # the same sum in another order
    assert metric.change(0.3, 0.1 + 0.1) == "-0.1"
