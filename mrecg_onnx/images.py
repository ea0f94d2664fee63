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
import csv
import hashlib
import logging
import math
import os
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mrecg_onnx.converters.errors import DataError, SettingsError

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
    "labels_for",
    "open_calibration",
    "open_validation",
    "pad_batch",
]

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
ARRAY_SUFFIXES = (".npy", ".npz")
#: Said in place of a path: calibration images are made (:mod:`mrecg_onnx.zeroq`).
ZEROQ = "zeroq"

# ImageNet's channel statistics of pixels in 0..1, red green blue: what torchvision's and timm's classifiers expect.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CROP_FRACTION = 0.875  # 224 of 256: the evaluation crop ImageNet classifiers are reported with
MAX_LOST = 0.05  # share of unreadable images above which a data set is called broken instead of being thinned out
_LAYOUTS = ("auto", "nchw", "nhwc")
_COLORS = ("auto", "rgb", "bgr", "gray")
_DECODERS = min(
    4, os.cpu_count() or 1
)  # Pillow decodes outside the GIL; order, hence the result, does not depend on it
_LOAD_CHUNK = 64  # images decoded at a time by load()
_MAX_RESIZED_PIXELS = 1 << 27  # a 10x30000 strip scaled to a shorter side of 256 would be 200 million pixels


