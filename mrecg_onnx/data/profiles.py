"""Preprocessing by name or from a file: what transformers and timm store beside their models, or JSON of our own.

A file is read as data that anyone may have written: its size is bounded, every value is checked, and what is in it but
cannot be done here is named. Which file is which:

* ``preprocessor_config.json`` (transformers): the ``do_*`` steps with their sizes and numbers;
* ``config.json`` of timm: the entries of its ``pretrained_cfg``, or of a data config alone;
* fields of :class:`mrecg_onnx.Preprocess`, as ``--json`` and the metadata of a quantized file have them.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrecg_onnx.converters.errors import SettingsError, first_line
from mrecg_onnx.data.images import Dataset, holds_images
from mrecg_onnx.data.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    INTERPOLATIONS,
    NO_RESIZE,
    UNIT_SCALE,
    InputSpec,
    Preprocess,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PROFILES", "PreprocessField", "beside", "for_images", "profile", "require_numbers"]

logger = logging.getLogger(__name__)

#: Preprocessing by name.
PROFILES = {
    "imagenet": Preprocess(IMAGENET_MEAN, IMAGENET_STD, UNIT_SCALE),
    "unit": Preprocess((0.0,), (1.0,), UNIT_SCALE),
    "raw": Preprocess((0.0,), (1.0,), 1.0),
}
#: Files looked for beside a model, the first one that says something counts.
NAMES = ("preprocessor_config.json", "config.json")
#: Folder that exporters put the ONNX files of a model into, under the one with its configuration.
NESTED = "onnx"
MAX_BYTES = 4 << 20
"""Size of the largest file read: a timm configuration with 21,000 class names has one."""
MAX_SIDE = 8192
"""Largest height or width taken from a file: memory for an image is asked for by it."""
_OWN = frozenset(Preprocess().to_json())
#: timm's share of the image that is kept where its configuration has none.
TIMM_CROP = 0.875
#: Pillow's numbers of its filters, as transformers stores them.
_RESAMPLE = {int(number): name for name, number in INTERPOLATIONS.items()}
#: Image processors of transformers for which a size that is one number is the shorter side; for others it is a square.
_SHORTER_SIDE = ("Bit", "ChineseCLIP", "CLIP", "ConvNext", "Levit", "MobileNetV", "MobileViT", "PoolFormer", "VideoMAE")
#: What stands in these files and changes no pixel.
_IDLE = frozenset({
    "_processor_class", "_valid_processor_keys", "architecture", "architectures", "auto_map", "data_format", "default_to_square",
    "device", "disable_grouping", "do_convert_rgb", "feature_extractor_type", "image_processor_type", "input_data_format",
    "model_type", "num_classes", "num_features", "processor_class", "return_tensors", "transformers_version",
})  # fmt: skip


class PreprocessField:
    """A field of a dataclass that holds a Preprocess and takes the name of a profile or a file, too."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type | None = None) -> Preprocess:
        if instance is None:
            return Preprocess(beside=True)  # the field's default
        found: Preprocess = vars(instance)[self._name]
        return found

    def __set__(self, instance: object, value: Preprocess | str | Path) -> None:
        vars(instance)[self._name] = value if isinstance(value, Preprocess) else profile(value)


def profile(name: str | Path) -> Preprocess:
    """The preprocessing of a name in :data:`PROFILES`, or of a file.

    Raises:
        SettingsError: there is neither, or the file does not say how images become inputs.
    """
    if str(name) in PROFILES:
        return PROFILES[str(name)]
    path = Path(name)
    if not path.is_file():
        raise SettingsError(f"--preprocess {name}: there is no such file, and names are {', '.join(PROFILES)}")
    found = _read(path)
    if found is None:
        raise SettingsError(
            f"--preprocess {name}: is no preprocessor_config.json of transformers, no config.json of timm and no object with "
            f"some of {', '.join(sorted(_OWN))}"
        )
    return found


def beside(model: object) -> Preprocess | None:
    """What a file beside ``model`` says (or beside the folder 'onnx' that it lies in); None without, and for a model in memory.

    Raises:
        SettingsError: the file cannot be used.
    """
    if not isinstance(model, str | Path):
        return None
    folder = Path(model).absolute().parent
    for place in (folder, folder.parent) if folder.name == NESTED else (folder,):
        for name in NAMES:
            path = place / name
            if not path.is_file():
                if path.exists():
                    raise SettingsError(
                        f"{path}: is no file; --preprocess imagenet|unit|raw|FILE says how images become inputs"
                    )
                continue
            try:
                found = _read(path, shown=Path(model).parent / name if place == folder else path)
            except SettingsError as error:
                raise SettingsError(f"{error}; --preprocess imagenet|unit|raw|FILE goes before that file") from error
            if found is not None:
                return found
    return None


