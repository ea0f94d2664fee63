"""Images or arrays on disk -> the model's inputs, for calibration and validation.

What is read:

* a folder, searched recursively and sorted, or one image: decoded by Pillow, brought to the model's size and normalized
  as a :class:`Preprocess` says;
* ``.npy`` (models with one input) or ``.npz`` (arrays by input name), one file or a folder of them: ready inputs, batch
  first, fed as they are.

When things are read: opening lists the files and chooses among them (``samples``, ``limit``); nothing is decoded before
:meth:`Dataset.batch`, :meth:`Dataset.batches` or :meth:`Dataset.load`, so that a validation set of any size costs one
batch of memory. A file that cannot be decoded is therefore found on the way: ``batches`` and ``load`` skip it and note
it in :attr:`Dataset.skipped`, and give up with a DataError once more than 5 % of the chosen files are lost. A skipped
file is not replaced by another one: which images were chosen depends on their names and the seed, not on their bytes.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import warnings
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mrecg_onnx.converters.errors import DataError, SettingsError
from mrecg_onnx.converters.files import irregular
from mrecg_onnx.data.labels import LABEL_NAMES, NO_LABELS, labels_for, labels_inside, labels_of_rows
from mrecg_onnx.data.preprocess import USE_ARRAYS, InputSpec, Preprocess, UnreadableError, fit, shape_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = [
    "ARRAY_SUFFIXES",
    "IMAGE_SUFFIXES",
    "ZEROQ",
    "Dataset",
    "InputSpec",
    "Preprocess",
    "check_lost",
    "holds_images",
    "labels_for",
    "open_calibration",
    "open_validation",
    "pad_batch",
]

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
#: Pillow's decoders for them and for a .gif named by itself: it goes by content, and others start programs (Ghostscript for EPS).
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
ARRAY_SUFFIXES = (".npy", ".npz")
#: Said in place of a path: calibration images are made (:mod:`mrecg_onnx.calibrating.zeroq`).
ZEROQ = "zeroq"

MAX_LOST = 0.05  # share of unreadable images above which a data set is called broken instead of being thinned out
_DECODERS = min(
    4, os.cpu_count() or 1
)  # Pillow decodes outside the GIL; order, hence the result, does not depend on it
_LOAD_CHUNK = 64  # images decoded at a time by load()


class Dataset(ABC):
    """Model inputs by index, read when asked for; made by :func:`open_calibration` and :func:`open_validation`.

    ``len()`` counts what was chosen, including images that turn out to be unreadable.

    Attributes:
        inputs: the model's inputs.
        files: the chosen image files in order, or None for arrays.
        labels: (len,) int64 class indices, or None.
        labels_source: where they come from, for messages.
        preprocess: what is done to images, resolved for the model; None for arrays.
        origin: how the data were made, as plain JSON data, where no camera took them; None for files.
    """

    origin: dict[str, Any] | None = None

    def __init__(
        self,
        inputs: Sequence[InputSpec],
        *,
        files: list[Path] | None = None,
        labels: NDArray[np.int64] | None = None,
        preprocess: Preprocess | None = None,
    ) -> None:
        self.inputs = tuple(inputs)
        self.files = files
        self.labels = labels
        self.labels_source = "given"
        self.preprocess = preprocess
        self._lost: dict[int, str] = {}
        self._whole: int | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    def whole(self) -> int:
        """``len()`` of the set that this one is a share of; its own otherwise."""
        return len(self) if self._whole is None else self._whole

    @property
    def skipped(self) -> list[tuple[Path, str]]:
        """Files found unreadable so far, each once, with the reason; complete after ``load`` or a whole ``batches``."""
        return self._lost_among(self._lost)

    def _lost_among(self, indices: Iterable[int]) -> list[tuple[Path, str]]:
        files = self.files or []  # rows of arrays are never lost
        return [(files[index], self._lost[index]) for index in sorted(indices)]

    def shard(self, rank: int, size: int) -> Dataset:
        """Every ``size``-th sample from the ``rank``-th on: what one of ``size`` processes reads.

        Unreadable files are counted against the whole set; :func:`check_lost` adds up those of all shares.
        """
        share = self._share(rank, size)
        share._whole = self.whole  # noqa: SLF001 - its own class
        return share

    @abstractmethod
    def _share(self, rank: int, size: int) -> Dataset: ...

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes with the files chosen and their sizes, so that two runs can tell whether they see the same data."""

    @abstractmethod
    def _read(self, indices: Sequence[int]) -> tuple[dict[str, NDArray[Any]], list[int]]:
        """Inputs of those ``indices`` that can be read, and which these are, in order."""

    def batch(self, indices: Sequence[int] | NDArray[np.integer]) -> dict[str, NDArray[Any]]:
        """Exactly the samples asked for: input name -> (len(indices), ...) in the input's dtype.

        Raises:
            DataError: one of them cannot be read (nothing is skipped here), or holds NaN or Inf.
            IndexError: an index is not in 0..len-1.
        """
        wanted = [int(index) for index in indices]
        for index in wanted:
            if not 0 <= index < len(self):
                raise IndexError(f"sample {index} of {len(self)}")
        inputs, kept = self._read(wanted)
        if len(kept) < len(wanted):
            raise DataError(f"cannot read {_lost_list(self._lost_among(set(wanted) - set(kept)))}")
        return inputs

    def batches(self, size: int) -> Iterator[tuple[dict[str, NDArray[Any]], NDArray[np.int64]]]:
        """All readable samples in order: (inputs, indices), ``size`` at a time, fewer only in the last batch.

        ``labels[indices]`` are the labels of a batch, whatever was skipped.

        Raises:
            DataError: more than 5 % of the files cannot be read, or an array holds NaN or Inf.
        """
        if size < 1:
            raise SettingsError(f"batch size must be 1 or more, got {size}")
        parts: list[dict[str, NDArray[Any]]] = []
        held: list[int] = []
        position = 0
        while position < len(self):
            ahead = range(position, min(len(self), position + size - len(held)))
            position = ahead.stop
            inputs, kept = self._read(ahead)
            if kept:
                parts.append(inputs)
                held += kept
            if held and (len(held) == size or position == len(self)):
                yield _concatenate(parts), np.array(held, np.int64)
                parts, held = [], []

    def spread(self, size: int, limit: int | None = None) -> Iterator[dict[str, NDArray[Any]]]:
        """Readable samples ``size`` at a time, fewer where some cannot be read: inputs alone.

        Args:
            size: samples read at a time.
            limit: at most so many, spread evenly over the set rather than taken from its start (folders are often
                sorted by class).

        Raises:
            DataError: as :meth:`batches`.
        """
        indices = _middle_of_strata(len(self), limit)
        for start in range(0, len(indices), size):
            inputs, kept = self._read(indices[start : start + size])
            if kept:
                yield inputs

    def load(self, limit: int | None = None) -> dict[str, NDArray[Any]]:
        """All readable samples at once: input name -> (samples, ...) in the input's dtype.

        Args:
            limit: as in :meth:`spread`.

        Raises:
            DataError: as :meth:`batches`.
        """
        indices = _middle_of_strata(len(self), limit)
        out: dict[str, NDArray[Any]] = {}
        filled = 0
        for inputs in self.spread(_LOAD_CHUNK, limit):  # filled in place: joining chunks would hold everything twice
            count = len(next(iter(inputs.values())))
            for name, rows in inputs.items():
                whole = out.setdefault(name, np.empty((len(indices), *rows.shape[1:]), rows.dtype))
                whole[filled : filled + count] = rows
            filled += count
        if not filled:
            raise DataError(f"none of the {len(indices)} files asked for can be read: {_lost_list(self.skipped)}")
        return {name: rows[:filled] for name, rows in out.items()}


