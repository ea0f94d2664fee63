"""Differences that are shown as nothing have no minus."""

from __future__ import annotations

import pytest

from mrecg_onnx.machine import figure, plain_zero, points
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
    assert metric.change(0.1 + 0.2, 0.3) == "+0.00"  # the same sum in another order
    assert metric.change(0.3, 0.1 + 0.1) == "-0.100"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((0.44, 0.46666, 1), ("0.4400", "0.4667", "1.000")),
        ((3, 12, 0), ("3", "12", "0")),
        ((1234.4, -0.5), ("1234", "-0.5000")),
        ((0.0, 3e-9), ("0.000", "3.000e-09")),
        ((1.0,), ("1",)),
        ((float("inf"), float("nan")), ("inf", "nan")),
    ],
)
def test_figures_of_one_table_have_as_many_digits_as_each_other(
    values: tuple[float, ...], said: tuple[str, ...]
) -> None:
    metric = Metric(lambda outputs, targets: 0.0, "mine")
    assert tuple(figure(value, values) for value in values) == said
    assert tuple(metric.text(value, values) for value in values) == said