def for_images(preprocess: Preprocess, model: object, *sources: str | Path | Dataset | None) -> Preprocess:
    """``preprocess`` with what it does not state from a file beside ``model``, where it may be read and there are images.

    Args:
        preprocess: what is stated.
        model: the model, looked at where it is a path.
        sources: where data come from: paths, 'zeroq' (made images are images), open data sets, None for none.

    Raises:
        SettingsError: the file cannot be used.
        DataError: a path of ``sources`` cannot be read.
    """
    if not preprocess.beside or not any(holds_images(source) for source in sources):
        return preprocess
    found = beside(model)
    return preprocess.over(found or Preprocess())


def require_numbers(preprocess: Preprocess, inputs: Sequence[InputSpec], why: str) -> None:
    """Refuse images for a model that was calibrated on arrays, unless it is said how they become the same numbers.

    Raises:
        SettingsError: mean or deviation are not stated; ``why`` says who wants to know.
    """
    if preprocess.normalizes or any(spec.dtype == "uint8" for spec in inputs):
        return
    raise SettingsError(
        f"{why}: say how images become the same numbers with --mean, --std and --scale, or --preprocess imagenet|unit|raw|FILE "
        "(or give arrays here, too)"
    )


# --- reading ----------------------------------------------------------------------------------------------------------


class _Entries:
    """The entries of one JSON object, checked as they are taken; what nobody took is reported in the end."""

    def __init__(self, data: dict[str, Any], where: str) -> None:
        self.data, self.where = data, where
        self.left = set(data) - _IDLE
        self.notes: list[str] = []

    def take(self, key: str) -> Any:
        """The value as it stands; None where there is none."""
        self.left.discard(key)
        return self.data.get(key)

    def wrong(self, key: str, wanted: str) -> SettingsError:
        """What to raise about a value."""
        return SettingsError(f"{self.where}: {key} is {_short(self.data.get(key))}: {wanted} is expected")

    def flag(self, key: str, *, default: bool) -> bool:
        """True or false."""
        value = self.take(key)
        if not isinstance(value, bool | None):
            raise self.wrong(key, "true or false")
        return default if value is None else value

    def number(self, key: str, default: float) -> float:
        """A positive number."""
        value = self.take(key)
        if value is None:
            return default
        if not _is_number(value) or value <= 0:
            raise self.wrong(key, "a number above 0")
        return float(value)

    def numbers(self, key: str) -> tuple[float, ...]:
        """One number, or one a channel."""
        value = self.take(key)
        if value is None:
            raise SettingsError(f"{self.where}: {key} is missing: give it as an option of the command")
        values = value if isinstance(value, list) else [value]
        if len(values) not in (1, 3, 4) or not all(_is_number(one) for one in values):
            raise self.wrong(key, "a number, or a list of one for each channel")
        return tuple(float(one) for one in values)

    def side(self, key: str, value: object) -> int:
        """A height or width that stands somewhere in ``key``."""
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIDE:
            raise self.wrong(key, f"a size in whole pixels up to {MAX_SIDE}")
        return value

    def word(self, key: str) -> str | None:
        """A string."""
        value = self.take(key)
        if not isinstance(value, str | None):
            raise self.wrong(key, "a word")
        return value

    def report_rest(self) -> None:
        """Name what was left over and would do something: what is false or null would not."""
        rest = sorted(_short_key(key) for key in self.left if self.data[key] not in (None, False))
        what = self.notes + ([f"{', '.join(rest)} not applied"] if rest else [])
        if what:
            logger.warning("%s: %s", self.where, "; ".join(what))


