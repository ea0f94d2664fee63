"""Labels from folder names, CSV files and arrays stay with their images and rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers.images import RAW, first_red, numbered, one_line, rows, spec, write

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.data import Preprocess, open_calibration, open_validation
from mrecg_onnx.data.labels import labels_for

if TYPE_CHECKING:
    from pathlib import Path


def labels_of(root: Path, *names: str, csv: Path | None = None) -> list[int] | None:
    labels = labels_for([root / name for name in names], root, csv)
    assert labels is None or labels.dtype == np.int64
    return None if labels is None else labels.tolist()


def test_numeric_folders_are_the_class_index(tmp_path: Path) -> None:
    assert labels_of(tmp_path, "0012/a.png", "7/b.png", "7/more/c.png", "430/d.png") == [12, 7, 7, 430]


def test_named_folders_are_sorted_and_numbered_counting_empty_ones(tmp_path: Path) -> None:
    for name in ("ape", "bee", "cat", "3", ".git"):
        (tmp_path / name).mkdir()
    assert labels_of(tmp_path, "cat/a.png", "ape/b.png", "cat/c/d.png", "3/e.png") == [3, 1, 3, 0]


def test_images_without_folders_have_no_labels(tmp_path: Path) -> None:
    assert labels_of(tmp_path, "a.png", "b.png") is None
    with pytest.raises(DataError, match=r"1 of 2 images lie in .* \(first a\.png\).*--labels"):
        labels_of(tmp_path, "a.png", "cat/b.png")


def test_folder_number_beyond_int64(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no class index"):
        labels_of(tmp_path, f"{10**20}/a.png")


@pytest.mark.parametrize(
    "text",
    [
        "a.png,5\nd/b.png,6\n",
        "file,label\na.png,5\nd/b.png,6\n",
        "Label, File\n5, a.png\n6, d/b.png\n",
        "\ufeffname,class\r\na.png,5\r\n\r\nd\\b.png,6\r\n",
        "b.png,6,extra\n./a.png,5\nelsewhere.png,7\na.png,5\n",
    ],
)
def test_labels_from_csv(tmp_path: Path, text: str) -> None:
    csv = tmp_path / "labels.csv"
    csv.write_text(text, encoding="utf-8")
    assert labels_of(tmp_path, "a.png", "d/b.png", csv=csv) == [5, 6]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a.png,5\n", r"no label for d/b\.png in .*labels\.csv"),
        ("", r"no label for a\.png"),
        ("a.png,5\nd/b.png,cat\n", r"line 2: expected file,label with an integer label, got 'd/b\.png,cat'"),
        ("a.png,5\nd/b.png,-1\n", "line 2"),
        ("a.png,5\nd/b.png\n", "line 2"),
        ("a.png,5\na.png,6\n", r"line 2: two labels for a\.png: 5 and 6"),
    ],
)
def test_bad_labels_csv_is_named_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    csv = tmp_path / "labels.csv"
    csv.write_text(text)
    with pytest.raises(DataError, match=says) as error:
        labels_of(tmp_path, "a.png", "d/b.png", csv=csv)
    assert one_line(error)


def test_unreadable_labels_csv(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read labels .*gone\.csv: No such file"):
        labels_of(tmp_path, "a.png", csv=tmp_path / "gone.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00\x81,1\n")
    with pytest.raises(DataError, match=r"cannot read labels .*bytes\.csv: not a CSV"):
        labels_of(tmp_path, "a.png", csv=tmp_path / "bytes.csv")


def test_bare_name_that_two_images_share(tmp_path: Path) -> None:
    csv = tmp_path / "labels.csv"
    csv.write_text("a.png,1\n")
    with pytest.raises(DataError, match="a name 2 images share"):
        labels_of(tmp_path, "x/a.png", "y/a.png", csv=csv)


def test_validation_labels_stay_with_their_images(tmp_path: Path) -> None:
    """Red is the place in the sorted order, ten to a class; one file is corrupt; a subset numbers classes the same."""
    root = tmp_path / "val"
    for number in range(40):
        write(root / "abcd"[number // 10] / f"{number:02d}.png", (number, 0, 0))
    (root / "b" / "13.png").write_bytes(b"broken")
    model = [spec(None, 3, 4, 4)]
    data = open_validation(root, model, RAW)
    assert data.labels is not None
    seen = []
    for x, indices in data.batches(16):
        assert [red // 10 for red in first_red(x["x"])] == data.labels[indices].tolist()
        seen += indices.tolist()
    assert len(seen) == 39
    few = open_validation(root, model, RAW, limit=2)
    assert few.labels is not None
    assert few.files is not None
    assert few.labels.tolist() == ["abcd".index(file.parent.name) for file in few.files]
    assert few.files == open_validation(root, model, RAW, limit=2).files


def test_validation_with_csv_and_without_any_labels(tmp_path: Path) -> None:
    numbered(tmp_path, 3)
    (tmp_path / "labels.csv").write_text("000.png,9\n001.png,8\n002.png,7\n")
    model = [spec(None, 3, 4, 4)]
    assert open_validation(tmp_path, model, RAW).labels is None
    labelled = open_validation(tmp_path, model, RAW, labels=tmp_path / "labels.csv")
    assert labelled.labels is not None
    assert labelled.labels.tolist() == [9, 8, 7]
    single = open_validation(tmp_path / "001.png", model, RAW, labels=tmp_path / "labels.csv")
    assert single.labels is not None
    assert single.labels.tolist() == [8]


def test_arrays_validate_without_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", rows(6))
    data = open_validation(tmp_path / "a.npy", [spec(None, 3, 4, 4)], Preprocess(), limit=3)
    assert (len(data), data.labels) == (3, None)


def labels_in(path: Path, labels: object = None, **options: object) -> list[int] | None:
    data = open_validation(path, [spec(None, 3, 4, 4)], Preprocess(), labels, **options)  # type: ignore[arg-type]
    assert data.labels is None or (data.labels.dtype == np.int64 and len(data.labels) == len(data))
    return None if data.labels is None else data.labels.tolist()


@pytest.mark.parametrize("name", ["y", "labels", "label"])
@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
def test_labels_beside_the_inputs(tmp_path: Path, name: str, dtype: type) -> None:
    classes = np.array([3, 1, 4, 1, 5], dtype)
    np.savez(tmp_path / "a.npz", images=rows(5), **{name: classes})
    assert labels_in(tmp_path / "a.npz") == [3, 1, 4, 1, 5]
    assert labels_in(tmp_path / "a.npz", limit=2) is not None
    assert labels_in(tmp_path / "a.npz", "none") is None
    np.savez(tmp_path / "a.npz", images=rows(5), **{name: classes[:, None]})
    assert labels_in(tmp_path / "a.npz") == [3, 1, 4, 1, 5]
    calibration = open_calibration(tmp_path / "a.npz", [spec(None, 3, 4, 4)], Preprocess())
    assert (len(calibration), calibration.labels) == (5, None)


def test_an_input_called_y_is_no_label(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", y=rows(5))
    assert labels_in(tmp_path / "a.npz") is None
    np.savez(tmp_path / "b.npz", y=rows(2), labels=np.array([7, 8]))
    data = open_validation(tmp_path / "b.npz", [spec(None, 3, 4, 4, name="y")], Preprocess())
    assert data.labels is not None
    assert data.labels.tolist() == [7, 8]


def test_labels_of_rows_stay_with_their_rows(tmp_path: Path) -> None:
    """Every value of a row is its place, and so is its label, over files, subsets and shares."""
    for number, (count, start) in enumerate([(4, 0), (1, 4), (7, 5)]):
        np.savez(tmp_path / f"{number}.npz", x=rows(count, start), y=np.arange(start, start + count))
    np.save(tmp_path.parent / "all.npy", np.arange(12, dtype=np.int32)[::-1])
    for file, sign in ((None, 1), (tmp_path.parent / "all.npy", -1)):
        for limit in (None, 5):
            data = open_validation(tmp_path, [spec(None, 3, 4, 4)], Preprocess(), file, limit)
            parts = [data, data.shard(0, 2), data.shard(1, 2)]
            for part in parts:
                assert part.labels is not None
                places = [int(red) if sign == 1 else 11 - int(red) for red in first_red(part.load()["x"])]
                assert part.labels.tolist() == places
    np.savez(tmp_path / "3.npz", x=rows(2))
    with pytest.raises(DataError, match=r"'y' in .*0\.npz are labels, and .*3\.npz has none"):
        labels_in(tmp_path)
    assert labels_in(tmp_path, "none") is None


def test_labels_of_their_own_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", rows(3))
    np.save(tmp_path / "y.npy", np.array([2, 0, 1]))
    np.savez(tmp_path / "one.npz", whatever=np.array([2, 0, 1]))
    np.savez(tmp_path / "more.npz", other=np.zeros(3), labels=np.array([2, 0, 1]))
    np.save(tmp_path / "floats.npy", np.array([2.0, 0.0, 1.0]))  # as numpy.loadtxt reads them
    for name in ("y.npy", "one.npz", "more.npz", "floats.npy"):
        assert labels_in(tmp_path / "x.npy", tmp_path / name) == [2, 0, 1]
    np.savez(tmp_path / "two.npz", a=np.zeros(3), b=np.zeros(3))
    with pytest.raises(DataError, match=r"two\.npz holds a, b: call the labels y"):
        labels_in(tmp_path / "x.npy", tmp_path / "two.npz")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.array([0, 0.5, 1]), r"are float64 \(3\): one whole number a row is expected"),
        (np.array([0, np.nan, 1]), r"are float64 \(3\): one whole number a row is expected"),
        (np.array([0, -1.0, 2]), "label -1.0 .* is no class"),
        (np.array([0, 1, 2.0**63]), "label 9.22.* is no class index"),
        (np.eye(3, dtype=np.int64), r"are int64 \(3, 3\)"),
        (np.zeros(3, bool), r"are bool \(3\)"),
        (np.array(["a", "b", "c"]), r"are <U1 \(3\)"),
        (np.array([0, 1]), "are 2 for 3 rows"),
        (np.array([0, -1, 2]), "label -1 .* is no class"),
        (np.array([0, 1, 2**63], np.uint64), "label 9223372036854775808 .* is no class index"),
        (np.array([{}, {}, {}]), "cannot read labels"),
    ],
)
def test_arrays_that_are_no_labels_are_named(tmp_path: Path, values: np.ndarray, says: str) -> None:
    np.savez(tmp_path / "a.npz", x=rows(3), y=values)
    np.save(tmp_path / "y.npy", values)
    np.save(tmp_path / "x.npy", rows(3))
    for path, file in ((tmp_path / "a.npz", None), (tmp_path / "x.npy", tmp_path / "y.npy")):
        with pytest.raises(DataError, match=says) as error:
            labels_in(path, file)
        assert str(file or path) in one_line(error)


def test_labels_of_images_and_of_arrays_are_not_confused(tmp_path: Path) -> None:
    write(tmp_path / "images" / "a.png")
    np.save(tmp_path / "x.npy", rows(1))
    np.save(tmp_path / "y.npy", np.array([0]))
    with pytest.raises(DataError, match=r"y\.npy labels rows of arrays, .* holds images: give a CSV"):
        labels_in(tmp_path / "images", tmp_path / "y.npy")
    (tmp_path / "l.csv").touch()
    with pytest.raises(DataError, match=r"no file names for .*l\.csv to label: give the labels as \.npy"):
        labels_in(tmp_path / "x.npy", tmp_path / "l.csv")
    with pytest.raises(DataError, match=r"labels .*gone\.npy: no such file"):
        labels_in(tmp_path / "x.npy", tmp_path / "gone.npy")


def test_none_leaves_folders_unread(tmp_path: Path) -> None:
    write(tmp_path / "2023" / "a.png")
    write(tmp_path / "b.png")
    assert labels_in(tmp_path, "none") is None
