"""Samples one by one, in batches and all at once; corrupt files are skipped, up to a share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.images import RAW, first_red, numbered, one_line, spec

from mrecg_onnx.converters.errors import DataError, SettingsError
from mrecg_onnx.data import Dataset, open_calibration

if TYPE_CHECKING:
    from pathlib import Path


def test_batch_batches_and_load_agree(tmp_path: Path) -> None:
    numbered(tmp_path, 10)
    data = open_calibration(tmp_path, [spec(None, 3, 4, 4)], RAW)
    assert len(data) == 10
    assert first_red(data.batch([7, 2, 2])["x"]) == [7, 2, 2]
    assert first_red(data.batch(np.array([0, 9]))["x"]) == [0, 9]
    parts = list(data.batches(4))
    assert [indices.tolist() for _, indices in parts] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    np.testing.assert_array_equal(np.concatenate([x["x"] for x, _ in parts]), data.load()["x"])
    assert first_red(data.load(limit=2)["x"]) == [2, 7]  # spread, not the first two
    assert data.labels is None
    with pytest.raises(IndexError):
        data.batch([10])
    with pytest.raises(SettingsError):
        next(data.batches(0))
    with pytest.raises(SettingsError):
        data.load(limit=0)


def damaged(tmp_path: Path, total: int, bad: list[int]) -> Dataset:
    files = numbered(tmp_path, total)
    for number in bad:
        files[number].write_bytes(files[number].read_bytes()[:40] if number % 2 else b"")
    return open_calibration(tmp_path, [spec(None, 3, 4, 4)], RAW)


def test_two_percent_corrupt_are_skipped_and_named(tmp_path: Path) -> None:
    data = damaged(tmp_path, 100, [10, 33])
    x = data.load()["x"]
    assert first_red(x) == [i for i in range(100) if i not in (10, 33)]
    assert [file.name for file, _ in data.skipped] == ["010.png", "033.png"]
    assert data.skipped[0][1] == "the file is empty"
    assert data.skipped[1][1]
    data.load()
    assert len(data.skipped) == 2  # a second pass counts nothing twice


def test_batches_stay_full_around_corrupt_files(tmp_path: Path) -> None:
    data = damaged(tmp_path, 40, [3, 39])
    parts = list(data.batches(10))
    assert [len(indices) for _, indices in parts] == [10, 10, 10, 8]
    assert parts[0][1].tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]
    for x, indices in parts:
        assert first_red(x["x"]) == indices.tolist()


def test_twenty_percent_corrupt_are_an_error_naming_the_first(tmp_path: Path) -> None:
    data = damaged(tmp_path, 50, list(range(0, 50, 5)))
    with pytest.raises(DataError, match=r"more than 5% of 50 images cannot be read \(3 so far\): .*000\.png") as error:
        data.load()
    assert "010.png" in one_line(error)
    with pytest.raises(DataError, match="more than 5%"):
        list(damaged(tmp_path, 50, list(range(0, 50, 5))).batches(8))


def test_exactly_five_percent_are_still_skipped(tmp_path: Path) -> None:
    assert len(damaged(tmp_path, 20, [19]).load()["x"]) == 19


def test_batch_skips_nothing(tmp_path: Path) -> None:
    data = damaged(tmp_path, 40, [4])
    for _ in range(2):  # found just now, and known already
        with pytest.raises(DataError, match=r"cannot read .*004\.png \(the file is empty\)"):
            data.batch([3, 4])


def test_unreachable_sample_of_a_large_set(tmp_path: Path) -> None:
    data = damaged(tmp_path, 40, [20])
    with pytest.raises(DataError, match="none of the 1 files"):
        data.load(limit=1)


def test_few_calibration_samples_are_told(tmp_path: Path) -> None:
    """Unless so few were asked for of more."""
    inputs, x = [spec(None, 3, 4, 4)], np.random.default_rng(0).random((40, 3, 4, 4)).astype(np.float32)
    numbered(tmp_path / "images", 9)
    np.save(tmp_path / "x.npy", x[:31])

    def said(source: Any, samples: int | None = None) -> list[str]:
        data = open_calibration(source, inputs, RAW, samples=samples)
        data.head(64, samples)
        return [doubt.partition(":")[0] for doubt in data.doubts]

    for rows in (x[:31], tmp_path / "x.npy", list(x[:31]), iter(x[:31])):
        assert said(rows) == ["ranges and rounding fit 31 calibration rows alone"]
    assert said(tmp_path / "images") == ["ranges and rounding fit 9 calibration images alone"]
    assert said(x[:31], 31) == ["ranges and rounding fit 31 calibration rows alone"]
    assert said(iter(x[:8]), 9) == ["ranges and rounding fit 8 calibration rows alone"]
    for source in (x, tmp_path / "x.npy", tmp_path / "images", list(x), iter(x)):
        assert said(source, 8) == said(x[:32]) == []


@pytest.mark.parametrize(("value", "warned"), [(0.0, True), (0.5, True), (None, False)])
def test_data_of_one_value_are_told(value: float | None, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    x = np.zeros((8, 3, 4, 4), np.float32) + (np.arange(8)[:, None, None, None] if value is None else value)
    open_calibration(x.astype(np.float32), [spec(None, 3, 4, 4)], RAW).head(4)
    told = [r.getMessage() for r in caplog.records if "ranges are learned from nothing" in r.getMessage()]
    assert len(told) == int(warned)