def check_lost(lost: Sequence[str], whole: int) -> None:
    """Give up on a set of ``whole`` images when those ``lost`` (as file and reason) are more than 5 % of it.

    Raises:
        DataError: they are.
    """
    if len(lost) <= MAX_LOST * whole:
        return
    if whole == 1:
        raise DataError(f"cannot read {lost[0]}")
    raise DataError(
        f"more than {MAX_LOST:.0%} of {whole} images cannot be read ({len(lost)} so far): {_first_of(lost)}; "
        "replace or remove them"
    )


class _ImageDataset(Dataset):
    """Image files, decoded on demand by a few threads."""

    def __init__(
        self,
        spec: InputSpec,
        files: list[Path],
        labels: NDArray[np.int64] | None,
        preprocess: Preprocess,
    ) -> None:
        resolved = preprocess.resolve(spec)
        super().__init__([spec], files=files, labels=labels, preprocess=resolved)
        self._resolved = resolved
        self._paths = files
        self._table = resolved.table(spec.dtype)

    def __len__(self) -> int:
        return len(self._paths)

    def _share(self, rank: int, size: int) -> Dataset:
        labels = self.labels[rank::size] if self.labels is not None else None
        part = _ImageDataset(self.inputs[0], self._paths[rank::size], labels, self._resolved)
        part.labels_source = self.labels_source
        return part

    def fingerprint(self) -> str:
        return _digest(self._paths, repr(self._resolved))

    def _read(self, indices: Sequence[int]) -> tuple[dict[str, NDArray[Any]], list[int]]:
        wanted = [index for index in indices if index not in self._lost]
        paths = [self._paths[index] for index in wanted]
        # Pillow's warnings about odd metadata are not for the user: either the pixels are there or the file is named.
        with warnings.catch_warnings(), ThreadPoolExecutor(_DECODERS) as pool:
            warnings.simplefilter("ignore")
            samples = list(pool.map(self._sample, paths))
        good: list[NDArray[Any]] = []
        kept: list[int] = []
        for index, sample in zip(wanted, samples, strict=True):
            if isinstance(sample, str):
                self._lose(index, sample)
            else:
                good.append(sample)
                kept.append(index)
        return ({self.inputs[0].name: np.stack(good)} if good else {}), kept

    def _sample(self, path: Path) -> NDArray[Any] | str:
        """One image as the model takes it, without the batch axis; or why it cannot be read."""
        try:
            pixels = _pixels(path, self._resolved)
        except UnreadableError as error:
            return str(error)
        planes = [self._table[channel][pixels[:, :, channel]] for channel in range(len(self._table))]
        return np.stack(planes, axis=0 if self._resolved.layout == "nchw" else 2)

    def _lose(self, index: int, reason: str) -> None:
        """Note an unreadable file; stop as soon as the 5 % are certain rather than after reading all the others."""
        if index in self._lost:  # asked for twice in one batch
            return
        self._lost[index] = reason
        logger.info("skipped %s: %s", self._paths[index], reason)
        check_lost([_lost_text(item) for item in self.skipped], self.whole)


