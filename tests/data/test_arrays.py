"""Ready inputs in .npy and .npz files are fed as they are, or refused with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers.images import first_red, one_line, rows, spec

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.data import Preprocess, given, open_calibration, require_values

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", [None, "x", "images"])
def test_one_array_feeds_one_input_as_it_is(tmp_path: Path, name: str | None) -> None:
    if name is None:
        np.save(tmp_path / "a.npy", rows(5))
        path = tmp_path / "a.npy"
    else:
        path = tmp_path / "a.npz"
        np.savez(path, **{name: rows(5)})
    data = open_calibration(path, [spec(None, 3, 4, 4)], Preprocess())
    np.testing.assert_array_equal(data.load()["x"], rows(5))
    assert (len(data), data.files, data.preprocess, data.labels, data.skipped) == (5, None, None, None, [])
    assert first_red(data.batch([4, 1])["x"]) == [4, 1]


def test_unnamed_array_in_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", rows(2))
    assert len(open_calibration(tmp_path / "a.npz", [spec(None, 3, 4, 4)], Preprocess())) == 2


def test_npz_feeds_several_inputs_by_name(tmp_path: Path) -> None:
    ids = np.arange(6, dtype=np.int32).reshape(3, 2)
    np.savez_compressed(tmp_path / "a.npz", image=rows(3).astype(np.float64), ids=ids, spare=np.zeros(1))
    two = [spec(None, 3, 4, 4, name="image"), spec(None, None, dtype=np.int64, name="ids")]
    loaded = open_calibration(tmp_path / "a.npz", two, Preprocess()).load()
    assert {name: array.dtype for name, array in loaded.items()} == {"image": np.float32, "ids": np.int64}
    np.testing.assert_array_equal(loaded["ids"], ids)
    with pytest.raises(DataError, match=r"no array for input 'mask' in .*a\.npz: it holds image, ids, spare"):
        open_calibration(tmp_path / "a.npz", [*two, spec(None, 1, name="mask")], Preprocess())
    np.save(tmp_path / "b.npy", rows(3))
    with pytest.raises(DataError, match=r"the model has 2 inputs \('image', 'ids'\): give an \.npz"):
        open_calibration(tmp_path / "b.npy", two, Preprocess())


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_folder_of_arrays_is_one_long_batch(tmp_path: Path, suffix: str) -> None:
    for number, (count, start) in enumerate([(4, 0), (1, 4), (7, 5)]):
        path = tmp_path / f"{number}{suffix}"
        np.save(path, rows(count, start)) if suffix == ".npy" else np.savez(path, x=rows(count, start))
    data = open_calibration(tmp_path, [spec(None, 3, 4, 4)], Preprocess())
    assert first_red(data.load()["x"]) == list(range(12))
    assert first_red(data.batch([11, 0, 4, 5, 0])["x"]) == [11, 0, 4, 5, 0]
    assert [indices.tolist() for _, indices in data.batches(5)] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    few = open_calibration(tmp_path, [spec(None, 3, 4, 4)], Preprocess(), samples=4)
    assert [number // 3 for number in first_red(few.load()["x"])] == [0, 1, 2, 3]


def test_array_of_another_shape_shows_both(tmp_path: Path) -> None:
    for shape in ((2, 3, 5, 4), (3, 4, 4), ()):
        np.save(tmp_path / "a.npy", np.zeros(shape, np.float32))
        with pytest.raises(DataError, match=r"a\.npy does not fit input 'x' \(\?, 3, 4, 4\) float32") as error:
            open_calibration(tmp_path / "a.npy", [spec(None, 3, 4, 4)], Preprocess())
        assert f"({', '.join(map(str, shape))})" in one_line(error)


def test_arrays_that_do_not_join(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 4, 4), np.float32))
    np.save(tmp_path / "b.npy", np.zeros((2, 3, 4, 5), np.float32))
    with pytest.raises(DataError, match=r"differ: \(2, 3, 4, 5\) in .*b\.npy, \(2, 3, 4, 4\) in .*a\.npy"):
        open_calibration(tmp_path, [spec(None, 3, None, None)], Preprocess())
    np.savez(tmp_path / "c.npz", x=rows(2), y=np.zeros((3, 1), np.float32))
    with pytest.raises(DataError, match="different numbers of rows: 'x' 2, 'y' 3"):
        open_calibration(tmp_path / "c.npz", [spec(None, 3, 4, 4), spec(None, 1, name="y")], Preprocess())


#: Images, and a scale of which the model takes one in a run.
SCALED = [spec(None, 3, 4, 4), spec(1, 2, name="scale")]


@pytest.mark.parametrize("form", ["file", "folder", "dict", "batches"])
def test_one_row_of_an_input_that_takes_one_in_a_run_is_that_of_all_samples(tmp_path: Path, form: str) -> None:
    scale = np.array([[2, 3]], np.float32)
    np.savez(tmp_path / "a.npz", x=rows(3), scale=scale)
    np.savez(tmp_path / "b.npz", x=rows(2, 3), scale=scale + 1)
    source = {
        "file": tmp_path / "a.npz",
        "folder": tmp_path,
        "dict": {"x": rows(3), "scale": scale},
        "batches": [{"x": rows(2), "scale": scale}, {"x": rows(1, 2), "scale": scale}],
    }[form]
    data = open_calibration(source, SCALED, Preprocess())
    data.require_values()
    loaded = data.load()
    assert first_red(loaded["x"]) == list(range(len(loaded["x"])))
    assert loaded["scale"][:3].tolist() == [[2, 3]] * 3
    assert loaded["scale"][3:].tolist() == [[3, 4]] * 2 * (form == "folder")
    assert data.batch([2, 0])["scale"].tolist() == [[2, 3]] * 2


def test_a_row_for_each_sample_is_taken_as_it_is_and_other_numbers_are_refused() -> None:
    scales = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert np.array_equal(
        open_calibration({"x": rows(3), "scale": scales}, SCALED, Preprocess()).load()["scale"], scales
    )
    with pytest.raises(DataError, match="different numbers of rows: 'x' 3, 'scale' 2"):
        open_calibration({"x": rows(3), "scale": scales[:2]}, SCALED, Preprocess())


def test_a_scalar_is_told_what_to_become() -> None:
    inputs = [spec(None, 3, 4, 4), spec(name="least")]
    with pytest.raises(
        DataError, match=r"input 'least' \(\) float32 is a scalar, .*: make it a constant of the model, or"
    ):
        open_calibration({"x": rows(3), "least": np.float32(1)}, inputs, Preprocess())


@pytest.mark.parametrize(
    ("have", "model", "fits"),
    [
        (np.float64, np.float32, True),
        (np.float32, np.float16, True),
        (np.uint8, np.uint8, True),
        (np.int32, np.int64, True),
        (np.uint8, np.float32, False),  # raw pixels where normalized input is expected
        (np.float32, np.uint8, False),
        (np.int64, bool, False),
    ],
)
def test_arrays_must_be_of_the_inputs_kind(tmp_path: Path, have: type, model: type, fits: bool) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 3, 4, 4), have))
    inputs = [spec(None, 3, 4, 4, dtype=model)]
    if fits:
        assert open_calibration(tmp_path, inputs, Preprocess()).load()["x"].dtype == model
    else:
        with pytest.raises(DataError, match=f"holds {np.dtype(have)}"):
            open_calibration(tmp_path, inputs, Preprocess())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_values_that_are_not_finite_are_named(tmp_path: Path, value: float, suffix: str) -> None:
    array = np.zeros((4, 3, 4, 4))
    array[2, 1, 0, 3] = value
    path = tmp_path / f"a{suffix}"
    np.save(path, array) if suffix == ".npy" else np.savez(path, x=array)
    data = open_calibration(path, [spec(None, 3, 4, 4)], Preprocess())
    with pytest.raises(DataError, match=rf"NaN, Inf .* in row 2 for input 'x' in .*a\{suffix}"):
        data.load()
    with pytest.raises(DataError, match="row 2"):
        data.batch([3, 2])
    data.batch([3, 1])


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_all_values_that_are_used_are_looked_at_before_any_work(tmp_path: Path, suffix: str) -> None:
    array = rows(150).copy()
    array[149, 0, 0, 0] = np.nan
    path = tmp_path / f"a{suffix}"
    np.save(path, array) if suffix == ".npy" else np.savez_compressed(path, x=array)
    model = [spec(None, 3, 4, 4)]
    with pytest.raises(DataError, match=rf"NaN, Inf .* in row 149 for input 'x' in .*a\{suffix}"):
        open_calibration(path, model, Preprocess()).require_values()
    with pytest.raises(DataError, match="row 149"):
        require_values(path, model)
    require_values(path, model, 3)  # the last row is not among these
    with pytest.raises(DataError, match="sample 149 for input 'x' of the dict"):
        open_calibration({"x": array}, model, Preprocess())  # what is in memory is looked at when it is opened
    require_values(given(iter(array)), model)  # what goes by is not


def test_integers_out_of_range_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[1], [300]]))
    with pytest.raises(DataError, match="out of the range of uint8 in row 1"):
        open_calibration(tmp_path, [spec(None, 1, dtype=np.uint8)], Preprocess()).require_values()


def test_unreadable_arrays(tmp_path: Path) -> None:
    model = [spec(None, 3, 4, 4)]
    np.save(tmp_path / "object.npy", np.array([None, {}], object), allow_pickle=True)
    np.save(tmp_path / "cut.npy", np.zeros((4, 3, 4, 4), np.float32))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:200])
    np.savez(tmp_path / "cut.npz", x=rows(3))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:200])
    np.savez(tmp_path / "flipped.npz", x=rows(3))
    raw = bytearray((tmp_path / "flipped.npz").read_bytes())
    raw[300] ^= 0xFF
    (tmp_path / "flipped.npz").write_bytes(raw)
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "text.npz").write_text("hello")
    for name in ("object.npy", "cut.npy", "cut.npz", "flipped.npz", "empty.npy", "text.npz"):
        with pytest.raises(DataError, match=f"cannot read .*{name}: ") as error:
            open_calibration(tmp_path / name, model, Preprocess())
        assert one_line(error)
    np.save(tmp_path / "none.npy", np.zeros((0, 3, 4, 4), np.float32))
    with pytest.raises(DataError, match=r"\(0, 3, 4, 4\) .* is empty"):
        open_calibration(tmp_path / "none.npy", model, Preprocess())