def _read(path: Path, shown: Path | None = None) -> Preprocess | None:
    """The preprocessing in a file; None where it is about something else."""
    shown = shown or path
    try:
        if path.stat().st_size > MAX_BYTES:
            _refuse(path, f"{shown}: is larger than {MAX_BYTES >> 20} MiB: no file about preprocessing is")
            return None
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SettingsError(f"{shown}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested without end
        _refuse(path, f"{shown}: is no JSON file ({first_line(error)})")
        return None
    if not isinstance(data, dict):
        _refuse(path, f"{shown}: holds no object with preprocessing")
        return None
    found = _convert(_Entries(data, str(shown)))
    return None if found is None else dataclasses.replace(found, source=str(shown))


def _refuse(path: Path, message: str) -> None:
    """Raise ``message``, unless the file is called config.json: other tools write such files for themselves."""
    if path.name != "config.json":
        raise SettingsError(message)
    logger.info("%s; not used", message)


def _convert(entries: _Entries) -> Preprocess | None:
    """The preprocessing that is described, by whoever described it; None where it is about something else."""
    data, read = entries.data, None
    if data and set(data) <= _OWN:
        read = _own
    elif isinstance(data.get("image_processor"), dict):  # a processor_config.json of transformers
        entries, read = _Entries(data["image_processor"], f"{entries.where}, image_processor"), _transformers
    elif "pretrained_cfg" in data:
        if not isinstance(data["pretrained_cfg"], dict):
            raise entries.wrong("pretrained_cfg", "an object")
        entries, read = _Entries(data["pretrained_cfg"], f"{entries.where}, pretrained_cfg"), _timm
    elif {"do_normalize", "do_resize", "do_rescale", "image_mean"} & set(data):
        read = _transformers
    elif {"mean", "std"} <= set(data) and {"input_size", "crop_pct", "interpolation", "architecture"} & set(data):
        read = _timm
    if read is None:
        return None
    try:
        found = read(entries)
    except SettingsError as error:
        if str(error).startswith(entries.where):
            raise
        raise SettingsError(f"{entries.where}: {error}") from error
    entries.report_rest()
    return found


def _own(entries: _Entries) -> Preprocess:
    entries.left.clear()
    for key, value in entries.data.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict | list) or (isinstance(one, str) and len(one) > 20):
                raise entries.wrong(key, "a plain value")
            if key in {"crop", "resize"} and isinstance(one, int):
                entries.side(key, one)
    return Preprocess(**entries.data)


# --- transformers -----------------------------------------------------------------------------------------------------


def _transformers(entries: _Entries) -> Preprocess:
    """Steps in their order: resize, centre crop, rescale, normalize."""
    kind = str(entries.data.get("image_processor_type") or entries.data.get("feature_extractor_type") or "")
    resize, crop = _resized(entries, kind)
    scale = entries.number("rescale_factor", UNIT_SCALE)
    scale = scale if entries.flag("do_rescale", default=True) else 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    if entries.flag("do_normalize", default="image_mean" in entries.data):
        mean, std = entries.numbers("image_mean"), entries.numbers("image_std")
    else:
        entries.left -= {"image_mean", "image_std"}
    if entries.flag("rescale_offset", default=False):
        mean = tuple(m + 1.0 for m in mean)
    if entries.flag("include_top", default=False):  # EfficientNet's second division
        std = tuple(s * s for s in std)
    return Preprocess(
        mean=mean,
        std=std,
        scale=scale,
        resize=resize,
        crop=crop,
        color="bgr" if entries.flag("do_flip_channel_order", default=False) else "auto",
        interpolation=_resample(entries),
    )


def _resample(entries: _Entries) -> str:
    number = entries.take("resample")
    if number is None:
        return "bilinear"
    if isinstance(number, bool) or not isinstance(number, int) or number not in _RESAMPLE:
        raise entries.wrong("resample", "a number of one of Pillow's filters, 0 to 5,")
    return _RESAMPLE[number]


def _resized(entries: _Entries, kind: str) -> tuple[int | tuple[int, int] | str | None, tuple[int, int] | None]:
    """What ``size``, ``crop_size`` and their flags come to: resize and crop of a Preprocess."""
    cropped = entries.flag("do_center_crop", default=entries.data.get("crop_size") is not None)
    size = _size(entries, kind, cropped=cropped)
    fraction = entries.number("crop_pct", 224 / 256)
    crop = _crop(entries, size) if cropped else None
    if not entries.flag("do_resize", default=True):
        return NO_RESIZE, crop
    if size is None or isinstance(size, tuple):
        return size, crop or size
    if kind.startswith("ConvNext"):
        if size >= 384:
            return (size, size), (size, size)
        return int(size / fraction), (size, size)
    if kind.startswith("Levit"):
        return int(256 / 224 * size), crop
    if entries.data.get("crop_pct") is not None:
        return math.floor(size / fraction), crop
    if crop is None:
        entries.notes.append("images are not cropped there: what is beyond the model's size is cut off here")
    return size, crop