class _ArrayDataset(Dataset):
    """Rows of .npy and .npz files, one file after the other; .npy are memory-mapped, of .npz the last one is held."""

    def __init__(self, inputs: Sequence[InputSpec], paths: Sequence[Path], samples: int | None, seed: int) -> None:
        super().__init__(inputs)
        self._paths = list(paths)
        self._held: tuple[int, dict[str, NDArray[Any]]] | None = None
        first = self._arrays(0)
        self._row_shapes = {name: array.shape[1:] for name, array in first.items()}
        rows = []
        for number, path in enumerate(self._paths):
            arrays = self._arrays(number)
            for name, array in arrays.items():
                if array.shape[1:] != self._row_shapes[name]:
                    raise DataError(
                        f"arrays for input '{name}' differ: {shape_text(array.shape)} in {path}, "
                        f"{shape_text(first[name].shape)} in {self._paths[0]}"
                    )
            rows.append(len(next(iter(arrays.values()))))
        self._ends = np.cumsum(rows)
        self._chosen = _pick(int(self._ends[-1]), samples, seed)

    def __len__(self) -> int:
        return len(self._chosen)

    def label(self, given: Path | None) -> None:
        """Take the labels of a file, or those that lie beside the inputs in all files.

        Raises:
            DataError: they are no labels of these rows, or lie in some of the files only.
        """
        total = int(self._ends[-1])
        if given is not None:
            self.labels, self.labels_source = labels_of_rows(given, total)[self._chosen], f"in {given}"
            return
        names, rows = [spec.name for spec in self.inputs], np.diff(self._ends, prepend=0).tolist()
        found = [labels_inside(path, names, count) for path, count in zip(self._paths, rows, strict=True)]
        there = [one for one in found if one is not None]
        if not there:
            return
        if len(there) < len(found):
            without = self._paths[found.index(None)]
            raise DataError(f"{there[0][1]} are labels, and {without} has none: label all files, or say --labels none")
        self.labels = np.concatenate([labels for labels, _ in there])[self._chosen]
        self.labels_source = there[0][1]

    def _share(self, rank: int, size: int) -> Dataset:
        part = copy.copy(self)
        part._chosen = self._chosen[rank::size]  # noqa: SLF001 - its own class
        part.labels = self.labels[rank::size] if self.labels is not None else None
        return part

    def fingerprint(self) -> str:
        return _digest(self._paths, repr(self._chosen.tolist()))

    def _arrays(self, number: int) -> dict[str, NDArray[Any]]:
        if self._held is None or self._held[0] != number:
            self._held = number, _open_arrays(self._paths[number], self.inputs)
        return self._held[1]

    def _read(self, indices: Sequence[int]) -> tuple[dict[str, NDArray[Any]], list[int]]:
        kept = list(indices)
        positions = self._chosen[kept]
        numbers = np.searchsorted(self._ends, positions, side="right")
        out = {s.name: np.empty((len(kept), *self._row_shapes[s.name]), s.dtype) for s in self.inputs}
        for number in np.unique(numbers).tolist():
            mine = numbers == number
            start = int(self._ends[number - 1]) if number else 0
            arrays = self._arrays(number)
            for spec in self.inputs:
                rows = positions[mine] - start
                out[spec.name][mine] = _cast(arrays[spec.name][rows], spec, rows, self._paths[number])
        return out, kept


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
    root, files = _find(path)
    labelled = labelled and csv_path != NO_LABELS  # the word, not a path
    if files[0].suffix.lower() in ARRAY_SUFFIXES:
        arrays = _ArrayDataset(inputs, files, samples, seed)
        if labelled:
            arrays.label(Path(csv_path) if csv_path is not None else None)
        return arrays
    if len(inputs) > 1:
        names = ", ".join(f"'{spec.name}'" for spec in inputs)
        raise DataError(f"images feed models with one input, this one has {len(inputs)} ({names}); {USE_ARRAYS}")
    # Labels first: a class's number counts all folders, not only those the chosen files happen to come from.
    labels = labels_for(files, root, csv_path) if labelled else None
    chosen = _pick(len(files), samples, seed)
    kept = None if labels is None else labels[chosen]
    images = _ImageDataset(inputs[0], [files[i] for i in chosen], kept, preprocess)
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
    return _find(Path(source), say=False)[1][0].suffix.lower() not in ARRAY_SUFFIXES