@dataclass(frozen=True)
class InputSpec:
    """One input of the model.

    Attributes:
        name: the graph input's name.
        shape: its shape, batch first; None where a size is free.
        dtype: its element type.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "dtype", np.dtype(self.dtype))

    def __str__(self) -> str:
        return f"input '{self.name}' {_shape_text(self.shape)} {self.dtype}"


@dataclass(frozen=True)
class Preprocess:
    """How pixels become numbers: ``x = (pixels * scale - mean) / std``, pixels in 0..255.

    Geometry is torchvision's ``Resize`` (bilinear with antialiasing) and ``CenterCrop`` on Pillow images. An image that
    would still be smaller than the crop (possible with a crop that is not square) is scaled until it covers it.

    Attributes:
        mean: one value, or one per channel in the order of the model's channels. ImageNet's default follows ``color``
            by itself: turned round for bgr, averaged for a one-channel model.
        std: likewise, above 0.
        scale: what pixels are multiplied by first.
        resize: length in pixels that the shorter side is brought to. None: an image that already has the crop's size
            is used as it is, any other is scaled until it just covers the crop / 0.875 (for a square crop of 224: the
            shorter side becomes 256).
        crop: (height, width) cut from the centre; None: the model's size.
        layout: 'nchw', 'nhwc', or 'auto': nchw if axis 1 of the input is 1 or 3 long, else nhwc if axis 3 is.
        color: 'rgb', 'bgr', 'gray' (ITU-R 601 luma; repeated three times for a three-channel model), or 'auto': gray
            for one channel, rgb for three.

    Raises:
        SettingsError: a value is out of its range.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    scale: float = 1 / 255
    resize: int | None = None
    crop: tuple[int, int] | None = None
    layout: str = "auto"
    color: str = "auto"

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, _channel_values(name, getattr(self, name)))
        if min(self.std) <= 0:
            raise SettingsError(f"std must be above 0, got {_numbers(self.std)}")
        object.__setattr__(self, "scale", _finite_float("scale", self.scale))
        if self.scale <= 0:
            raise SettingsError(f"scale must be above 0, got {self.scale:g} (1/255 brings pixels to 0..1)")
        if self.resize is not None and not _is_size(self.resize):
            raise SettingsError(f"resize must be a length in pixels of 1 or more, got {self.resize!r}")
        if self.crop is not None:
            crop: object = tuple(self.crop) if isinstance(self.crop, (tuple, list)) else self.crop
            if not (isinstance(crop, tuple) and len(crop) == 2 and all(_is_size(side) for side in crop)):
                raise SettingsError(f"crop must be a height and a width in pixels, got {self.crop!r}")
            object.__setattr__(self, "crop", crop)
            self._check_resize_covers(self.crop)
        for name, choices in (("layout", _LAYOUTS), ("color", _COLORS)):
            if getattr(self, name) not in choices:
                raise SettingsError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")

    def _check_resize_covers(self, crop: tuple[int, int]) -> None:
        """Refuse a shorter side below both sides of the crop: it could never be kept, for no image at all."""
        if self.resize is not None and self.resize < min(crop):
            raise SettingsError(f"resize {self.resize} is smaller than the crop {_size_text(crop)}: raise --resize")

    def to_json(self) -> dict[str, Any]:
        """A plain dict that ``json.dumps`` takes and :meth:`from_json` turns back into an equal object."""
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "scale": self.scale,
            "resize": self.resize,
            "crop": None if self.crop is None else list(self.crop),
            "layout": self.layout,
            "color": self.color,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Preprocess:
        """The object :meth:`to_json` described.

        Raises:
            SettingsError: a key is missing or unknown, or a value is out of its range.
        """
        if not isinstance(data, dict):
            raise SettingsError(f"stored preprocessing must be an object, got {data!r}")
        known = {field.name for field in fields(cls)}
        if set(data) != known:
            odd = ", ".join(sorted(known ^ set(data)))
            raise SettingsError(f"stored preprocessing does not fit this version: missing or unknown {odd}")
        return cls(**data)

    def resolve(self, spec: InputSpec) -> Preprocess:
        """This preprocessing with everything the model decides filled in; resolving twice changes nothing.

        Layout, color and crop become definite, mean and std get one value per channel. ``resize`` stays None if it was:
        that is a rule about each image, not one number. For a uint8 input (a model that normalizes by itself) scale,
        mean and std become 1, 0 and 1.

        Raises:
            DataError: images cannot feed this input, or its size is free and ``crop`` is not given.
            SettingsError: a setting contradicts the model.
        """
        if len(spec.shape) != 4:
            raise DataError(f"images cannot feed {spec}: it does not have 4 axes; {_USE_ARRAYS}")
        if spec.dtype not in (np.float32, np.float16, np.float64, np.uint8):
            raise DataError(f"images cannot feed {spec}: only float and uint8 inputs take pixels; {_USE_ARRAYS}")
        layout = self._layout_for(spec)
        channels = self._channels_for(spec, layout)
        color = self.color
        if color == "auto":
            color = "gray" if channels == 1 else "rgb"
        if channels == 1 and color != "gray":
            raise SettingsError(f"color {color} needs 3 channels, {spec} has 1: use --color gray")
        crop = self._crop_for(spec, layout)
        self._check_resize_covers(crop)
        resolved = replace(self, layout=layout, color=color, crop=crop, **self._affine_for(spec, color, channels))
        if not np.isfinite(resolved.table(spec.dtype)).all():
            raise SettingsError(f"scale, mean and std take pixels out of the range of {spec}")
        return resolved

    def _layout_for(self, spec: InputSpec) -> str:
        if self.layout != "auto":
            return self.layout
        if spec.shape[1] in (1, 3):
            return "nchw"
        if spec.shape[3] in (1, 3):
            return "nhwc"
        if None in (spec.shape[1], spec.shape[3]):
            raise DataError(f"cannot tell which axis of {spec} is the channel: use --layout nchw or --layout nhwc")
        raise DataError(f"images cannot feed {spec}: neither axis 1 nor axis 3 has 1 or 3 channels; {_USE_ARRAYS}")

    def _channels_for(self, spec: InputSpec, layout: str) -> int:
        channels = spec.shape[1 if layout == "nchw" else 3]
        if channels is None:
            return 1 if self.color == "gray" else 3
        if channels not in (1, 3):
            raise DataError(f"images cannot feed {spec}: {channels} channels in {layout}, not 1 or 3; {_USE_ARRAYS}")
        return channels

    def _crop_for(self, spec: InputSpec, layout: str) -> tuple[int, int]:
        height, width = spec.shape[2:] if layout == "nchw" else spec.shape[1:3]
        if self.crop is None:
            if height is None or width is None:
                raise DataError(f"the height and width of {spec} are free: say which to use with --crop")
            return height, width
        for size, wanted in zip((height, width), self.crop, strict=True):
            if size is not None and size != wanted:
                raise SettingsError(f"crop {_size_text(self.crop)} does not fit {spec}: leave --crop out")
        return self.crop

    def _affine_for(self, spec: InputSpec, color: str, channels: int) -> dict[str, Any]:
        """Scale, mean and std for ``channels`` channels in the model's order."""
        if spec.dtype == np.uint8:
            if not self._leaves_pixels and (self.scale, self.mean, self.std) != (1 / 255, IMAGENET_MEAN, IMAGENET_STD):
                raise SettingsError(f"{spec} takes pixels as they are: leave --scale, --mean and --std out")
            return {"scale": 1.0, "mean": (0.0,) * channels, "std": (1.0,) * channels}
        values = {}
        for name, imagenet in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            given = getattr(self, name)
            if len(given) == 1:
                given *= channels
            elif channels == 1:
                if given != imagenet:
                    raise SettingsError(f"{name} has 3 values, {spec} has 1 channel: give one value")
                given = (round(sum(imagenet) / 3, 12),)  # rounded: 0.449, not 0.44899999999999995
            elif color == "bgr" and given == imagenet:
                given = given[::-1]
            values[name] = given
        return values

    @property
    def _leaves_pixels(self) -> bool:
        return self.scale == 1 and set(self.mean) == {0.0} and set(self.std) == {1.0}

    def table(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """What each of the 256 pixel values becomes: (channels, 256), computed in float64 and cast once."""
        pixels = np.arange(256, dtype=np.float64)
        mean, std = np.array(self.mean)[:, None], np.array(self.std)[:, None]
        with np.errstate(over="ignore"):  # resolve() looks for the infinities
            values: NDArray[Any] = ((pixels * self.scale - mean) / std).astype(dtype)
        return values

    def describe(self) -> str:
        """One line for people, in the order things happen."""
        crop = "the model's size" if self.crop is None else _size_text(self.crop)
        if self.resize is not None:
            size = f"shorter side to {self.resize}, centre crop to {crop}"
        elif self.crop is None:
            size = f"images of the model's size as they are, others: shorter side to size/{CROP_FRACTION}, centre crop"
        else:
            box = [round(side / CROP_FRACTION) for side in self.crop]
            to = f"shorter side to {box[0]}" if box[0] == box[1] else f"scaled to cover {_size_text(box)}"
            size = f"images of {crop} as they are, others: {to}, centre crop"
        if self._leaves_pixels:
            numbers = "pixels 0..255 fed as they are, no mean or std"
        else:
            scale = "1/255" if self.scale == 1 / 255 else f"{self.scale:g}"
            numbers = f"scale {scale}, mean {_numbers(self.mean)}, std {_numbers(self.std)}"
        return f"{self.color} {self.layout}; {size}; {numbers}"


class Dataset(ABC):
    """Model inputs by index, read when asked for; made by :func:`open_calibration` and :func:`open_validation`.

    ``len()`` counts what was chosen, including images that turn out to be unreadable.

    Attributes:
        inputs: the model's inputs.
        files: the chosen image files in order, or None for arrays.
        labels: (len,) int64 class indices, or None.
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

    def load(self, limit: int | None = None) -> dict[str, NDArray[Any]]:
        """All readable samples at once: input name -> (samples, ...) in the input's dtype.

        Args:
            limit: at most so many, spread evenly over the set rather than taken from its start (folders are often
                sorted by class).

        Raises:
            DataError: as :meth:`batches`.
        """
        indices = _middle_of_strata(len(self), limit)
        out: dict[str, NDArray[Any]] = {}
        filled = 0
        for start in range(0, len(indices), _LOAD_CHUNK):  # filled in place: joining chunks would hold everything twice
            inputs, kept = self._read(indices[start : start + _LOAD_CHUNK])
            for name, rows in inputs.items():
                whole = out.setdefault(name, np.empty((len(indices), *rows.shape[1:]), rows.dtype))
                whole[filled : filled + len(kept)] = rows
            filled += len(kept)
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
        return _ImageDataset(self.inputs[0], self._paths[rank::size], labels, self._resolved)

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
        except _UnreadableError as error:
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
                        f"arrays for input '{name}' differ: {_shape_text(array.shape)} in {path}, "
                        f"{_shape_text(first[name].shape)} in {self._paths[0]}"
                    )
            rows.append(len(next(iter(arrays.values()))))
        self._ends = np.cumsum(rows)
        self._chosen = _pick(int(self._ends[-1]), samples, seed)

    def __len__(self) -> int:
        return len(self._chosen)

    def _share(self, rank: int, size: int) -> Dataset:
        part = copy.copy(self)
        part._chosen = self._chosen[rank::size]  # noqa: SLF001 - its own class
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
    """The validation data under ``path``, labelled where :func:`labels_for` finds labels.

    Args:
        path: as for :func:`open_calibration`.
        inputs: the model's inputs.
        preprocess: what to do to images; normally what the quantized file's metadata says.
        labels: CSV of ``file,label``; None: labels are read from folder names. Arrays have no labels.
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
    if files[0].suffix.lower() in ARRAY_SUFFIXES:
        if csv_path is not None:
            raise DataError(f"labels by file name need image files, {path} holds arrays: leave --labels out")
        return _ArrayDataset(inputs, files, samples, seed)
    if len(inputs) > 1:
        names = ", ".join(f"'{spec.name}'" for spec in inputs)
        raise DataError(f"images feed models with one input, this one has {len(inputs)} ({names}); {_USE_ARRAYS}")
    # Labels first: a class's number counts all folders, not only those the chosen files happen to come from.
    labels = labels_for(files, root, csv_path) if labelled else None
    chosen = _pick(len(files), samples, seed)
    return _ImageDataset(inputs[0], [files[i] for i in chosen], None if labels is None else labels[chosen], preprocess)


def pad_batch(array: NDArray[Any], size: int) -> NDArray[Any]:
    """``array`` with its last row repeated until it has ``size`` rows, for models with a fixed batch.

    Raises:
        ValueError: it is empty or longer than ``size`` already.
    """
    if not 1 <= len(array) <= size:
        raise ValueError(f"cannot pad {len(array)} rows to {size}")
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])


