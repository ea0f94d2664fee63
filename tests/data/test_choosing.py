"""Samples are drawn from all over a data set, the same ones for the same seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers.images import RAW, first_red, numbered, spec
from hypothesis import given
from hypothesis import strategies as st

from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.data import open_calibration
from mrecg_onnx.data.choosing import pick

if TYPE_CHECKING:
    from pathlib import Path


def test_samples_are_spread_seeded_and_sorted(tmp_path: Path) -> None:
    numbered(tmp_path, 40)
    model = [spec(None, 3, 4, 4)]

    def chosen(samples: int, seed: int) -> list[int]:
        return first_red(open_calibration(tmp_path, model, RAW, samples=samples, seed=seed).load()["x"])

    assert chosen(8, 0) == chosen(8, 0)
    assert chosen(8, 0) != chosen(8, 1)
    assert [number // 5 for number in chosen(8, 3)] == list(range(8))  # one of each stretch of five
    assert chosen(100, 0) == list(range(40))
    for bad in (0, -1):
        with pytest.raises(SettingsError, match="1 or more"):
            open_calibration(tmp_path, model, RAW, samples=bad)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 5))
def test_pick_draws_distinct_positions_in_order(total: int, samples: int, seed: int) -> None:
    picked = pick(total, samples, seed)
    assert len(picked) == min(total, samples)
    assert (np.diff(picked) > 0).all()
    assert picked.min() >= 0
    assert picked.max() < total
