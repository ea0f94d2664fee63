"""Images or arrays on disk -> a data set of the model's inputs, for calibration and validation.

What is read:

* a folder, searched recursively and sorted, or one image: decoded by Pillow, brought to the model's size and normalized
  as a :class:`~mrecg_onnx.data.Preprocess` says;
* ``.npy`` (models with one input) or ``.npz`` (arrays by input name), one file or a folder of them: ready inputs, batch
  first, fed as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.data.arrays import ArrayDataset
from mrecg_onnx.data.choosing import pick
from mrecg_onnx.data.dataset import Dataset
from mrecg_onnx.data.folders import ARRAY_SUFFIXES, find_files
from mrecg_onnx.data.images import ImageDataset
from mrecg_onnx.data.kept_pixels import KeptPixels
from mrecg_onnx.data.labels import NO_LABELS, labels_for
from mrecg_onnx.data.preprocess import USE_ARRAYS

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from mrecg_onnx.data.inputs import InputSpec
    from mrecg_onnx.data.preprocess import Preprocess

__all__ = ["ZEROQ", "holds_images", "open_calibration", "open_validation"]

#: Said in place of a path: calibration images are made (:mod:`mrecg_onnx.calibrating.zeroq`).
ZEROQ = "zeroq"


def open_calibration(
    path: str | os.PathLike[str],
    inputs: Sequence[InputSpec],
    preprocess: Preprocess,
    *,
    samples: int | None = None,
    seed: int = 0,
) -> Dataset:
    """The calibration data under ``path``.

    Args:
        path: a folder of images (searched recursively; hidden files left out), one image, an ``.npy`` or ``.npz`` file,
            or a folder of those, joined in sorted order. An array is ready input with the batch first; in an ``.npz``
            it carries its input's name, except that a lone array is taken for a lone input whatever its name.
        inputs: the model's inputs.
        preprocess: what to do to images; arrays are fed as they are.
        samples: use at most so many: the sorted samples are cut into that many equal stretches and one is drawn from
            each, so that folders sorted by class are all represented. None: all.
        seed: decides that draw.

    Raises:
        DataError: nothing readable there, or it does not fit the inputs.
        SettingsError: ``samples`` below 1, or a preprocessing setting that contradicts the model.
    """
    return _open(Path(path), inputs, preprocess, samples=samples, seed=seed)


def open_validation(
    path: str | os.PathLike[str],
    inputs: Sequence[InputSpec],
    preprocess: Preprocess,
    labels: str | os.PathLike[str] | None = None,
    limit: int | None = None,
) -> Dataset:
    """The validation data under ``path``, labelled where there are labels (:mod:`mrecg_onnx.data.labels`).

    Args:
        path: as for :func:`open_calibration`.
        inputs: the model's inputs.
        preprocess: what to do to images; normally what the quantized file's metadata says.
        labels: CSV of ``file,label`` for images, ``.npy`` of one class a row for arrays. None: labels are read from folder
            names, or from an array called y or labels beside the inputs. The word "none": there are none.
        limit: use at most so many, spread evenly; always the same ones.

    Raises:
        DataError: as :func:`open_calibration`; or labels are missing or unreadable.
        SettingsError: ``limit`` below 1, or a preprocessing setting that contradicts the model.
    """
    return _open(Path(path), inputs, preprocess, samples=limit, labelled=True, csv_path=labels)


def _open(
    path: Path,
    inputs: Sequence[InputSpec],
    preprocess: Preprocess,
    *,
    samples: int | None,
    seed: int = 0,
    labelled: bool = False,
    csv_path: str | os.PathLike[str] | None = None,
) -> Dataset:
    if not inputs:
        raise DataError("the model has no inputs to feed")
    root, files = find_files(path)
    labelled = labelled and csv_path != NO_LABELS  # the word, not a path
    if files[0].suffix.lower() in ARRAY_SUFFIXES:
        arrays = ArrayDataset(inputs, files, samples, seed)
        if labelled:
            arrays.label(Path(csv_path) if csv_path is not None else None)
        return arrays
    if len(inputs) > 1:
        names = ", ".join(f"'{spec.name}'" for spec in inputs)
        raise DataError(f"images feed models with one input, this one has {len(inputs)} ({names}); {USE_ARRAYS}")
    # Labels first: a class's number counts all folders, not only those the chosen files happen to come from.
    labels = labels_for(files, root, csv_path) if labelled else None
    chosen = pick(len(files), samples, seed)
    kept = None if labels is None else labels[chosen]
    # Calibration goes over its images several times, validation once.
    again = None if labelled or csv_path == NO_LABELS else KeptPixels()
    images = ImageDataset(inputs[0], [files[i] for i in chosen], kept, preprocess, again)
    images.labels_source = f"in {csv_path}" if csv_path is not None else f"the names of the folders in {root}"
    return images


def holds_images(source: str | os.PathLike[str] | Dataset | None) -> bool:
    """Whether ``source`` is a path to images rather than arrays, or the word zeroq; open data sets are ready as they are.

    Raises:
        DataError: nothing can be read there.
    """
    if source is None or isinstance(source, Dataset):
        return False
    if source == ZEROQ:
        return True
    return find_files(Path(source), say=False)[1][0].suffix.lower() not in ARRAY_SUFFIXES
