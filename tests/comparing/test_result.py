"""Widths as they are written, and a comparison as people read it: on a line each, and as a table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from mrecg_onnx.comparing import Cell, Comparison, Widths
from mrecg_onnx.comparing.tables import csv_text, table
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.measures import Metric
from mrecg_onnx.reporting.comparisons import comparison_page
from mrecg_onnx.settings import Settings
from mrecg_onnx.validating import Accuracy

PERCENT = Metric(lambda outputs, targets: 0.0, "mAP", percent=True)
ERROR = Metric(lambda outputs, targets: 0.0, "metres", lower_is_better=True)


def compared(*cells: Cell, **more: Any) -> Comparison:
    given = {"images": 40, "fp32_top1": None, "fp32_size_bytes": 12_300, "fp32_latency_s": None, "latency_batch": 1}
    return Comparison(
        Path("here/model.onnx"), "calib", "data", Path("grid"), Settings(), "a", cells,
        **{**given, "warnings": (), "written": (), "environment": {}, **more},
    )  # fmt: skip


def column(found: Comparison, name: str) -> list[str]:
    head, rows = table(found)
    return [row[head.index(name)] for row in rows]


def test_a_comparison_says_what_it_found_on_a_line_each() -> None:
    good = Cell("mrecg", Widths(4, 4), top1=Accuracy(0.75, 0.7, 0.8), drop=0.05, agreement=0.9, size_bytes=4_560)
    bad = Cell("qdrop", Widths(2, 4), error="it fails")
    found = compared(good, bad, fp32_top1=Accuracy(0.8, 0.75, 0.85), warnings=("look at it",))
    assert str(found).splitlines() == [
        "model.onnx: 2 cells on 40 images, in grid",
        "FP32: top-1 80.00% (75.0% to 85.0%), 12.3 kB",
        "mrecg W4A4: top-1 75.00% (70.0% to 80.0%), -5.00 points, agreement 90.00%, 4.56 kB",
        "qdrop W2A4: failed: it fails",
        "warning: look at it",
    ]


@pytest.mark.parametrize(
    ("metric", "scores", "texts", "change"),
    [
        (PERCENT, (0.5, 0.4825), ("50.00%", "48.25%"), "-1.75 points"),
        (PERCENT, (0.5, 0.5), ("50.00%", "50.00%"), "+0.00 points"),
        (ERROR, (2.0, 3.0), ("2", "3"), "+1"),
        (ERROR, (2.0, 2.25), ("2.000", "2.250"), "+0.250"),
    ],
)
def test_a_metric_has_its_columns_and_its_place_in_every_line(
    metric: Metric, scores: tuple[float, float], texts: tuple[str, str], change: str
) -> None:
    cell = Cell("mrecg", Widths(4, 4), score=scores[1], size_bytes=4_560)
    failed = Cell("qdrop", Widths(4, 4), error="it fails")
    found = compared(cell, failed, metric=metric, fp32_score=scores[0])
    assert column(found, metric.name) == [*texts, ""]
    assert column(found, f"{metric.name} change") == ["", change, ""]
    lines = str(found).splitlines()
    assert lines[1] == f"FP32: {metric.name} {texts[0]}, 12.3 kB"
    assert lines[2] == f"mrecg W4A4: {metric.name} {texts[1]}, 4.56 kB"


def test_without_a_metric_there_are_no_columns_for_one() -> None:
    head, _ = table(compared(Cell("mrecg", Widths(4, 4), size_bytes=4_560, score=0.5)))
    assert not [name for name in head if "change" in name or "metric" in name]


def test_a_time_that_may_be_either_has_no_factor() -> None:
    wide = "noisy: 0.40 to 0.99 times as fast"
    intervals = {(0.9, 1.1): "same within noise", (1.02, 1.4): "1.05x faster", (0.4, 0.99): wide, None: "1.05x faster"}
    cells = [
        Cell("mrecg", Widths(4, 4), size_bytes=4_560, latency_s=0.01, speedup=1.05, speedup_interval=interval)
        for interval in intervals
    ]
    found = compared(*cells, fp32_latency_s=0.0105)
    assert column(found, "against FP32") == ["", *intervals.values()]
    assert [cell["speedup_interval"] for cell in found.to_json()["cells"]] == [
        [0.9, 1.1],
        [1.02, 1.4],
        [0.4, 0.99],
        None,
    ]
    lines = csv_text(found).splitlines()
    assert lines[0].endswith(",speedup_low,speedup_high")
    assert lines[1].endswith(",0.9,1.1")


def test_widths() -> None:
    assert Widths.parse("w2a4") == Widths(2, 4)
    assert str(Widths.parse("W8A32")) == "W8A32"


@pytest.mark.parametrize("text", ["", "W4", "A4", "4A4", "W1A4", "W4A9", "W4A33", "W4A4x", "W4 A4"])
def test_widths_that_are_none(text: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(f"'{text}'")):
        Widths.parse(text)


@pytest.mark.parametrize(
    ("metric", "scores", "best"),
    [(PERCENT, (0.862, 0.5), "50.00%"), (ERROR, (2.0, 2.25), "2.250"), (None, (), "75.00%")],
)
def test_its_page_shows_figures_as_the_table_does(metric: Metric | None, scores: tuple[float, ...], best: str) -> None:
    pytest.importorskip("matplotlib")
    cell = Cell(
        "mrecg", Widths(4, 4), top1=Accuracy(0.75, 0.7, 0.8), score=scores[1] if scores else None, size_bytes=4_560
    )
    found = compared(cell, metric=metric, fp32_score=scores[0] if scores else None, fp32_top1=Accuracy(0.8, 0.75, 0.85))
    facts = {fact.label: fact.value for fact in comparison_page(found).facts}
    assert facts["Best"] == best
    assert facts["Best"] in [text for row in table(found)[1] for text in row]
    assert facts["FP32"] in table(found)[1][0]
