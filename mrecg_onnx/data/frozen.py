"""What was handed over in Python, written to files: other processes read them, and every one of them sees the same.

Arrays become ``.npy`` (``.npz`` by name for several inputs), images a folder of PNG files with the pixels that they have, labels
a file beside either. Files that were listed stay where they are.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy
from PIL import Image, ImageOps

from mrecg_onnx.converters.errors import DataError, first_line
from mrecg_onnx.data.choosing import pick
from mrecg_onnx.data.labels import NO_LABELS
from mrecg_onnx.data.opening import open_calibration, open_validation
from mrecg_onnx.data.samples import Sampler, class_indices, targets_of
from mrecg_onnx.data.sources import Given, Indexed, Stream, is_path, parts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from mrecg_onnx.data.dataset import Dataset
    from mrecg_onnx.data.inputs import InputSpec
    from mrecg_onnx.data.preprocess import Preprocess
    from mrecg_onnx.data.sources import Data, Labels

__all__ = ["Frozen", "freeze"]

#: Modes of Pillow that a PNG file keeps; others become what they are turned into when they are read.
_KEPT = {
    **{mode: mode for mode in ("1", "L", "LA", "P", "RGB", "RGBA")},
    "La": "LA",
    "PA": "RGBA",
    "RGBa": "RGBA",
}
#: Samples that are written at a time.
_CHUNK = 64


@dataclass(frozen=True)
class Frozen:
    """Data in files.

    Attributes:
        source: a path, or the list of files.
        labels: a file, or the word for none; targets that are no classes as they are; None where they are in the list of files.
        digest: changes with any value of any sample, and with the labels.
    """

    source: Path | list[Any]
    labels: Path | str | list[Any] | None
    digest: str


@dataclass(frozen=True)
class _How:
    """Which samples are used, and whether they have labels."""

    samples: int | None
    seed: int
    labelled: bool
    labels: Labels | None

    @property
    def with_labels(self) -> bool:
        return self.labelled and not (isinstance(self.labels, str) and self.labels == NO_LABELS)

    def open(self, source: Data, inputs: Sequence[InputSpec], preprocess: Preprocess) -> Dataset:
        if not self.labelled:
            return open_calibration(source, inputs, preprocess, samples=self.samples, seed=self.seed)
        return open_validation(source, inputs, preprocess, self.labels, self.samples, keep=True)


def freeze(
    source: Given,
    inputs: Sequence[InputSpec],
    preprocess: Preprocess,
    folder: Path,
    name: str,
    *,
    samples: int | None,
    seed: int = 0,
    labelled: bool = False,
    labels: Labels | None = None,
) -> Frozen:
    """Write the samples that are chosen into ``folder``, under ``name``.

    Args:
        source: what was handed over.
        inputs: the model's inputs.
        preprocess: what is done to images when they are read.
        folder: is there.
        name: of the file or folder made in it.
        samples: as for :func:`open_calibration`; ``limit`` of :func:`open_validation`.
        seed: as for :func:`open_calibration`.
        labelled: they are validated on, and have labels where they have.
        labels: as for :func:`open_validation`.

    Raises:
        DataError: as the opening of ``source``; or the samples cannot be written.
    """
    how = _How(samples, seed, labelled, labels)
    try:
        if not source.images:
            return _freeze_arrays(how.open(source, inputs, preprocess), folder, name, how)
        assert isinstance(source, Indexed | Stream)
        listed = source.listed() if isinstance(source, Indexed) else None
        if isinstance(source, Stream) and is_path(parts(source.first)[0]):
            listed = list(itertools.islice(source.items(), samples))
        if listed is not None:
            return _freeze_list(how.open(listed, inputs, preprocess), how, str(source))
        if len(inputs) > 1:
            how.open(source, inputs, preprocess)  # says that images feed one input
        return _freeze_images(source, inputs, preprocess, folder / name, how)
    except OSError as error:
        raise DataError(f"{source} cannot be written to {folder}: {error.strerror or first_line(error)}") from error


def _labels_of(targets: Sequence[Any] | None) -> NDArray[np.int64] | list[Any] | None:
    """Classes, where targets are classes, else what they are."""
    found = None if targets is None else class_indices(targets)
    return list(targets) if found is None and targets is not None else found


def _freeze_arrays(dataset: Dataset, folder: Path, name: str, how: _How) -> Frozen:
    labels = _labels_of(dataset.targets) if how.with_labels else None

    def put(file: IO[bytes], spec: InputSpec) -> None:
        first = dataset.batch([0])[spec.name]
        shape = (len(dataset), *first.shape[1:])
        described = {"descr": npy.dtype_to_descr(first.dtype), "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(file, described)
        for start in range(0, len(dataset), _CHUNK):
            file.write(dataset.batch(range(start, min(len(dataset), start + _CHUNK)))[spec.name].tobytes())

    path = folder / f"{name}{'.npy' if len(dataset.inputs) == 1 else '.npz'}"
    if len(dataset.inputs) == 1:
        with path.open("wb") as file:
            put(file, dataset.inputs[0])
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for spec in dataset.inputs:
                with archive.open(f"{spec.name}.npy", "w", force_zip64=True) as member:
                    put(member, spec)
    return Frozen(path, _write_labels(labels, folder / f"{name}_labels.npy"), _digest(dataset.fingerprint(), labels))


def _write_labels(labels: NDArray[np.int64] | list[Any] | None, path: Path) -> Path | str | list[Any]:
    if labels is None:
        return NO_LABELS
    if isinstance(labels, list):
        return labels
    np.save(path, labels)
    return path


def _digest(text: str, labels: NDArray[np.int64] | list[Any] | None) -> str:
    told = pickle.dumps(labels, 4) if isinstance(labels, list) else b"" if labels is None else labels.tobytes()
    return hashlib.sha256(text.encode() + told).hexdigest()


def _freeze_list(dataset: Dataset, how: _How, source: str) -> Frozen:
    """Files stay where they are; labels go with them."""
    labels = _labels_of(dataset.targets) if how.with_labels else None
    files = list(dataset.files or ())
    if not files:
        raise DataError(f"{source} names files of arrays: give the folder that they lie in")
    if labels is None:
        return Frozen(files, NO_LABELS, _digest(dataset.fingerprint(), None))
    each = labels if isinstance(labels, list) else labels.tolist()
    return Frozen(list(zip(files, each, strict=True)), None, _digest(dataset.fingerprint(), labels))


def _freeze_images(
    source: Indexed | Stream, inputs: Sequence[InputSpec], preprocess: Preprocess, folder: Path, how: _How
) -> Frozen:
    sampler = Sampler(inputs, preprocess.resolve(inputs[0]), str(source))
    folder.mkdir()
    found = hashlib.sha256()
    names: list[str] = []
    targets: list[Any] = []
    for image, target in _images(source, sampler, how):
        name = f"{len(names):07d}.png"
        with (folder / name).open("w+b") as file:
            _upright(image).save(file, "PNG", compress_level=1)
            file.seek(0)
            found.update(file.read())
        names.append(name)
        targets.append(target)
    if how.with_labels and 0 < sum(target is None for target in targets) < len(targets):
        raise DataError(
            f"some samples of {source} have a target and others none: give one for each, or say labels='none'"
        )
    labels = _labels_of(targets) if how.with_labels and targets[0] is not None else None
    if labels is None or isinstance(labels, list):
        return Frozen(folder, NO_LABELS if labels is None else labels, _digest(found.hexdigest(), labels))
    table = folder.with_name(f"{folder.name}_labels.csv")
    with table.open("w", newline="", encoding="utf-8") as text:
        csv.writer(text).writerows(zip(names, labels.tolist(), strict=True))
    return Frozen(folder, table, _digest(found.hexdigest(), labels))


def _images(source: Indexed | Stream, sampler: Sampler, how: _How) -> Iterator[tuple[Image.Image, Any]]:
    """Images that are chosen, with their targets, each of which may be None."""
    given = how.labels if how.with_labels else None
    if given is not None and (is_path(given) or isinstance(source, Stream)):
        raise DataError(f"labels of {source} come with its items: give pairs (inputs, label)")
    if isinstance(source, Stream):
        items = iter(source.items())
    else:
        places = pick(source.count, how.samples, how.seed).tolist()
        items = (source.item(index) for index in places)
        if given is not None:
            known = targets_of(given, source.count, str(source), batch=True, whole=True) or []
            items = ((parts(source.item(index))[0], known[index]) for index in places)
    count = 0
    for item in items:
        for image, target in sampler.images(item, count):
            yield image, target
            count += 1
            if count == how.samples:
                return


def _upright(image: Image.Image) -> Image.Image:
    """The image as a PNG file holds it: nothing that is done to it when it is read is done twice."""
    turned = ImageOps.exif_transpose(image)
    if turned.mode == "F":
        raise DataError("an image of floating-point pixels has no agreed range: give 8 or 16 bits, or arrays")
    if turned.mode == "I" or turned.mode.startswith("I;16"):
        pixels = np.asarray(turned).astype(np.int64)
        if pixels.min() < 0 or pixels.max() > np.iinfo(np.uint16).max:
            raise DataError(f"an image of integer pixels from {pixels.min()} to {pixels.max()} does not fit 16 bits")
        return Image.fromarray(pixels.astype(np.uint16))
    mode = _KEPT.get(turned.mode, "RGB")
    return turned if turned.mode == mode else turned.convert(mode)
