"""What is handed over and written to files is the same when it is read there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.images import RAW, numbered, rows, spec
from PIL import Image

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.data import (
    Dataset,
    Frozen,
    Given,
    InputSpec,
    Preprocess,
    freeze,
    given,
    open_calibration,
    open_validation,
)

ONE = [spec(None, 3, 4, 4)]
TWO = [spec(None, 3, 4, 4, name="image"), spec(None, 2, name="scale")]
N = 10
X, Y = np.ascontiguousarray(rows(N)), np.arange(N)[::-1].copy()


def frozen(
    source: Any, folder: Path, inputs: list[InputSpec] = ONE, preprocess: Preprocess = RAW, **more: Any
) -> Frozen:
    taken = given(source)
    assert isinstance(taken, Given)
    return freeze(taken, inputs, preprocess, folder, "some", **{"samples": None, "labelled": True, **more})


def read(made: Frozen, inputs: list[InputSpec] = ONE, preprocess: Preprocess = RAW) -> Dataset:
    return open_validation(made.source, inputs, preprocess, made.labels)


@pytest.mark.parametrize("limit", [None, 4])
@pytest.mark.parametrize(
    "make",
    [lambda: (X, Y), lambda: iter(zip(X, Y, strict=True)), lambda: [({"x": x}, y) for x, y in zip(X, Y, strict=True)]],
)
def test_arrays_and_labels(make: Any, limit: int | None, tmp_path: Path) -> None:
    made = frozen(make(), tmp_path, samples=limit)
    expected = open_validation(make(), ONE, RAW, limit=limit, keep=True)
    data = read(made)
    np.testing.assert_array_equal(data.load()["x"], expected.load()["x"])
    assert data.labels is not None
    assert expected.labels is not None
    assert data.labels.tolist() == expected.labels.tolist()
    assert read(frozen(make(), tmp_path, labels="none")).labels is None


def test_calibration_draws_as_it_does_elsewhere(tmp_path: Path) -> None:
    made = frozen(X, tmp_path, samples=4, seed=3, labelled=False)
    expected = open_calibration(X, ONE, RAW, samples=4, seed=3)
    np.testing.assert_array_equal(open_calibration(made.source, ONE, RAW).load()["x"], expected.load()["x"])
    assert made.labels == "none"


def test_several_inputs(tmp_path: Path) -> None:
    scale = np.arange(2 * N, dtype=np.float32).reshape(N, 2)
    made = frozen({"image": X, "scale": scale, "labels": Y}, tmp_path, TWO)
    data = read(made, TWO)
    np.testing.assert_array_equal(data.load()["image"], X)
    np.testing.assert_array_equal(data.load()["scale"], scale)
    assert data.labels is not None
    assert data.labels.tolist() == Y.tolist()


def test_digests_go_by_values_and_labels(tmp_path: Path) -> None:
    digest = frozen((X, Y), tmp_path).digest
    assert frozen(iter(zip(X, Y, strict=True)), tmp_path).digest == digest
    assert frozen((X, Y[::-1]), tmp_path).digest != digest
    assert frozen((X[::-1], Y), tmp_path).digest != digest
    assert frozen(X, tmp_path).digest != digest


@pytest.mark.parametrize("preprocess", [RAW, Preprocess((0.0,), (1.0,), 1.0, resize=9, crop=(4, 4))])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I"])
def test_images_keep_their_pixels(mode: str, preprocess: Preprocess, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 14, 12, 3), np.uint8)
    wide = [Image.fromarray(one[:, :, 0].astype(np.uint16) * 200) for one in noise]
    images = (
        [Image.fromarray(one).convert(mode) for one in noise] if mode[0] != "I" else [one.convert(mode) for one in wide]
    )
    for image in images:
        exif = image.getexif()
        exif[0x0112] = 6
        image.info["exif"] = exif.tobytes()
    pairs = list(zip(images, (4, 0, 2), strict=True))
    expected = open_validation(pairs, ONE, preprocess, keep=True)
    for number, source in enumerate(
        (pairs, iter(pairs), {"image": images, "label": [4, 0, 2]}, iter([(images, [4, 0, 2])]))
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        data = read(frozen(source, folder, preprocess=preprocess), preprocess=preprocess)
        np.testing.assert_array_equal(data.load()["x"], expected.load()["x"])
        assert data.labels is not None
        assert data.labels.tolist() == [4, 0, 2]
        assert data.preprocess == expected.preprocess


def test_labels_beside_images_belong_to_those_that_are_chosen(tmp_path: Path) -> None:
    images = [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(N)]
    made = frozen(images, tmp_path, samples=3, labels=Y)
    expected = open_validation(images, ONE, RAW, Y, 3)
    assert expected.labels is not None
    assert read(made).labels.tolist() == expected.labels.tolist()  # type: ignore[union-attr]
    np.testing.assert_array_equal(read(made).load()["x"], expected.load()["x"])
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match=r"labels of the list_iterator come with its items"):
        frozen(iter(images), tmp_path / "b", labels=Y)


@pytest.mark.parametrize("limit", [None, 4])
@pytest.mark.parametrize("kind", ["arrays", "images", "files"])
def test_targets_that_are_no_classes_go_with_them(kind: str, limit: int | None, tmp_path: Path) -> None:
    masks = np.random.default_rng(0).random((N, 2, 2))
    files = numbered(tmp_path / "images", N)
    samples: Any = {"arrays": list(X), "images": [Image.open(file) for file in files], "files": files}[kind]
    pairs = list(zip(samples, masks, strict=True))
    made = frozen(pairs, tmp_path, samples=limit)
    data, expected = read(made), open_validation(pairs, ONE, RAW, limit=limit, keep=True)
    assert data.labels is None
    np.testing.assert_array_equal(data.targets_of(range(len(data))), expected.targets_of(range(len(expected))))
    assert made.digest == frozen(pairs, _new(tmp_path / "again"), samples=limit).digest
    others = list(zip(samples, masks[::-1], strict=True))
    assert made.digest != frozen(others, _new(tmp_path / "others"), samples=limit).digest


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_listed_files_stay_where_they_are(tmp_path: Path) -> None:
    files = numbered(tmp_path / "images", 5)
    folder = tmp_path / "out"
    folder.mkdir()
    for source in (files, iter(files)):
        made = frozen(source, folder)
        assert (made.source, made.labels) == (files, "none")
    made = frozen(list(zip(files, range(5), strict=True)), folder, samples=2)
    data = read(made)
    assert data.files is not None
    assert data.labels is not None
    assert [int(file.stem) for file in data.files] == data.labels.tolist()
    assert len(data) == 2
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (
            [(Image.new("RGB", (4, 4)), 1), Image.new("RGB", (4, 4))],
            "some samples of the list have a target and others none",
        ),
        ([Image.new("F", (4, 4))], "floating-point pixels has no agreed range"),
        ([Image.new("RGB", (4, 4)), X[0]], "sample 1 of the list is an ndarray, those before it are images"),
        ([(Image.new("RGB", (4, 4)), -1)], "label -1 of sample 0 is no class"),
    ],
)
def test_what_cannot_be_written_is_one_line(source: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says):
        frozen(source, tmp_path)


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the ndarray cannot be written to .*missing: No such file"):
        frozen(X, tmp_path / "missing")
