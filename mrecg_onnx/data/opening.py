"""Images or arrays, on disk or handed over in Python -> a data set of the model's inputs, for calibration and validation.

What is read:

* a folder, searched recursively and sorted, or one image: decoded by Pillow, brought to the model's size and normalized
  as a :class:`~mrecg_onnx.data.Preprocess` says;
* ``.npy`` (models with one input) or ``.npz`` (arrays by input name), one file or a folder of them: ready inputs, batch
  first, fed as they are;
* objects in Python (:data:`mrecg_onnx.data.sources.KINDS`): arrays and tensors, fed as they are, PIL images and paths, which are
  preprocessed as files in a folder are, and whatever hands out either.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mrecg_onnx.converters.errors import DataError, SettingsError
from mrecg_onnx.converters.text import quoted, with_article
from mrecg_onnx.data.annotated import Targets
from mrecg_onnx.data.array_files import HELD
from mrecg_onnx.data.arrays import ArrayDataset
from mrecg_onnx.data.choosing import pick
from mrecg_onnx.data.dataset import Dataset
from mrecg_onnx.data.fitting import as_array, fits, has_array, rows_of
from mrecg_onnx.data.folders import ARRAY_SUFFIXES, find_files
from mrecg_onnx.data.handed import MOST, IndexedDataset, KeptDataset, MemoryDataset, PassingDataset
from mrecg_onnx.data.images import ImageDataset
from mrecg_onnx.data.inputs import is_one_for_all, shape_text, uneven_rows
from mrecg_onnx.data.kept_pixels import KeptPixels
from mrecg_onnx.data.label_files import read_labels, require_labels
from mrecg_onnx.data.labels import NO_LABELS
from mrecg_onnx.data.pixels import UnreadableError, open_image
from mrecg_onnx.data.preprocess import USE_ARRAYS, Preprocess
from mrecg_onnx.data.samples import Sampler, as_classes, by_input, class_indices, no_classes, target_in, targets_of
from mrecg_onnx.data.sources import Given, Indexed, Stream, Whole, given, is_path, parts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from mrecg_onnx.data.inputs import InputSpec
    from mrecg_onnx.data.sources import Data, Source

    Run = Callable[[dict[str, NDArray[Any]]], object]

__all__ = ["ZEROQ", "holds_images", "open_arrays", "open_calibration", "open_validation", "require_values"]

#: Said in place of a path: calibration images are made (:mod:`mrecg_onnx.calibrating.zeroq`).
ZEROQ = "zeroq"
#: Images that are looked at where it is doubtful whether there are any.
LOOKED_AT = 8
#: Part of the memory of a run that samples which are kept take at most.
KEPT = 16


def open_calibration(
    source: Data,
    inputs: Sequence[InputSpec],
    preprocess: Preprocess,
    *,
    samples: int | None = None,
    seed: int = 0,
    memory: int | None = None,
) -> Dataset:
    """The calibration data in ``source``.

    Args:
        source: a folder of images (searched recursively; hidden files left out), one image, an ``.npy`` or ``.npz`` file,
            or a folder of those, joined in sorted order. An array is ready input with the batch first; in an ``.npz``
            it carries its input's name, except that a lone array is taken for a lone input whatever its name. Or any of
            :data:`mrecg_onnx.data.Data`; what is no file and no array in memory is read once, here, and kept.
        inputs: the model's inputs.
        preprocess: what to do to images; arrays are fed as they are.
        samples: use at most so many: the sorted samples are cut into that many equal stretches and one is drawn from
            each, so that folders sorted by class are all represented; of a stream the first ones. None: all.
        seed: decides that draw.
        memory: bytes that the process should stay within: of what is kept a small part stays in memory, and more than that
            goes to a temporary file.

    Raises:
        DataError: nothing readable there, or it does not fit the inputs.
        SettingsError: ``samples`` below 1, or a preprocessing setting that contradicts the model.
    """
    return _open(
        source, inputs, preprocess, _Opening(samples, seed, hold=HELD if memory is None else min(HELD, memory // KEPT))
    )


def open_validation(
    source: Data,
    inputs: Sequence[InputSpec],
    preprocess: Preprocess,
    labels: Any = None,
    limit: int | None = None,
    *,
    keep: bool = False,
    classes: bool = True,
) -> Dataset:
    """The validation data in ``source``, labelled where there are labels (:mod:`mrecg_onnx.data.labels`).

    Args:
        source: as for :func:`open_calibration`; but what is asked for or comes one after the other is read as it is wanted,
            and not kept.
        inputs: the model's inputs.
        preprocess: what to do to images; normally what the quantized file's metadata says.
        labels: for images a CSV of ``file,label``, boxes in COCO's JSON or a folder of masks
            (:mod:`mrecg_onnx.data.label_files`), ``.npy`` of one class a row for arrays, an array or a sequence of one class a
            sample for what is handed over in Python. None: labels are read from folder names, from an array called y or
            labels beside the inputs, or from pairs ``(inputs, label)``. The word "none": there are none.
        limit: use at most so many, spread evenly, always the same ones; of a stream the first ones.
        classes: targets are class indices, and it is said where they are not. Without it labels in files may be any numbers, one
            row a sample.
        keep: read a stream once, here, and keep it, so that it can be gone over several times.

    Raises:
        DataError: as :func:`open_calibration`; or labels are missing or unreadable.
        SettingsError: ``limit`` below 1, or a preprocessing setting that contradicts the model.
    """
    return _open(source, inputs, preprocess, _Opening(limit, labelled=True, labels=labels, keep=keep, classes=classes))


def open_arrays(source: Data, inputs: Sequence[InputSpec], limit: int | None = None) -> Dataset:
    """Ready inputs in ``source``, for calls that do not know how images become some; what goes by once is kept.

    Raises:
        SettingsError: there are images.
        DataError: as :func:`open_validation`.
    """
    taken = given(source)
    if holds_images(taken):
        raise SettingsError(f"{taken} holds images, and nothing says here how they become inputs: give arrays")
    return open_validation(taken, inputs, Preprocess(), NO_LABELS, limit, keep=True)


def require_values(
    source: Source, inputs: Sequence[InputSpec], limit: int | None = None, *, run: Run | None = None, model: str = ""
) -> None:
    """Look, before any work, at the values of arrays that a later stage is measured on: those in files, and those in memory.

    Args:
        source: as for :func:`open_validation`. Images are not decoded, and of what hands out samples nothing is asked for.
        inputs: the model's inputs.
        limit: as for :func:`open_validation`.
        run: runs inputs ``[N, ...]`` by name, for integers that the model may fail on.
        model: how messages call the model.

    Raises:
        DataError: the arrays do not fit the inputs, or hold NaN, an infinity, or a value that an input's type or the model
            does not take.
    """
    if isinstance(source, Dataset):
        source.require_values()
    elif isinstance(source, Whole) or not (isinstance(source, Given) or holds_images(source)):
        dataset = open_validation(source, inputs, Preprocess(), NO_LABELS, limit)
        dataset.require_values()
        if run is not None:
            dataset.require_taken(run, model)


@dataclass(frozen=True)
class _Opening:
    """How data are opened."""

    samples: int | None
    seed: int = 0
    labelled: bool = False
    labels: Any = None
    keep: bool = True
    classes: bool = False
    hold: int = HELD

    @property
    def with_labels(self) -> bool:
        """Labels are wanted."""
        return self.labelled and not self.without

    @property
    def without(self) -> bool:
        """Somebody said that there are none: the word, not a path."""
        return isinstance(self.labels, str) and self.labels == NO_LABELS

    @property
    def file(self) -> Path | None:
        """The file of labels, None without one."""
        return Path(self.labels) if self.with_labels and is_path(self.labels) else None

    def handed(self, count: int, source: object) -> list[Any] | None:
        """Labels that were handed over for ``count`` samples; None without.

        Raises:
            DataError: they are more or fewer, or lie in a file.
        """
        if not self.with_labels or self.labels is None:
            return None
        if is_path(self.labels):
            raise DataError(
                f"labels in {self.labels} belong to files; for {source} give an array, or pairs (inputs, label)"
            )
        return self.wanted(targets_of(self.labels, count, str(source), batch=True, whole=True))

    def wanted(self, targets: list[Any] | None) -> list[Any] | None:
        """``targets``, as classes where those are meant."""
        return as_classes(targets) if self.classes else targets


def _open(source: Data, inputs: Sequence[InputSpec], preprocess: Preprocess, how: _Opening) -> Dataset:
    if not inputs:
        raise DataError("the model has no inputs to feed")
    lone = next((spec for spec in inputs if not spec.shape), None)
    if lone is not None:
        raise DataError(
            f"{lone} is a scalar, and rows are all that is fed: make it a constant of the model, or give it the shape (1)"
        )
    taken = given(source)
    if isinstance(taken, Dataset):
        return taken
    dataset = (
        _open_given(taken, inputs, preprocess, how)
        if isinstance(taken, Given)
        else _open_files(Path(taken), inputs, preprocess, how)
    )
    if how.classes and how.with_labels and dataset.targets is not None and dataset.labels is None:
        what = taken if how.file is None else how.file
        dataset.doubts = (no_classes(dataset.targets, str(what)),)
    return dataset


def _open_files(path: Path, inputs: Sequence[InputSpec], preprocess: Preprocess, how: _Opening) -> Dataset:
    """What lies at ``path``."""
    root, files = find_files(path)
    if how.file is not None:
        require_labels(how.file)
    if files[0].suffix.lower() in ARRAY_SUFFIXES:
        arrays = ArrayDataset(inputs, files, how.samples, how.seed)
        if how.with_labels:
            arrays.label(how.file, how.handed, classes=how.classes)
        return arrays
    _require_one(inputs)
    # Labels first: a class's number counts all folders, not only those the chosen files happen to come from.
    handed = how.handed(len(files), root) if how.file is None else None
    if handed is not None:
        return _labelled_images(files, inputs, preprocess, how, handed)
    labels = read_labels(files, root, how.file) if how.with_labels else None
    images = _images(files, inputs, preprocess, how, labels)
    images.labels_source = f"in {how.file}" if how.file is not None else f"the names of the folders in {root}"
    return images


def _require_one(inputs: Sequence[InputSpec]) -> None:
    if len(inputs) > 1:
        names = ", ".join(f"'{spec.name}'" for spec in inputs)
        raise DataError(f"images feed models with one input, this one has {len(inputs)} ({names}); {USE_ARRAYS}")


def _images(
    files: Sequence[Path],
    inputs: Sequence[InputSpec],
    preprocess: Preprocess,
    how: _Opening,
    labels: NDArray[np.int64] | Targets | None,
) -> ImageDataset:
    """Those of ``files`` that are chosen, with their part of ``labels``."""
    chosen = pick(len(files), how.samples, how.seed)
    # Calibration goes over its images several times, validation once.
    again = None if how.labelled else KeptPixels()
    kept = None if labels is None or isinstance(labels, Targets) else labels[chosen]
    try:
        images = ImageDataset(inputs[0], [files[i] for i in chosen], kept, preprocess, again)
    except SettingsError:
        _require_images([files[i] for i in chosen])  # what is no image needs no mean
        raise
    images.total = len(files)
    if isinstance(labels, Targets):
        images.targets = labels.picked(chosen, images.resolved)
    return images


def _require_images(files: Sequence[Path]) -> None:
    """Refuse files of which none of the first few is an image.

    Raises:
        DataError: that is so; it says why of the first one.
    """
    said = []
    for file in files[:LOOKED_AT]:
        try:
            open_image(file)
        except UnreadableError as error:
            said.append(f"{file}: cannot be read: {error}")
        else:
            return
    raise DataError(said[0])


def _labelled_images(
    files: Sequence[Path], inputs: Sequence[InputSpec], preprocess: Preprocess, how: _Opening, targets: Sequence[Any]
) -> ImageDataset:
    """Those of ``files`` that are chosen, with their part of ``targets``."""
    images = _images(files, inputs, preprocess, how, class_indices(targets))
    images.targets = [targets[i] for i in pick(len(files), how.samples, how.seed)]
    return images


# --- handed over in Python ---------------------------------------------------------------------------------------------------


def _open_given(source: Given, inputs: Sequence[InputSpec], preprocess: Preprocess, how: _Opening) -> Dataset:
    if isinstance(source, Whole):
        return _open_whole(source, inputs, how)
    assert isinstance(source, Indexed | Stream)
    listed = source.listed() if isinstance(source, Indexed) else None
    if isinstance(source, Stream) and is_path(parts(source.first)[0]):
        listed = list(itertools.islice(source.items(), min(how.samples or MOST, MOST)))
    if listed:
        return _open_listed(listed, source, inputs, preprocess, how)
    if source.images:
        _require_one(inputs)
    resolved = preprocess.resolve(inputs[0]) if source.images else None
    sampler = Sampler(inputs, resolved, str(source), classes=how.classes)
    if isinstance(source, Stream):
        if how.with_labels and how.labels is not None and how.file is None:
            raise DataError(f"labels of {source} come with its items: give pairs (inputs, label)")
        how.handed(0, source)  # refuses a file
        begin, most = source.items, how.samples
        expected = None if source.hint is None else source.hint * sampler.take(source.first, 0).count
    else:
        rows = sampler.take(source.first, 0).count
        if rows == 1 and not how.keep:
            return _open_indexed(source, sampler, how)
        items = pick(source.count, None if how.samples is None else -(-how.samples // rows), how.seed)

        def begin() -> Any:
            return (source.first if index == 0 else source.item(index) for index in items.tolist())

        most, expected = how.samples, len(items) * rows
    called, labelled = str(source), how.with_labels
    if how.keep:
        return KeptDataset(sampler, begin(), most, hold=how.hold, labelled=labelled, called=called)
    return PassingDataset(begin, sampler, most, expected, labelled=labelled, called=called)


def _open_whole(source: Whole, inputs: Sequence[InputSpec], how: _Opening) -> Dataset:
    """Rows of arrays in memory."""
    values: dict[Any, Any] = source.arrays
    if set(values) != {None}:
        values = by_input(values, inputs, str(source))
    elif len(inputs) > 1:
        names = ", ".join(quoted(spec.name) for spec in inputs)
        raise DataError(
            f"{source} is one array, the model has {len(inputs)} inputs ({names}): give a dict by input name"
        )
    else:
        values = {inputs[0].name: values[None]}
    arrays = {}
    for spec in inputs:
        if not has_array(values[spec.name]):
            raise DataError(
                f"{source} holds {with_article(type(values[spec.name]).__name__)} for {spec}: give an array, the batch first"
            )
        array = as_array(values[spec.name], str(source))
        if array.ndim == len(spec.shape) - 1 and fits(array.shape, spec.shape[1:]):
            raise DataError(
                f"{source} is one sample {shape_text(array.shape)} for {spec}: give several, the batch first"
            )
        arrays[spec.name] = rows_of(array, spec, str(source))
    most = max(map(len, arrays.values()))
    for spec in inputs:
        if is_one_for_all(arrays[spec.name].shape, spec):
            arrays[spec.name] = np.broadcast_to(arrays[spec.name], (most, *arrays[spec.name].shape[1:]))
    counts = {name: len(array) for name, array in arrays.items()}
    total = next(iter(counts.values()))
    if len(set(counts.values())) > 1:
        raise DataError(f"the arrays of {source} have {uneven_rows(counts)}")
    chosen = pick(total, how.samples, how.seed)
    targets = how.handed(total, source)
    if targets is None and how.with_labels:
        own = source.targets if source.targets is not None else target_in(source.arrays, inputs)
        targets = how.wanted(targets_of(own, total, str(source), batch=True, whole=True))
    kept = None if targets is None else [targets[i] for i in chosen]
    dataset = MemoryDataset(inputs, arrays, chosen, kept, str(source))
    dataset.total = total
    return dataset


def _open_indexed(source: Indexed, sampler: Sampler, how: _Opening) -> Dataset:
    """Samples that are read when they are asked for."""
    chosen = pick(source.count, how.samples, how.seed)
    targets = how.handed(source.count, source)
    dataset = IndexedDataset(source, sampler, chosen, labelled=how.with_labels and targets is None)
    dataset.total = source.count
    if targets is not None:
        dataset.label([targets[i] for i in chosen])
    return dataset


def _open_listed(
    listed: Sequence[Any], source: Given, inputs: Sequence[InputSpec], preprocess: Preprocess, how: _Opening
) -> Dataset:
    """Files that are listed, with their targets where those come with them."""
    pairs = [parts(item) for item in listed]
    files = [Path(path) for path, _ in pairs]
    targets = how.handed(len(files), source)
    own = [target for _, target in pairs]
    if targets is None and how.with_labels and any(target is not None for target in own):
        if any(target is None for target in own):
            raise DataError(f"sample {own.index(None)} of {source} has no label, others have one: give one for each")
        each = [targets_of(target, 1, f"sample {i} of {source}", batch=False)[0] for i, target in enumerate(own)]  # type: ignore[index]
        targets = how.wanted(each)
    arrays = [file for file in files if file.suffix.lower() in ARRAY_SUFFIXES]
    if arrays:
        if len(arrays) < len(files):
            raise DataError(f"{source} names both images and arrays (first {arrays[0]}): keep to one kind")
        found = ArrayDataset(inputs, files, how.samples, how.seed)
        if how.with_labels:
            found.label(None, how.handed)
        return found
    _require_one(inputs)
    if targets is None:
        return _images(files, inputs, preprocess, how, None)
    images = _labelled_images(files, inputs, preprocess, how, targets)
    images.labels_source = f"of {source}"
    return images


def holds_images(source: Data | None) -> bool:
    """Whether ``source`` is a path to images rather than arrays, images, or the word zeroq; open data sets are ready as they are.

    Raises:
        DataError: nothing can be read there.
    """
    if source is None or isinstance(source, Dataset):
        return False
    if isinstance(source, str) and source == ZEROQ:
        return True
    taken = given(source)
    if isinstance(taken, Given):
        return taken.images
    source = taken
    assert isinstance(source, str | Path)
    return find_files(Path(source), say=False)[1][0].suffix.lower() not in ARRAY_SUFFIXES