def pad_batch(array: NDArray[Any], size: int) -> NDArray[Any]:
    """``array`` with its last row repeated until it has ``size`` rows, for models with a fixed batch.

    Raises:
        ValueError: it is empty or longer than ``size`` already.
    """
    if not 1 <= len(array) <= size:
        raise ValueError(f"cannot pad {len(array)} rows to {size}")
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])


# ---- finding and choosing -------------------------------------------------------------------------------------------


def _find(path: Path, *, say: bool = True) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the files: all images or all arrays; ``say`` what is skipped."""
    try:
        if path.is_dir():
            return path, _search(path, say=say)
        if path.is_file():
            return path.parent, [path]
    except OSError as error:
        raise DataError(f"cannot read {error.filename or path}: {error.strerror or error}") from error
    kind = irregular(path)
    if kind is not None:
        raise DataError(f"{path} is {kind}, no file: give a folder of images, an image, or an .npy or .npz file")
    raise DataError(f"no such file or folder: {path}; give a folder of images, an image, or an .npy or .npz file")


def _search(root: Path, *, say: bool) -> list[Path]:
    everything = _walk(root)
    kinds = {file: irregular(file) for file in everything if file.suffix.lower() in IMAGE_SUFFIXES + ARRAY_SUFFIXES}
    odd = [f"{file} ({kind})" for file, kind in kinds.items() if kind is not None]
    if odd and say:
        logger.warning("skipped, no files: %s", _first_of(odd))
    images = [file for file, kind in kinds.items() if kind is None and file.suffix.lower() in IMAGE_SUFFIXES]
    arrays = [file for file, kind in kinds.items() if kind is None and file.suffix.lower() in ARRAY_SUFFIXES]
    if images and arrays:
        raise DataError(
            f"{root} holds both images ({len(images)}) and arrays ({len(arrays)}, first {arrays[0].name}): "
            "keep one kind in the folder"
        )
    if not everything:
        raise DataError(f"the folder {root} is empty: give one with images")
    if not images and not arrays:
        raise DataError(
            f"no images in {root} or its subfolders ({len(everything)} other files): looked for "
            f"{' '.join(IMAGE_SUFFIXES + ARRAY_SUFFIXES)}"
        )
    return images or arrays


def _walk(root: Path) -> list[Path]:
    """All files below ``root`` sorted by path, following links once; names with a leading dot are left out.

    (macOS writes a '._x.jpg' that is no image beside every x.jpg on foreign disks.)
    """

    def stop(error: OSError) -> None:
        raise error

    found: list[Path] = []
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(root, onerror=stop, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back up
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(found, key=lambda file: file.relative_to(root).parts)


def _pick(total: int, samples: int | None, seed: int) -> NDArray[np.int64]:
    """``samples`` of ``total`` positions in rising order, one drawn from each of ``samples`` equal stretches."""
    if samples is None:
        return np.arange(total)
    if samples < 1:
        raise SettingsError(f"the number of samples must be 1 or more, got {samples}")
    if samples >= total:
        return np.arange(total)
    edges = np.arange(samples + 1) * total // samples
    return np.random.default_rng(seed).integers(edges[:-1], edges[1:])


def _middle_of_strata(total: int, limit: int | None) -> list[int]:
    if limit is None or limit >= total:
        return list(range(total))
    if limit < 1:
        raise SettingsError(f"limit must be 1 or more, got {limit}")
    return [(2 * number + 1) * total // (2 * limit) for number in range(limit)]


# ---- one image ------------------------------------------------------------------------------------------------------


def _pixels(path: Path, preprocess: Preprocess) -> NDArray[np.uint8]:
    """The image in the model's size and channel order: (height, width, channels) uint8."""
    image = _decode(path, alpha=preprocess.color == "rgba")
    if preprocess.color == "gray":
        image = image.convert("L")
    if len(preprocess.mean or ()) == 3:
        image = image.convert("RGB")
    pixels = np.asarray(fit(image, preprocess))
    if pixels.ndim == 2:
        return pixels[:, :, None]
    return pixels[:, :, ::-1] if preprocess.color == "bgr" else pixels