# ---- finding and choosing -------------------------------------------------------------------------------------------


def _find(path: Path) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the files: all images or all arrays."""
    try:
        if path.is_dir():
            return path, _search(path)
        if path.is_file():
            return path.parent, [path]
    except OSError as error:
        raise DataError(f"cannot read {error.filename or path}: {error.strerror or error}") from error
    raise DataError(f"no such file or folder: {path}; give a folder of images, an image, or an .npy or .npz file")


def _search(root: Path) -> list[Path]:
    everything = _walk(root)
    images = [file for file in everything if file.suffix.lower() in IMAGE_SUFFIXES]
    arrays = [file for file in everything if file.suffix.lower() in ARRAY_SUFFIXES]
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


class _UnreadableError(Exception):
    """Why one image file gives no pixels."""


def _pixels(path: Path, preprocess: Preprocess) -> NDArray[np.uint8]:
    """The image in the model's size and channel order: (height, width, channels) uint8."""
    image = _decode(path)
    if preprocess.color == "gray":
        image = image.convert("L")
    if len(preprocess.mean) == 3:
        image = image.convert("RGB")
    assert preprocess.crop is not None
    pixels = np.asarray(_fit(image, preprocess.resize, preprocess.crop))
    if pixels.ndim == 2:
        return pixels[:, :, None]
    return pixels[:, :, ::-1] if preprocess.color == "bgr" else pixels