def _size(entries: _Entries, kind: str, *, cropped: bool) -> int | tuple[int, int] | None:
    """Of the key ``size``: the shorter side, or height and width."""
    size = entries.take("size")
    if size is None:
        return None
    if isinstance(size, list) and len(size) == 2:
        size = dict(zip(("height", "width"), size, strict=True))
    if not isinstance(size, dict):
        side = entries.side("size", size)
        square = not (kind.startswith(_SHORTER_SIDE) if kind else cropped)
        square = entries.flag("default_to_square", default=square)
        return (side, side) if square else side
    sides = {key: entries.side("size", value) for key, value in size.items() if value is not None}
    if {"height", "width"} <= set(sides):
        known = {"height", "width"}
    elif "shortest_edge" in sides:
        known = {"shortest_edge"}
    else:
        raise entries.wrong("size", "height and width, or shortest_edge")
    rest = [f"size.{_short_key(key)}" for key in sides if key not in known]
    entries.notes += [f"{', '.join(rest)} not applied"] if rest else []
    return (sides["height"], sides["width"]) if "height" in known else sides["shortest_edge"]


def _crop(entries: _Entries, size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    crop = entries.take("crop_size")
    if crop is None:
        return (size, size) if isinstance(size, int) else size
    if isinstance(crop, list) and len(crop) == 2:
        crop = dict(zip(("height", "width"), crop, strict=True))
    if not isinstance(crop, dict):
        crop = {"height": crop, "width": crop}
    if set(crop) == {"shortest_edge"}:
        crop = dict.fromkeys(("height", "width"), crop["shortest_edge"])
    if not {"height", "width"} <= set(crop):
        raise entries.wrong("crop_size", "a size, or height and width")
    return entries.side("crop_size", crop["height"]), entries.side("crop_size", crop["width"])


# --- timm -------------------------------------------------------------------------------------------------------------


def _timm(entries: _Entries) -> Preprocess:
    """Evaluation transforms: resize to the input's size over ``crop_pct``, centre crop, normalize pixels of 0..1."""
    entries.left &= {
        "border_pixels",
        "crop_border_pixels",
        "crop_mode",
        "crop_pct",
        "input_size",
        "interpolation",
        "mean",
        "std",
    }
    size = _timm_size(entries)
    fraction = entries.number("crop_pct", TIMM_CROP)
    mode = entries.word("crop_mode") or "center"
    if mode not in {"center", "squash"}:
        entries.notes.append(f"crop_mode {_short(mode)} not applied: images are cropped at the centre")
    interpolation = entries.word("interpolation") or "bilinear"
    if interpolation == "random":  # of the training; timm evaluates with bilinear
        interpolation = "bilinear"
    if interpolation not in INTERPOLATIONS:
        raise entries.wrong("interpolation", f"one of {', '.join(INTERPOLATIONS)}")
    resize: int | tuple[int, int] | None = None
    if size is not None:
        box = math.floor(size[0] / fraction), math.floor(size[1] / fraction)
        if mode == "squash":
            resize = box
        elif box[0] == box[1]:
            resize = box[0]
        elif entries.data.get("crop_pct") not in (None, TIMM_CROP):
            entries.notes.append("crop_pct not applied: the input is not square")
    return Preprocess(
        mean=entries.numbers("mean"),
        std=entries.numbers("std"),
        scale=UNIT_SCALE,
        resize=resize,
        crop=size,
        interpolation=interpolation,
    )


def _timm_size(entries: _Entries) -> tuple[int, int] | None:
    size = entries.take("input_size")
    if size is None:
        return None
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) not in (2, 3):
        raise entries.wrong("input_size", "channels, height and width")
    height, width = (entries.side("input_size", side) for side in sides[-2:])
    return height, width


# --- small things -----------------------------------------------------------------------------------------------------


def _is_number(value: object) -> bool:
    """Whether it is a finite number; whole ones beyond what a float holds are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e30


def _short(value: object) -> str:
    """A value of a file for a message: no control characters, no page of it."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _short_key(key: str) -> str:
    return key if key.isidentifier() and key.isascii() and len(key) <= 60 else _short(key)
