"""What is handed over in Python feeds a network, whatever hands it over, or is refused with the sample and the reason."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from helpers.images import RAW, first_red, numbered, one_line, rows, spec, write
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from mrecg_onnx.converters.errors import DataError, SettingsError
from mrecg_onnx.data import Dataset, InputSpec, Preprocess, given, holds_images, open_calibration, open_validation
from mrecg_onnx.data.handed import IndexedDataset, KeptDataset, MemoryDataset, PassingDataset
from mrecg_onnx.data.sources import KINDS, CalibrationReader, Samples
from mrecg_onnx.data.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Iterator

ONE = [spec(None, 3, 4, 4)]
TWO = [spec(None, 3, 4, 4, name="image"), spec(None, 2, name="scale")]
N = 10
X, Y = np.ascontiguousarray(rows(N)), np.arange(N)[::-1].copy()


class Reader:
    """As ONNX Runtime's users write them."""

    def __init__(self, name: str = "x", size: int = 1) -> None:
        self.batches, self.at = [{name: X[i : i + size]} for i in range(0, N, size)], 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        self.at += 1
        return self.batches[self.at - 1] if self.at <= len(self.batches) else None


class Rewound(Reader):
    def rewind(self) -> None:
        self.at = 0


class Ours:
    """The protocol and nothing else."""

    def __init__(self, items: Any) -> None:
        self.items, self.asked = list(items), []

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        self.asked.append(index)
        return self.items[index]


class Flow(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Any]:
        return zip(torch.from_numpy(X), Y, strict=True)

    def __len__(self) -> int:
        return N