def _decode(path: Path) -> Image.Image:
    """The first frame, upright, as 'L' or 'RGB'; alpha is dropped, as ``convert('RGB')`` and torchvision do."""
    try:
        with Image.open(path) as opened:
            return _to_eight_bits(ImageOps.exif_transpose(opened))
    except (_UnreadableError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise _UnreadableError("the file is empty" if path.stat().st_size == 0 else "not an image") from error
    except Exception as error:  # damaged bytes make Pillow's decoders raise nearly anything
        text = (getattr(error, "strerror", None) or str(error)).strip().splitlines()
        raise _UnreadableError(text[0] if text else type(error).__name__) from error


def _to_eight_bits(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode in ("L", "1", "LA", "La"):
        return image.convert("L")
    if mode == "I" or mode.startswith("I;16"):
        # Pillow's own convert() clips at 255 instead of scaling. Pillow has handed out 16-bit PNGs as 'I', too.
        wide = np.asarray(image).astype(np.int64)
        low, high = int(wide.min()), int(wide.max())
        if low < 0 or high > 65535:
            raise _UnreadableError(f"integer pixels from {low} to {high} do not fit 16 bits: save as 8 or 16 bits")
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8))  # to nearest: 65535 / 257 = 255
    if mode == "F":
        raise _UnreadableError("floating-point pixels have no agreed range: save as 8 or 16 bits, or give an .npy file")
    if mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the palette's colours under its transparency, as for other images with alpha
    return image.convert("RGB")


