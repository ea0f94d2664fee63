"""Opening a data set: what fits the model, without reading it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from helpers.images import spec, write

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.data import Preprocess, open_calibration

if TYPE_CHECKING:
    from pathlib import Path


def test_images_do_not_feed_two_inputs(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    two = [spec(None, 3, 4, 4, name="left"), spec(None, 3, 4, 4, name="right")]
    with pytest.raises(DataError, match=r"has 2 \('left', 'right'\).*\.npz"):
        open_calibration(tmp_path, two, Preprocess())


def test_no_inputs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no inputs"):
        open_calibration(tmp_path, [], Preprocess())


def test_opening_decodes_nothing(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(b"junk")
    assert len(open_calibration(tmp_path, [spec(None, 3, 4, 4)], Preprocess())) == 3