class Column:
    """A column of `datasets`: places, length, no array."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Any:
        return self.values[index]


def generator() -> Iterator[np.ndarray]:
    yield from X


def tensors() -> TensorDataset:
    return TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))


#: What hands over the same ten samples, and whether it has their labels.
SAME: dict[str, tuple[Any, bool]] = {
    "array": (lambda: X, False),
    "float64": (lambda: X.astype(np.float64), False),
    "dict": (lambda: {"x": X}, False),
    "dict of another name": (lambda: {"pixels": X}, False),
    "dict with labels": (lambda: {"x": X, "labels": Y}, True),
    "pair of arrays": (lambda: (X, Y), True),
    "pair of an array and a list": (lambda: (X, Y.tolist()), True),
    "tensor": (lambda: torch.from_numpy(X), False),
    "tensor with a gradient": (lambda: torch.from_numpy(X.copy()).requires_grad_(), False),
    "bfloat16": (lambda: torch.from_numpy(X).bfloat16(), False),
    "list of samples": (lambda: list(X), False),
    "list of pairs": (lambda: list(zip(X, Y.tolist(), strict=True)), True),
    "list of tensors": (lambda: list(torch.from_numpy(X)), False),
    "list of batches": (lambda: [X[:4], X[4:]], False),
    "list of batches of one": (lambda: [X[i : i + 1] for i in range(N)], False),
    "list of lists of one": (lambda: [[x] for x in X], False),
    "list of dicts": (lambda: [{"x": x, "label": y} for x, y in zip(X, Y, strict=True)], True),
    "list of pairs of dicts": (lambda: [({"x": x}, y) for x, y in zip(X, Y, strict=True)], True),
    "list of numbers": (lambda: [x.tolist() for x in X], False),
    "generator": (generator, False),
    "iterator of batches": (lambda: iter([X[:3], X[3:]]), False),
    "function": (lambda: generator, False),
    "map": (lambda: map(torch.from_numpy, X), False),
    "DataLoader": (lambda: DataLoader(tensors(), batch_size=4), True),
    "DataLoader of one": (lambda: DataLoader(tensors()), True),
    "DataLoader of dicts": (
        lambda: DataLoader([{"x": x, "y": y} for x, y in zip(X, Y, strict=True)], batch_size=3),
        True,
    ),
    "DataLoader of lists": (lambda: DataLoader(list(X), batch_size=3, collate_fn=lambda b: (b, None)), False),
    "TensorDataset": (tensors, True),
    "IterableDataset": (Flow, True),
    "reader": (Reader, False),
    "reader of batches": (lambda: Reader(size=4), False),
    "reader that rewinds": (Rewound, False),
    "protocol": (lambda: Ours(zip(X, Y, strict=True)), True),
    "column": (lambda: Column(list(X)), False),
    "columns": (lambda: {"x": Column(list(X)), "label": Column(Y.tolist())}, True),
}


def opened(source: Any, inputs: list[InputSpec] = ONE, **more: Any) -> Dataset:
    return open_calibration(source, inputs, Preprocess(), **more)


def validated(source: Any, inputs: list[InputSpec] = ONE, **more: Any) -> Dataset:
    return open_validation(source, inputs, Preprocess(), **more)


@pytest.mark.parametrize("kind", SAME)
def test_calibration_sees_the_same_samples_whatever_hands_them_over(kind: str) -> None:
    data = opened(SAME[kind][0]())
    np.testing.assert_array_equal(data.load()["x"], X)
    np.testing.assert_array_equal(data.load()["x"], X)  # also in the second pass
    assert first_red(data.batch([7, 1, 7])["x"]) == [7, 1, 7]
    assert data.load()["x"].dtype == np.float32
    assert (len(data), data.files, data.preprocess, data.labels, data.skipped) == (N, None, None, None, [])
    assert data.fingerprint() == opened(X).fingerprint()


@pytest.mark.parametrize("kind", SAME)
@pytest.mark.parametrize("size", [3, 32])
def test_validation_sees_the_same_samples_and_their_labels(kind: str, size: int) -> None:
    make, labelled = SAME[kind]
    data = validated(make())
    seen, targets = [], []
    for inputs, indices in data.batches(size):
        assert indices.tolist() == list(range(len(seen), len(seen) + len(indices)))
        seen += first_red(inputs["x"])
        if labelled:
            assert data.labels is not None
            assert data.labels[indices].tolist() == Y[indices].tolist()
            targets += [int(target) for target in data.targets_of(indices) or ()]
    assert seen == list(range(N))
    assert len(data) == N
    assert targets == (Y.tolist() if labelled else [])
    if labelled:
        assert data.labels is not None
        assert data.labels.tolist() == Y.tolist()
        assert [validated(make(), labels="none").labels, opened(make()).labels] == [None, None]
    else:
        assert data.labels is None
        assert data.targets_of([0]) is None


@pytest.mark.parametrize("kind", SAME)
def test_shares_of_processes_are_those_of_the_array(kind: str) -> None:
    make, labelled = SAME[kind]
    for rank in range(3):
        share = validated(make()).shard(rank, 3)
        seen = [(inputs["x"], share.labels[indices] if labelled else None) for inputs, indices in share.batches(2)]
        assert [i for x, _ in seen for i in first_red(x)] == list(range(rank, N, 3))
        if labelled:
            assert [int(y) for _, labels in seen for y in labels] == Y[rank::3].tolist()  # type: ignore[union-attr]
        calibration = opened(make()).shard(rank, 3)
        assert first_red(calibration.load()["x"]) == list(range(rank, N, 3))


def test_forms_cost_what_they_have_to() -> None:
    assert isinstance(opened(X), MemoryDataset)
    assert isinstance(opened(generator()), KeptDataset)
    assert isinstance(validated(tensors()), IndexedDataset)
    assert isinstance(validated(generator()), PassingDataset)
    assert isinstance(validated(generator(), keep=True), KeptDataset)


def test_arrays_are_not_copied() -> None:
    array = X.copy()
    data = opened(array)
    array[3] = 99
    assert first_red(data.batch([3])["x"]) == [99]


# --- several inputs, fixed batches --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["dict", "list", "pairs", "loader", "reader", "columns"])
def test_several_inputs_come_by_name(form: str) -> None:
    scale = np.arange(2 * N, dtype=np.float32).reshape(N, 2)
    samples = [{"image": x, "scale": s, "more": 1} for x, s in zip(X, scale, strict=True)]
    source: Any = {
        "dict": {"image": X, "scale": scale, "more": np.zeros(3)},
        "list": samples,
        "pairs": [(sample, 1) for sample in samples],
        "loader": DataLoader(samples, batch_size=4),  # type: ignore[arg-type]
        "reader": iter([{"image": X[:6], "scale": scale[:6]}, {"image": X[6:], "scale": scale[6:]}]),
        "columns": {"image": list(X), "scale": list(scale)},
    }[form]
    data = opened(source, TWO)
    np.testing.assert_array_equal(data.load()["image"], X)
    np.testing.assert_array_equal(data.load()["scale"], scale)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (X, r"the ndarray is one array, the model has 2 inputs \('image', 'scale'\): give a dict by input name"),
        (list(X), r"sample 0 of the list is one ndarray, the model has 2 inputs \('image', 'scale'\): give a dict"),
        ({"image": X}, r"the dict has nothing for input 'scale': it holds 'image'"),
        ({"image": X, "scale": np.zeros((3, 2), np.float32)}, r"different numbers of rows: 'image' 10, 'scale' 3"),
        (
            [{"image": X, "scale": np.zeros((3, 2), np.float32)}],
            r"sample 0 of the list: .* rows: 'image' 10, 'scale' 3",
        ),
        ({"image": list(X), "scale": [1]}, r"different numbers of samples \('image' 10, 'scale' 1\)"),
    ],
)
def test_several_inputs_that_are_not_there(source: Any, says: str) -> None:
    with pytest.raises(DataError, match=says) as error:
        opened(source, TWO)
    one_line(error)


@pytest.mark.parametrize("batch", [1, 4, 16])
@pytest.mark.parametrize("kind", ["array", "list of samples", "list of batches", "DataLoader", "reader"])
def test_a_fixed_batch_of_the_model_asks_for_no_other_data(batch: int, kind: str) -> None:
    inputs = [spec(batch, 3, 4, 4)]
    np.testing.assert_array_equal(opened(SAME[kind][0](), inputs).load()["x"], X)


# --- how many -----------------------------------------------------------------------------------------------------------------


def test_samples_are_spread_where_places_are_known() -> None:
    expected = first_red(opened(X, samples=4, seed=3).load()["x"])
    assert expected != [0, 1, 2, 3]
    for kind in ("dict", "list of samples", "TensorDataset", "protocol", "column", "list of batches of one"):
        assert first_red(opened(SAME[kind][0](), samples=4, seed=3).load()["x"]) == expected
        assert first_red(
            np.concatenate([x["x"] for x, _ in validated(SAME[kind][0](), limit=4).batches(3)])
        ) == first_red(validated(X, limit=4).load()["x"])


def test_only_what_is_chosen_is_asked_for() -> None:
    source = Ours(X)
    opened(source, samples=2)
    assert len(source.asked) <= 3  # the first one tells what they are
    assert len(set(source.asked) - {0}) <= 2


def test_of_a_stream_the_first_ones_are_taken_and_no_item_more() -> None:
    asked: list[int] = []

    def endless() -> Iterator[tuple[np.ndarray, int]]:
        for i in itertools.count():
            asked.append(i)
            yield X[i % N], i

    assert first_red(opened(endless(), samples=5).load()["x"]) == [0, 1, 2, 3, 4]
    assert asked == [0, 1, 2, 3, 4]
    data = validated(endless(), limit=7)
    assert [first_red(x["x"]) for x, _ in data.batches(3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert len(asked) == 12
    assert len(data) == 7
    batches = itertools.repeat(X)
    assert len(opened(batches, samples=25)) == 25


def test_what_does_not_end_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrecg_onnx.data.handed.MOST", 40)
    with pytest.raises(
        DataError, match="the repeat goes on behind 40 samples: say how many to use, with samples or limit"
    ):
        opened(itertools.repeat(X))
    with pytest.raises(DataError, match="goes on behind 40 samples"):
        list(validated(itertools.repeat(X)).batches(16))


@pytest.mark.parametrize("count", [0, -1])
def test_numbers_below_one_are_refused(count: int) -> None:
    for source in (X, list(X), DataLoader(tensors())):
        with pytest.raises(SettingsError, match=f"must be 1 or more, got {count}"):
            list(validated(source, limit=count).batches(2))


def test_what_is_kept_goes_to_disk_where_memory_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(100, (3, 4, 4), np.dtype(np.float32))
    spool.add(X[:4])
    spool.add(X[4:])
    assert spool._file._rolled  # type: ignore[attr-defined]
    np.testing.assert_array_equal(spool.read([9, 0, 5]), X[[9, 0, 5]])
    data = opened(generator(), memory=1)
    np.testing.assert_array_equal(data.load()["x"], X)
    held = opened(generator(), memory=1 << 30)
    assert not held._spools["x"]._file._rolled  # type: ignore[attr-defined]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spool._file, "write", full, raising=False)
    with pytest.raises(DataError, match=r"no room for the samples .No space left on device.: let TMPDIR name"):
        spool.add(X)


# --- reading once, and again --------------------------------------------------------------------------------------------------


def test_what_can_be_read_once_says_so() -> None:
    data = validated(generator())
    assert len(list(data.batches(4))) == 3
    with pytest.raises(
        DataError, match="the generator can be read once, and was: give a list, a DataLoader or a function"
    ):
        list(data.batches(4))
    used = generator()
    list(used)
    with pytest.raises(DataError, match="the generator is empty, or was read before: it can be read once"):
        opened(used)


@pytest.mark.parametrize(
    "kind", ["function", "DataLoader", "reader that rewinds", "IterableDataset", "list of batches"]
)
def test_what_can_be_read_again_is(kind: str) -> None:
    data = validated(SAME[kind][0]())
    for _ in range(2):
        assert [i for x, _ in data.batches(4) for i in first_red(x["x"])] == list(range(N))


def test_the_first_samples_of_a_stream_can_be_asked_for_again() -> None:
    for source in (generator(), DataLoader(tensors(), batch_size=4)):
        data = validated(source)
        list(data.batches(3))
        assert first_red(data.load(N)["x"]) == list(range(N))
        assert first_red(data.batch([8, 2])["x"]) == [8, 2]
        assert len(data.load(4)["x"]) == 4


def test_a_stream_tells_about_how_many_samples_will_come() -> None:
    data = validated(DataLoader(tensors(), batch_size=4))
    assert len(data) == 12  # three batches like the first one
    list(data.batches(3))
    assert len(data) == N
    assert len(validated(DataLoader(tensors(), batch_size=4), limit=6)) == 6
    assert len(validated(generator())) == 0


def test_a_reader_that_was_used_is_rewound() -> None:
    reader = Rewound()
    reader.get_next()
    assert first_red(opened(reader).load()["x"]) == list(range(N))


def test_looking_at_a_shuffled_loader_changes_nothing_about_its_order() -> None:
    def orders(look: bool) -> list[int]:
        torch.manual_seed(5)
        source = given(DataLoader(tensors(), batch_size=2, shuffle=True))
        if look:
            assert not holds_images(source)
            assert not holds_images(source)
        return first_red(opened(source).load()["x"])

    assert orders(look=True) == orders(look=False)
    torch.manual_seed(5)
    plain = [int(x[0, 0, 0]) for batch, _ in DataLoader(tensors(), batch_size=2, shuffle=True) for x in batch]
    assert orders(look=True) == plain != list(range(N))


def test_workers_of_a_loader_do_not_change_the_order() -> None:
    data = opened(DataLoader(tensors(), batch_size=2, num_workers=2))
    assert first_red(data.load()["x"]) == list(range(N))


def test_random_transforms_are_drawn_once() -> None:
    class Noisy(Ours):
        def __getitem__(self, index: int) -> Any:
            return self.items[index] + np.random.default_rng().random(dtype=np.float32)

    data = opened(Noisy(X))
    np.testing.assert_array_equal(data.load()["x"], data.load()["x"])


# --- images -------------------------------------------------------------------------------------------------------------------


def test_images_and_paths_are_preprocessed_as_files_in_a_folder_are(tmp_path: Path) -> None:
    files = numbered(tmp_path, 6)
    expected = open_calibration(tmp_path, ONE, RAW)
    images = [Image.open(file) for file in files]
    kinds: dict[str, Any] = {
        "paths": files,
        "strings": [str(file) for file in files],
        "generator of paths": iter(files),
        "images": images,
        "pairs": list(zip(images, range(6), strict=True)),
        "generator": iter(images),
        "rows of a data set": [{"img": image, "label": 1, "fine": 2} for image in images],
        "column": Column(images),
        "columns": {"image": images, "label": list(range(6))},
        "protocol": Ours(images),
        "batches": iter([(images[:2], [0, 1]), (images[2:], [2, 3, 4, 5])]),
        "loader": DataLoader(Ours(files), batch_size=4, collate_fn=lambda batch: (batch, None)),  # type: ignore[arg-type]
    }
    for name, source in kinds.items():
        taken = given(source)
        assert holds_images(taken), name
        data = open_calibration(taken, ONE, RAW)
        np.testing.assert_array_equal(data.load()["x"], expected.load()["x"], err_msg=name)
        assert data.preprocess == expected.preprocess, name
    assert open_calibration(files, ONE, RAW).fingerprint() == expected.fingerprint()
    assert [image.size for image in images] == [(4, 4)] * 6


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_an_image_gives_the_pixels_of_its_file_and_stays_what_it_is(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    image = Image.fromarray(noise)
    image = Image.fromarray(noise[:, :, 0].astype(np.uint16) * 200) if mode == "I;16" else image.convert(mode)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(file, exif=exif)
    with Image.open(file) as opened_image:
        before = opened_image.copy()
        size = before.size  # some versions of Pillow turn a TIFF themselves when it is read
        for one in (opened_image, before):
            got = open_calibration([one], ONE, RAW).load()["x"]
            np.testing.assert_array_equal(got, open_calibration(file, ONE, RAW).load()["x"])
        assert (opened_image.size, opened_image.mode) == (before.size, before.mode) == (size, image.mode)


def test_labels_of_paths_come_in_pairs_or_by_hand(tmp_path: Path) -> None:
    files = numbered(tmp_path, 3)
    assert validated(files, [spec(None, 3, 2, 2)]).labels is None
    pairs = list(zip(files, (2, 0, 1), strict=True))
    for data in (
        open_validation(pairs, ONE, RAW),
        open_validation(files, ONE, RAW, [2, 0, 1]),
        open_validation(iter(pairs), ONE, RAW),
    ):
        assert data.labels is not None
        assert data.labels.tolist() == [2, 0, 1]
        assert data.files == files
    with pytest.raises(DataError, match="sample 1 of the list has no label, others have one"):
        open_validation([pairs[0], files[1]], ONE, RAW)


def test_lists_of_array_files_are_read_as_a_folder_of_them(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", X[:4])
    np.save(tmp_path / "b.npy", X[4:])
    data = opened([tmp_path / "a.npy", tmp_path / "b.npy"])
    np.testing.assert_array_equal(data.load()["x"], X)
    assert data.fingerprint() == opened(tmp_path).fingerprint()
    with pytest.raises(DataError, match="names both images and arrays"):
        opened([tmp_path / "a.npy", tmp_path / "c.png"])


def test_images_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    good = write(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"more than 5% .*bad\.png \(not an image"):
        open_calibration([good, tmp_path / "bad.png"], ONE, RAW).load()
    with pytest.raises(DataError, match=r"sample 1 of the list, .*bad\.png, cannot be read: not an image"):
        open_calibration([{"x": good}, {"x": tmp_path / "bad.png"}], ONE, RAW)
    with pytest.raises(DataError, match="sample 0 of the list cannot be read: floating-point pixels"):
        open_calibration([Image.new("F", (4, 4))], ONE, RAW)


def test_images_and_arrays_do_not_mix() -> None:
    image = Image.new("RGB", (4, 4))
    with pytest.raises(DataError, match="sample 1 of the list is an ndarray, those before it are images"):
        open_calibration([image, X[0]], ONE, RAW)
    with pytest.raises(DataError, match="sample 1 of the list is an image, those before it are arrays"):
        open_calibration([X[0], image], ONE, RAW)
    with pytest.raises(DataError, match="images feed models with one input, this one has 2"):
        open_calibration([image], TWO, RAW)


# --- labels -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels", [Y[:5], Y[:5].tolist(), torch.from_numpy(Y[:5]), np.eye(3, dtype=np.float32)[Y[:5] % 3]]
)
def test_labels_of_another_number_are_told_as_labels(labels: Any) -> None:
    with pytest.raises(DataError, match=r"the pair of arrays has 10 samples and 5 labels: .* pairs \(input, label\)"):
        validated((X, labels))
    assert sum(len(rows) for _, rows in validated((X[:6], X[6:])).batches(4)) == N  # two batches


@pytest.mark.parametrize("labels", [Y, Y.tolist(), torch.from_numpy(Y), Y[:, None].astype(np.uint8)])
def test_labels_are_handed_over_beside_the_data(labels: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    numbered(tmp_path / "images", N)
    images = open_validation(tmp_path / "images", ONE, RAW, labels, 4)
    assert images.labels is not None
    assert images.labels.tolist() == Y[first_red(images.load()["x"])].tolist()
    with pytest.raises(DataError, match="has 10 samples and 3 labels: give one for each"):
        open_validation(tmp_path / "images", ONE, RAW, [1, 2, 3])
    for source in (X, {"x": X}, list(X), tensors(), tmp_path / "x.npy"):
        data = validated(source, labels=labels, limit=4)
        list(data.batches(2))
        assert data.labels is not None
        assert data.labels.tolist() == Y[first_red(data.load()["x"])].tolist()
    with pytest.raises(DataError, match="the ndarray has 9 samples and 10 labels: give one for each"):
        validated(X[:9], labels=labels)
    with pytest.raises(DataError, match=r"come with its items: give pairs"):
        validated(generator(), labels=labels)


def test_a_file_of_labels_belongs_to_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels in .*y\.npy belong to files; for the ndarray give an array"):
        validated(X, labels=tmp_path / "y.npy")


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int32])
def test_whole_numbers_are_classes_also_as_floats(kind: type) -> None:
    """numpy.loadtxt and tables of pandas have them so."""
    labels = np.arange(N).astype(kind)
    pairs = list(zip(X, labels, strict=True))
    loader = DataLoader(TensorDataset(torch.from_numpy(X), torch.from_numpy(labels)), batch_size=2)
    for source in ((X, labels), (X, labels[:, None]), pairs, iter(pairs), loader):
        data = validated(source)
        for _ in data.batches(4):
            pass
        assert data.labels is not None
        assert data.labels.tolist() == list(range(N))
        assert data.doubts == ()
    assert validated(X, labels=labels.tolist()).labels.tolist() == list(range(N))


@pytest.mark.parametrize(("odd", "shown"), [(0.5, "0.5"), ("cat", "'cat'"), (float("nan"), "nan"), (True, "True")])
def test_what_is_no_class_is_shown(odd: object, shown: str) -> None:
    """Once, whatever they come in; a metric takes them."""
    targets = [1, *[odd] * (N - 1)]
    pairs = list(zip(X, targets, strict=True))
    for source in ((X, targets), pairs, iter(pairs)):
        data = validated(source)
        for _ in data.batches(2):
            pass
        assert data.labels is None
        (said,) = data.doubts
        assert f"no classes (whole numbers from 0), such as {shown}: there is no accuracy" in said
    assert validated(pairs, classes=False).doubts == ()


def test_targets_that_are_no_classes_are_kept_as_they_are() -> None:
    masks = np.random.default_rng(0).random((N, 2, 2))
    pairs = list(zip(X, masks, strict=True))
    for source in (
        (X, masks),
        pairs,
        iter(pairs),
        DataLoader(TensorDataset(torch.from_numpy(X), torch.from_numpy(masks))),
    ):
        data = validated(source)
        for _, indices in data.batches(4):
            assert data.labels is None
            targets = data.targets_of(indices)
            assert targets is not None
            np.testing.assert_array_equal(np.stack(targets), masks[indices])
        assert len(data.doubts) == 1
    boxes = [{"boxes": np.zeros((i, 4)), "labels": np.arange(i)} for i in range(N)]
    data = validated([(x, box) for x, box in zip(X, boxes, strict=True)])
    ((_, indices),) = data.batches(N)
    assert [len(target["labels"]) for target in data.targets_of(indices) or ()] == list(range(N))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ([(X[0], 1), (X[1], -1)], "label -1 of sample 1 is no class: they count from 0"),
        ([(X[0], 1), X[1]], "sample 1 of the list has no target, those before it have one: give one for each"),
        ([X[0], (X[1], 1)], "sample 1 of the list has a target, those before it have none: give one for each"),
        (
            [(X[:4], Y[:3])],
            "sample 0 of the list and those after it are a batch of 4 with 3 targets: give one for each",
        ),
        ([(X[:4], 1)], "sample 0 of the list and those after it are a batch of 4 with one target"),
    ],
)
def test_labels_that_do_not_belong(source: Any, says: str) -> None:
    for one in (source, iter(source)):
        with pytest.raises(DataError, match=says.replace("the list", r"the \w+")) as error:
            list(validated(one).batches(4))
        one_line(error)
        if "no target" not in says and "a target" not in says and "-1" not in says:
            continue
        list(validated(list(source), labels="none").batches(4))


# --- what is refused ----------------------------------------------------------------------------------------------------------


BAD = X.copy()
BAD[6, 1, 2, 3] = np.nan


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (
            X[:, :, :3],
            r"the ndarray is float32 \(10, 3, 3, 4\), and does not fit input 'x' .*: axis 2 is 3 and has to be 4 ",
        ),
        (X[0], r"the ndarray is one sample \(3, 4, 4\) for input 'x' .*: give several, the batch first"),
        (np.moveaxis(X, 1, 3), r"\(10, 4, 4, 3\), and does not fit .*: its channels come last, bring them to axis 1"),
        (list(np.moveaxis(X, 1, 3)), r"sample 0 of the list is float32 \(4, 4, 3\), .*: its channels come last"),
        (
            X.astype(np.uint8),
            r"holds uint8, input 'x' .* wants float32: .*\(PIL images and paths of images are preprocessed\)",
        ),
        (X.astype(np.int64), r"the ndarray holds int64, input 'x' .* wants float32: arrays are fed as they are"),
        (X.astype(object), r"the ndarray holds Python objects, which are never taken"),
        (list(X.astype(object)), r"sample 0 of the list holds Python objects, which are never taken"),
        (X[:0], r"the ndarray is empty: its shape is \(0, 3, 4, 4\)"),
        ([], "the list is empty: give at least one sample"),
        (iter([]), r"the list_iterator is empty"),
        (DataLoader([]), r"the DataLoader is empty"),
        (X.astype(np.complex64), "holds complex64"),
        (X.astype(str), "holds <U32"),
        (
            [X[0], X[1][:, :3]],
            r"sample 1 of the list is float32 \(3, 3, 4\), .*: axis 1 is 3 and has to be 4 \(seen as one",
        ),
        ([X[0], None], "sample 1 of the list is a NoneType: an array, a tensor, a PIL image"),
        ([X[0], {1, 2}], "sample 1 of the list is a set: an array"),
        ([(X[0], 1, 2)], r"sample 0 of the list is a tuple of 3: give inputs, or a pair \(inputs, target\)"),
        ([[[1.0, 2.0], [1.0]]], r"list"),
        ({"a": X, "b": X}, "the dict has nothing for input 'x': it holds 'a', 'b'; give a dict by input name"),
        ({}, "the dict has nothing for input 'x': it holds nothing"),
        (3, r"data of type int are not known: give a path, an image, a dict by input name, .*docs/data\.md"),
        (None, r"data of type NoneType are not known"),
        (b"abc", r"data of type bytes are not known"),
        (dict, r"data of type type are not known"),
    ],
)
def test_what_does_not_fit_is_one_line(source: Any, says: str) -> None:
    with pytest.raises(DataError, match=says) as error:
        opened(source)
    one_line(error)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((497, 8, 8), r"the channel axis is missing: reshape it to \(497, 1, 8, 8\)$"),
        ((497, 64), r"it has 2 axes, the input 4 axes, the batch first$"),
        ((497, 1, 7, 8), r"axis 2 is 7 and has to be 8 \(the batch comes first\)$"),
        ((497, 3, 7, 8), r"axis 1 is 3 and has to be 1, axis 2 is 7 and has to be 8 \(the"),
        ((497, 8, 7), r"axis 0 is 497 and has to be 1, axis 2 is 7 and has to be 8 \(seen as one sample"),
    ],
)
@pytest.mark.parametrize("form", ["array", "batches", "file"])
def test_what_is_wrong_with_a_shape_is_named(shape: tuple[int, ...], says: str, form: str, tmp_path: Path) -> None:
    array = np.zeros(shape, np.float32)
    np.save(tmp_path / "a.npy", array)
    source: Any = {"array": array, "batches": [array], "file": tmp_path / "a.npy"}[form]
    with pytest.raises(DataError, match=r"does not fit input 'x' \(\?, 1, 8, 8\) float32: " + says) as error:
        opened(source, inputs=[spec(None, 1, 8, 8)])
    one_line(error)


def test_labels_that_are_too_few_are_counted() -> None:
    for said in (lambda: validated(X, labels=Y[:5]), lambda: validated({"x": X, "y": Y[:5]})):
        with pytest.raises(DataError, match=r"the \w+ has 10 samples and 5 labels: give one for each"):
            said()


@pytest.mark.parametrize(
    "make", [lambda: BAD, lambda: {"x": BAD}, lambda: list(BAD), lambda: iter(BAD), lambda: iter([BAD[:4], BAD[4:]])]
)
@pytest.mark.parametrize("open_", [opened, validated])
def test_values_that_are_not_finite_name_their_sample(make: Any, open_: Any) -> None:
    with pytest.raises(
        DataError, match=r"NaN, Inf or a value too large for float32 in sample 6 for input 'x' of the \w+"
    ):
        list(open_(make()).batches(2))


def test_all_samples_have_one_size_where_the_model_leaves_it_free() -> None:
    inputs = [spec(None, 3, None, None)]
    for source in ([X[0], X[1][:, :3]], iter([X, X[:, :, :3]])):
        with pytest.raises(
            DataError, match=r"is \(3, 3, 4\) for input 'x', those before it \(3, 4, 4\): all must have one size"
        ):
            opened(source, inputs)


def test_a_failure_of_the_callers_own_code_is_one_line_and_keeps_its_cause() -> None:
    def broken() -> Iterator[np.ndarray]:
        yield X[0]
        raise ValueError("two\nlines")

    with pytest.raises(DataError, match=r"^item 1 of the generator: reading it failed with ValueError: two$") as error:
        opened(broken())
    assert isinstance(error.value.__cause__, ValueError)

    class Broken(Ours):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index) if index < 2 else 1 / 0

    with pytest.raises(DataError, match=r"^sample 2 of the Broken: reading it failed with ZeroDivisionError"):
        opened(Broken(X))

    def stopped() -> Iterator[np.ndarray]:
        yield X[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opened(stopped())


def test_tensors_that_make_no_array_are_refused() -> None:
    with pytest.raises(DataError, match="the Tensor is a tensor on the device meta, which holds no numbers"):
        opened(torch.empty((2, 3, 4, 4), device="meta"))
    sparse = torch.from_numpy(X).to_sparse()
    np.testing.assert_array_equal(opened(sparse).load()["x"], X)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_tensors_on_a_gpu_are_fetched() -> None:
    np.testing.assert_array_equal(opened(torch.from_numpy(X).cuda()).load()["x"], X)
    np.testing.assert_array_equal(opened(list(torch.from_numpy(X).cuda())).load()["x"], X)


# --- the table, the protocols -------------------------------------------------------------------------------------------------


def test_paths_and_what_was_recognised_stay_what_they_are(tmp_path: Path) -> None:
    assert given("a/b") == "a/b"
    assert given(tmp_path) is tmp_path
    taken = given(X)
    assert given(taken) is taken
    data = opened(X)
    assert given(data) is data
    assert opened(data) is data


def test_protocols_are_what_they_say() -> None:
    assert isinstance(Ours([]), Samples)
    assert isinstance(Reader(), CalibrationReader)
    assert not isinstance(generator(), Samples)
    assert len({kind.name for kind in KINDS}) == len(KINDS)


def test_nothing_is_imported_to_recognise_data() -> None:
    import subprocess

    code = (
        "import sys, numpy as np\n"
        "from mrecg_onnx.data import InputSpec, Preprocess, open_calibration\n"
        "spec = [InputSpec('x', (None, 2), np.dtype('float32'))]\n"
        "x = np.zeros((3, 2), np.float32)\n"
        "for source in (x, {'x': x}, list(x), iter(x)):\n"
        "    open_calibration(source, spec, Preprocess())\n"
        "print(sorted({'torch', 'datasets', 'onnxruntime'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- the real packages --------------------------------------------------------------------------------------------------------


def test_data_sets_of_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    files = numbered(tmp_path, 6)
    images = [Image.open(file).copy() for file in files]
    data = datasets.Dataset.from_dict(
        {"image": images, "label": list(range(6)), "other": ["a"] * 6},
        features=datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(6), "other": datasets.Value("string")}
        ),
    )
    expected = open_calibration(tmp_path, ONE, RAW).load()["x"]
    for source in (data, data["image"], data.to_iterable_dataset(), data[:6], data.select_columns(["image"])):
        np.testing.assert_array_equal(open_calibration(source, ONE, RAW).load()["x"], expected)
    for source in (data, data.to_iterable_dataset(), data[:6]):
        seen = open_validation(source, ONE, RAW)
        list(seen.batches(4))
        assert seen.labels is not None
        assert seen.labels.tolist() == list(range(6))
    arrays = datasets.Dataset.from_dict({"x": [x.tolist() for x in X], "label": Y.tolist()})
    for source in (arrays, arrays.with_format("numpy"), arrays.with_format("torch"), arrays["x"]):
        np.testing.assert_array_equal(opened(source).load()["x"], X)
    with pytest.raises(DataError, match=r"holds 'train', 'test'|one split"):
        opened(datasets.DatasetDict({"train": arrays, "test": arrays}))


def test_the_reader_of_onnx_runtime() -> None:
    calibrate = pytest.importorskip("onnxruntime.quantization.calibrate")

    class Own(Reader, calibrate.CalibrationDataReader):  # type: ignore[misc, name-defined]
        pass

    for source in (Own(), Own(size=3)):
        np.testing.assert_array_equal(opened(source).load()["x"], X)


def test_what_is_no_image_needs_no_mean(tmp_path: Path) -> None:
    """Of a model with one channel mean and deviation are asked for, but not of names where no images are."""
    one = [InputSpec("x", (None, 1, 8, 8), "float32")]
    script = tmp_path / "train.py"
    script.write_text("import torch\n")
    for source, says in (
        (["a.png", "b.png"], "a.png: cannot be read: No such file"),
        (script, "cannot be read: not an image"),
    ):
        with pytest.raises(DataError, match=says):
            open_calibration(source, one, Preprocess(), samples=2)
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(SettingsError, match="give --mean and --std"):
        open_calibration([tmp_path / "a.png", tmp_path / "b.png"], one, Preprocess(), samples=2)