def _decode(path: Path, *, alpha: bool) -> Image.Image:
    """The first frame, upright, as 'RGBA' with ``alpha``, else as 'L' or 'RGB' as ``convert('RGB')`` and torchvision do."""
    try:
        with Image.open(path, formats=_FORMATS) as opened:
            image = ImageOps.exif_transpose(opened)
            has_alpha = image.mode in {"RGBA", "RGBa", "LA", "La", "PA"} or "transparency" in image.info
            if alpha and has_alpha and not image.mode.startswith("I"):
                return image.convert("RGBA")
            return _to_eight_bits(image).convert("RGBA") if alpha else _to_eight_bits(image)
    except (UnreadableError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        empty = path.stat().st_size == 0
        raise UnreadableError("the file is empty" if empty else f"not an image ({', '.join(_FORMATS)})") from error
    except Exception as error:  # damaged bytes make Pillow's decoders raise nearly anything
        text = (getattr(error, "strerror", None) or str(error)).strip().splitlines()
        raise UnreadableError(text[0] if text else type(error).__name__) from error


def _to_eight_bits(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode in ("L", "1", "LA", "La"):
        return image.convert("L")
    if mode == "I" or mode.startswith("I;16"):
        # Pillow's own convert() clips at 255 instead of scaling. Pillow has handed out 16-bit PNGs as 'I', too.
        wide = np.asarray(image).astype(np.int64)
        low, high = int(wide.min()), int(wide.max())
        if low < 0 or high > 65535:
            raise UnreadableError(f"integer pixels from {low} to {high} do not fit 16 bits: save as 8 or 16 bits")
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8))  # to nearest: 65535 / 257 = 255
    if mode == "F":
        raise UnreadableError("floating-point pixels have no agreed range: save as 8 or 16 bits, or give an .npy file")
    if mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the palette's colours under its transparency, as for other images with alpha
    return image.convert("RGB")


# ---- arrays ---------------------------------------------------------------------------------------------------------


