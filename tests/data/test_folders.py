"""Which files of a folder are read, and what is said where there are none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers.images import one_line, spec, write

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.data import Preprocess, open_calibration

if TYPE_CHECKING:
    from pathlib import Path


def test_folder_is_searched_recursively_sorted_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b/2.png", "a/10.png", "a/deep/er/1.PNG", "c.png", ".hidden/x.png", "a/._10.png"):
        if "_" in name:
            (tmp_path / name).write_bytes(b"resource fork")
        else:
            write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    data = open_calibration(str(tmp_path), [spec(None, 3, 4, 4)], Preprocess())
    assert data.files is not None
    assert [file.relative_to(tmp_path).as_posix() for file in data.files] == [
        "a/10.png",
        "a/deep/er/1.PNG",
        "b/2.png",
        "c.png",
    ]
    assert len(data.load()["x"]) == 4


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "set").mkdir()
    try:
        (tmp_path / "set" / "cat").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (tmp_path / "set" / "loop").symlink_to(tmp_path / "set", target_is_directory=True)
    except OSError:
        pytest.skip("no links here")
    data = open_calibration(tmp_path / "set", [spec(None, 3, 4, 4)], Preprocess())
    assert data.files == [tmp_path / "set" / "cat" / "1.png"]


def test_nothing_to_read_says_what_was_looked_for(tmp_path: Path) -> None:
    model = [spec(None, 3, 4, 4)]
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    for path, says in (
        ("gone", ".*gone: no such file or folder"),
        ("empty", "empty is empty"),
        ("texts", r"1 other files\): looked for \.jpg \.jpeg \.png \.webp \.bmp \.tif \.tiff \.npy \.npz"),
    ):
        with pytest.raises(DataError, match=says) as error:
            open_calibration(tmp_path / path, model, Preprocess())
        assert one_line(error)
        assert error.value.exit_code == 1


def test_images_and_arrays_in_one_folder_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", np.zeros((1, 3, 4, 4), np.float32))
    with pytest.raises(DataError, match=r"both images \(1\) and arrays \(1, first b\.npy\)"):
        open_calibration(tmp_path, [spec(None, 3, 4, 4)], Preprocess())
