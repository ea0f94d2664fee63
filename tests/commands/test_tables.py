"""How figures are shown."""

from __future__ import annotations

from mrecg_onnx.commands._tables import ratio


def test_a_ratio_that_would_be_one_is_no_change() -> None:
    assert ratio(310, 100, "smaller", "larger") == "3.10x smaller"
    assert ratio(100, 120, "smaller", "larger") == "1.20x larger"
    assert ratio(85655, 85618, "smaller", "larger") == ratio(85618, 85655, "smaller", "larger") == "the same"
