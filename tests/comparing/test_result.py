"""Widths as they are written."""

from __future__ import annotations

import re

import pytest

from mrecg_onnx.comparing import Widths
from mrecg_onnx.converters.errors import SettingsError


def test_widths() -> None:
    assert Widths.parse("w2a4") == Widths(2, 4)
    assert str(Widths.parse("W8A32")) == "W8A32"


@pytest.mark.parametrize("text", ["", "W4", "A4", "4A4", "W1A4", "W4A9", "W4A33", "W4A4x", "W4 A4"])
def test_widths_that_are_none(text: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(f"'{text}'")):
        Widths.parse(text)