def _fit(image: Image.Image, resize: int | None, crop: tuple[int, int]) -> Image.Image:
    """Resize and centre crop to ``crop`` (height, width)."""
    height, width = crop
    if resize is None:
        if image.size == (width, height):
            return image
        box_width, box_height = round(width / CROP_FRACTION), round(height / CROP_FRACTION)
    else:
        box_width, box_height = max(resize, width), max(resize, height)
        # The larger box only matters where the shorter side's rule leaves the crop uncovered: see _cover.
    size = _cover(image.width, image.height, box_width, box_height)
    if size != image.size:
        if size[0] * size[1] > _MAX_RESIZED_PIXELS:
            raise _UnreadableError(f"too long and thin to resize: {image.width}x{image.height} pixels")
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)  # torchvision's rounding
    return image.crop((left, top, left + width, top + height))


def _cover(width: int, height: int, box_width: int, box_height: int) -> tuple[int, int]:
    """The smallest (width, height) of the same proportions that covers the box, rounded as torchvision's Resize does.

    For a square box that is "shorter side to the box's side". For a box max(resize, crop) it is the larger of
    "shorter side to resize" and "covers the crop", since the scale is max(box_width / width, box_height / height).
    """
    if width * box_height <= height * box_width:
        return box_width, max(box_height, int(box_width * height / width))
    return max(box_width, int(box_height * width / height)), box_height


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
    if len(there) == len(inputs) == 1:
        return {inputs[0].name: loaded[there[0]]}
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
            f"the array {_shape_text(array.shape)} in {path} does not fit {spec}: arrays are whole batches, batch first"
        )
    if array.size == 0:
        raise DataError(f"the array {_shape_text(array.shape)} for input '{spec.name}' in {path} is empty")
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


# ---- labels ---------------------------------------------------------------------------------------------------------