def _open_arrays(path: Path, inputs: Sequence[InputSpec]) -> dict[str, NDArray[Any]]:
    """The arrays of one file by input name, checked against the inputs but not yet cast."""
    try:
        loaded = np.load(path, mmap_mode="r" if path.suffix.lower() == ".npy" else None, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            arrays = _name_lone_array(path, loaded, inputs)
        else:
            with loaded:
                arrays = _named_arrays(path, loaded, inputs)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # damaged headers, zip directories and deflate streams each raise their own
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"cannot read {path}: {reason}") from error
    for spec in inputs:
        _check_fits(arrays[spec.name], spec, path)
    rows = {name: len(array) for name, array in arrays.items()}
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"'{name}' {count}" for name, count in rows.items())
        raise DataError(f"the arrays in {path} have different numbers of rows: {counts}")
    return arrays


def _name_lone_array(path: Path, array: NDArray[Any], inputs: Sequence[InputSpec]) -> dict[str, NDArray[Any]]:
    if len(inputs) > 1:
        names = ", ".join(f"'{spec.name}'" for spec in inputs)
        raise DataError(f"{path} holds one array, the model has {len(inputs)} inputs ({names}): give an .npz by name")
    return {inputs[0].name: array}


def _named_arrays(path: Path, loaded: Mapping[str, Any], inputs: Sequence[InputSpec]) -> dict[str, NDArray[Any]]:
    there = list(loaded)
    names = {spec.name for spec in inputs}
    data = [name for name in there if name in names or name not in LABEL_NAMES] or there
    if len(data) == len(inputs) == 1:
        return {inputs[0].name: loaded[data[0]]}
    missing = [spec.name for spec in inputs if spec.name not in there]
    if missing:
        raise DataError(f"no array for input '{missing[0]}' in {path}: it holds {', '.join(there) or 'nothing'}")
    return {spec.name: loaded[spec.name] for spec in inputs}


def _check_fits(array: NDArray[Any], spec: InputSpec, path: Path) -> None:
    fits = array.ndim == len(spec.shape) and array.ndim > 0
    if fits:
        rest = zip(array.shape[1:], spec.shape[1:], strict=True)
        fits = all(wanted is None or have == wanted for have, wanted in rest)
    if not fits:
        raise DataError(
            f"the array {shape_text(array.shape)} in {path} does not fit {spec}: arrays are whole batches, batch first"
        )
    if array.size == 0:
        raise DataError(f"the array {shape_text(array.shape)} for input '{spec.name}' in {path} is empty")
    if _family(array.dtype) != _family(spec.dtype):
        raise DataError(
            f"the array in {path} holds {array.dtype}, {spec} wants {spec.dtype}: "
            "arrays are fed as they are, save them ready for the model"
        )


def _cast(rows: NDArray[Any], spec: InputSpec, numbers: NDArray[np.int64], path: Path) -> NDArray[Any]:
    """``rows`` in the input's dtype; ``numbers`` are their places in the file, for messages."""
    with np.errstate(over="ignore", invalid="ignore"):
        cast = rows.astype(spec.dtype)
    flat = cast.reshape(len(cast), -1)
    if cast.dtype.kind == "f":
        good, fault = np.isfinite(flat).all(axis=1), f"NaN, Inf or a value too large for {spec.dtype}"
    else:
        good, fault = (flat == rows.reshape(flat.shape)).all(axis=1), f"a value out of the range of {spec.dtype}"
    if not good.all():
        raise DataError(f"{fault} in row {numbers[~good][0]} for input '{spec.name}' in {path}")
    return cast


def _family(dtype: np.dtype[Any]) -> str:
    """Dtypes that may be cast into each other: floats, integers; anything else only into itself."""
    return {"f": "float", "i": "integer", "u": "integer"}.get(dtype.kind, str(dtype))


# ---- small things ---------------------------------------------------------------------------------------------------


def _digest(paths: Sequence[Path], more: str) -> str:
    listing = "\n".join(f"{path.name} {path.stat().st_size if path.exists() else -1}" for path in paths)
    return hashlib.sha256(f"{listing}\n{more}".encode()).hexdigest()


def _concatenate(parts: Sequence[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _lost_text(item: tuple[Path, str]) -> str:
    return f"{item[0]} ({item[1]})"


def _lost_list(lost: Sequence[tuple[Path, str]]) -> str:
    return _first_of([_lost_text(item) for item in lost])


def _first_of(texts: Sequence[str], most: int = 3) -> str:
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")