def labels_for(
    files: Sequence[Path], root: Path, labels_csv: str | os.PathLike[str] | None = None
) -> NDArray[np.int64] | None:
    """The class index of each file: (len(files),) int64, or None if nothing tells.

    1. ``labels_csv`` given: rows of ``file,label``, the file relative to ``root`` or by its bare name, the label an
       integer of 0 or more. A header may name the two columns; rows about other files are ignored.
    2. All files directly in ``root``: None.
    3. All in folders: the folder directly below ``root`` counts. If the names of those with images are all numbers, the
       number is the class; otherwise all folders directly below ``root``, with images or not, are sorted by name and
       numbered from 0 (as torchvision's ``ImageFolder``).

    Raises:
        DataError: files both in folders and directly in ``root``; the CSV cannot be read, lacks a file, or contradicts
            itself.
    """
    relative = [file.relative_to(root) for file in files]
    if labels_csv is not None:
        return _labels_from_csv(relative, Path(labels_csv))
    loose = [file for file in relative if len(file.parts) == 1]
    if len(loose) == len(relative):
        return None
    if loose:
        raise DataError(
            f"{len(loose)} of {len(relative)} images lie in {root} itself (first {loose[0]}), not in a folder "
            "named by class: move them or give --labels"
        )
    folders = [file.parts[0] for file in relative]
    if all(name.isascii() and name.isdigit() for name in folders):
        return _int64([int(name) for name in folders], root)
    present = {entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    number = {name: index for index, name in enumerate(sorted(present | set(folders)))}
    return np.array([number[name] for name in folders], np.int64)


def _labels_from_csv(relative: Sequence[Path], csv_path: Path) -> NDArray[np.int64]:
    table = _csv_table(csv_path)
    shared = Counter(file.name for file in relative)
    labels = []
    for file in relative:
        label = table.get(file.as_posix())
        if label is None and file.name in table:
            if shared[file.name] > 1:
                raise DataError(
                    f"{csv_path} has '{file.name}', a name {shared[file.name]} images share: add the folder"
                )
            label = table[file.name]
        if label is None:
            raise DataError(f"no label for {file.as_posix()} in {csv_path}: add a line '{file.as_posix()},LABEL'")
        labels.append(label)
    return _int64(labels, csv_path)


def _csv_table(path: Path) -> dict[str, int]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            rows = [(number, row) for number, row in enumerate(csv.reader(handle), 1) if any(row)]
    except OSError as error:
        raise DataError(f"cannot read labels {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read labels {path}: not a CSV file of file,label ({error})") from error
    file_column, label_column = 0, 1
    if rows and len(rows[0][1]) > 1 and _label(rows[0][1][1]) is None:  # a header
        names = [name.strip().lower() for name in rows.pop(0)[1]]
        if {"file", "label"} <= set(names):
            file_column, label_column = names.index("file"), names.index("label")
    table: dict[str, int] = {}
    for number, row in rows:
        cells = dict(enumerate(row))
        label = _label(cells.get(label_column, ""))
        if file_column not in cells or label is None:
            raise DataError(f"{path}, line {number}: expected file,label with an integer label, got {','.join(row)!r}")
        name = PurePosixPath(cells[file_column].strip().replace("\\", "/")).as_posix()
        if table.setdefault(name, label) != label:
            raise DataError(f"{path}, line {number}: two labels for {name}: {table[name]} and {label}")
    return table


def _label(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() else None


def _int64(labels: Sequence[int], source: Path) -> NDArray[np.int64]:
    if max(labels, default=0) > np.iinfo(np.int64).max:
        raise DataError(f"label {max(labels)} from {source} is no class index")
    return np.array(labels, np.int64)


# ---- small things ---------------------------------------------------------------------------------------------------

_USE_ARRAYS = "give ready inputs as .npy, or .npz by input name"


def _digest(paths: Sequence[Path], more: str) -> str:
    listing = "\n".join(f"{path.name} {path.stat().st_size if path.exists() else -1}" for path in paths)
    return hashlib.sha256(f"{listing}\n{more}".encode()).hexdigest()


def _concatenate(parts: Sequence[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _finite_float(name: str, value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{name} must be a number, got {value!r}") from error
    if not math.isfinite(number):
        raise SettingsError(f"{name} must be a finite number, got {number}")
    return number


def _channel_values(name: str, values: object) -> tuple[float, ...]:
    if not isinstance(values, (tuple, list)) or len(values) not in (1, 3):
        raise SettingsError(f"{name} must have 1 or 3 values, got {values!r}")
    return tuple(_finite_float(name, value) for value in values)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _size_text(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"


def _shape_text(shape: Sequence[int | None]) -> str:
    return f"({', '.join('?' if size is None else str(size) for size in shape)})"


def _lost_text(item: tuple[Path, str]) -> str:
    return f"{item[0]} ({item[1]})"


def _lost_list(lost: Sequence[tuple[Path, str]]) -> str:
    return _first_of([_lost_text(item) for item in lost])


def _first_of(texts: Sequence[str], most: int = 3) -> str:
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")
