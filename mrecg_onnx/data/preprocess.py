"""How the pixels of an image become a model's input: size, channels and numbers, stated or found out from the model."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mrecg_onnx.converters.errors import DataError, SettingsError
from mrecg_onnx.converters.text import bounded
from mrecg_onnx.data.inputs import InputSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = [
    "COLORS", "IMAGENET_MEAN", "IMAGENET_STD", "INTERPOLATIONS", "LAYOUTS", "NO_RESIZE", "UNIT_SCALE", "USE_ARRAYS", "Preprocess",
]  # fmt: skip

# ImageNet's channel statistics of pixels in 0..1, red green blue: what torchvision's and timm's classifiers expect.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CROP_FRACTION = 0.875  # 224 of 256: the evaluation crop ImageNet classifiers are reported with
UNIT_SCALE = 1 / 255  # pixels to 0..1
LAYOUTS = ("auto", "nchw", "nhwc")
#: Channels of a model's input by the colours that can fill them.
_CHANNELS = {"gray": (1, 3), "rgb": (3,), "bgr": (3,), "rgba": (4,)}
COLORS = ("auto", *_CHANNELS)
#: Filters of Pillow by their usual names.
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
#: Images are not resized at all.
NO_RESIZE = "off"
#: What to do where images cannot feed a model.
USE_ARRAYS = "give ready inputs as .npy, or .npz by input name"


@dataclass(frozen=True)
class Preprocess:
    """How pixels become numbers: ``x = (pixels * scale - mean) / std``, pixels in 0..255.

    What is None (or 'auto') is not stated: :meth:`resolve` finds it out from the model or takes the default; a mean and a
    deviation have one for three channels only, ImageNet's. Geometry is torchvision's ``Resize`` (with antialiasing) and
    ``CenterCrop`` on Pillow images. An image that would still be smaller than the crop (possible with a crop that is not
    square) is scaled until it covers it.

    Attributes:
        mean: one value, or one per channel in the order of the model's channels. ImageNet's follows ``color`` by itself:
            turned round for bgr, averaged for a one-channel model.
        std: likewise, above 0.
        scale: what pixels are multiplied by first, 1/255 by default.
        resize: length in pixels that the shorter side is brought to; or (height, width), whatever the image's proportions;
            or 'off'. None: an image that already has the crop's size is used as it is, any other is scaled until it just
            covers the crop / 0.875 (for a square crop of 224: the shorter side becomes 256).
        crop: (height, width) cut from the centre; None: the model's size. What an image that is not resized lacks is black.
        layout: 'nchw', 'nhwc', or 'auto': nchw if axis 1 of the input is 1 or 3 long, else nhwc if axis 3 is; then likewise
            for 4.
        color: 'rgb', 'bgr', 'gray' (ITU-R 601 luma; repeated three times for a three-channel model), 'rgba' (images
            without alpha are opaque), or 'auto': gray for one channel, rgb for three, rgba for four.
        interpolation: filter of the resizing, a row of :data:`INTERPOLATIONS`; bilinear by default.
        beside: what is not stated may be read from a file beside the model (:mod:`mrecg_onnx.data.profiles`).
        source: the file that some of this was read from.

    Raises:
        SettingsError: a value is out of its range.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: float | None = None
    resize: int | tuple[int, int] | str | None = None
    crop: tuple[int, int] | None = None
    layout: str = "auto"
    color: str = "auto"
    interpolation: str | None = None
    beside: bool = field(default=False, compare=False, repr=False)
    source: str | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _channel_values(name, getattr(self, name)))
        if self.std is not None and min(self.std) <= 0:
            raise SettingsError(f"std must be above 0, got {_numbers(self.std)}")
        if self.scale is not None:
            object.__setattr__(self, "scale", _finite_float("scale", self.scale))
            if self.scale <= 0:
                raise SettingsError(f"scale must be above 0, got {self.scale:g} (1/255 brings pixels to 0..1)")
        self._check_geometry()
        for name, choices in (("layout", LAYOUTS), ("color", COLORS), ("interpolation", (None, *INTERPOLATIONS))):
            if getattr(self, name) not in choices:
                known, given = [choice for choice in choices if choice is not None], getattr(self, name)
                raise SettingsError.among(f"{name} is {bounded(repr(given), 60)}", known, given)

    def _check_geometry(self) -> None:
        if isinstance(self.resize, tuple | list):
            object.__setattr__(self, "resize", _sides("resize", self.resize))
        elif not (self.resize is None or self.resize == NO_RESIZE or _is_size(self.resize)):
            raise SettingsError(
                f"resize must be a length in pixels of 1 or more, a height and a width, or {NO_RESIZE}, got {self.resize!r}"
            )
        if self.crop is not None:
            object.__setattr__(self, "crop", _sides("crop", self.crop))
            self._check_resize_covers(self.crop)

    def _check_resize_covers(self, crop: tuple[int, int]) -> None:
        """Refuse a size that no image could be cropped from: below both sides of the crop, or below one where both are said."""
        if isinstance(self.resize, tuple):
            if self.resize[0] < crop[0] or self.resize[1] < crop[1]:
                raise SettingsError(
                    f"resize {_size_text(self.resize)} is smaller than the crop {_size_text(crop)}: raise --resize"
                )
        elif isinstance(self.resize, int) and self.resize < min(crop):
            raise SettingsError(f"resize {self.resize} is smaller than the crop {_size_text(crop)}: raise --resize")

    def to_json(self) -> dict[str, Any]:
        """A plain dict that ``json.dumps`` takes and :meth:`from_json` turns back into an equal object."""
        plain = {name: getattr(self, name) for name in _STORED}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Preprocess:
        """The object :meth:`to_json` described; files of versions that knew one filter only do not say which.

        Raises:
            SettingsError: a key is missing or unknown, or a value is out of its range.
        """
        if not isinstance(data, dict):
            raise SettingsError(f"stored preprocessing must be an object, got {data!r}")
        odd = (set(_STORED) ^ set(data)) - ({"interpolation"} - set(data))
        if odd:
            names = ", ".join(sorted(odd))
            raise SettingsError(
                f"stored preprocessing does not fit this version: missing or unknown {bounded(names, 120)}"
            )
        return cls(**data)

    def over(self, base: Preprocess) -> Preprocess:
        """``base`` with everything put in that this one states."""
        stated = {name: getattr(self, name) for name in _STORED}
        return replace(base, **{name: value for name, value in stated.items() if value not in (None, "auto")})

    @property
    def normalizes(self) -> bool:
        """Mean and deviation are stated: numbers do not have to be assumed."""
        return self.mean is not None and self.std is not None

    def resolve(self, spec: InputSpec) -> Preprocess:
        """This preprocessing with everything the model decides filled in; resolving twice changes nothing.

        Layout, color and crop become definite, mean and std get one value per channel. ``resize`` stays None if it was:
        that is a rule about each image, not one number. For a uint8 input (a model that normalizes by itself) scale,
        mean and std become 1, 0 and 1.

        Raises:
            DataError: images cannot feed this input, or its size is free and ``crop`` is not given.
            SettingsError: a setting contradicts the model, or mean and std are not stated for other than three channels.
        """
        if len(spec.shape) != 4:
            raise DataError(f"images cannot feed {spec}: it does not have 4 axes; {USE_ARRAYS}")
        if spec.dtype not in (np.float32, np.float16, np.float64, np.uint8):
            raise DataError(f"images cannot feed {spec}: only float and uint8 inputs take pixels; {USE_ARRAYS}")
        try:
            return self._resolved(spec)
        except SettingsError as error:
            if self.source is None:
                raise
            raise SettingsError(
                f"{self.source}: {error}; options go before the file, --preprocess replaces it"
            ) from error

    def _resolved(self, spec: InputSpec) -> Preprocess:
        layout = self._layout_for(spec)
        channels = self._channels_for(spec, layout)
        color = self.color
        if color == "auto":
            color = next(name for name, fits in _CHANNELS.items() if fits[0] == channels)
        if channels not in _CHANNELS[color]:
            least, right = _CHANNELS[color][0], "rgba" if channels == 4 else "gray" if channels == 1 else "rgb"
            raise SettingsError(f"color {color} needs {least} channels, {spec} has {channels}: use --color {right}")
        crop = self._crop_for(spec, layout)
        self._check_resize_covers(crop)
        resolved = replace(
            self,
            layout=layout,
            color=color,
            crop=crop,
            interpolation=self.interpolation or "bilinear",
            beside=False,
            **self._affine_for(spec, color, channels),
        )
        if not np.isfinite(resolved.table(spec.dtype)).all():
            raise SettingsError(f"scale, mean and std take pixels out of the range of {spec}")
        return resolved

    def _layout_for(self, spec: InputSpec) -> str:
        if self.layout != "auto":
            return self.layout
        for sizes in ((1, 3), (4,)):
            if spec.shape[1] in sizes:
                return "nchw"
            if spec.shape[3] in sizes:
                return "nhwc"
        if None in (spec.shape[1], spec.shape[3]):
            raise DataError(f"cannot tell which axis of {spec} is the channel: use --layout nchw or --layout nhwc")
        raise DataError(f"images cannot feed {spec}: neither axis 1 nor axis 3 has 1, 3 or 4 channels; {USE_ARRAYS}")

    def _channels_for(self, spec: InputSpec, layout: str) -> int:
        channels = spec.shape[1 if layout == "nchw" else 3]
        if channels is None:
            return {"gray": 1, "rgba": 4}.get(self.color, 3)
        if channels not in (1, 3, 4):
            raise DataError(f"images cannot feed {spec}: {channels} channels in {layout}, not 1, 3 or 4; {USE_ARRAYS}")
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
            stated = (self.scale, self.mean, self.std) != (None, None, None)
            # A file beside a model says what happens to pixels in all; this one does its part inside.
            if stated and not self._leaves_pixels and self.source is None:
                raise SettingsError(f"{spec} takes pixels as they are: leave --scale, --mean and --std out")
            return {"scale": 1.0, "mean": (0.0,) * channels, "std": (1.0,) * channels}
        if channels != 3 and not self.normalizes:
            raise SettingsError(
                f"{spec} has {channels} channel{'s' if channels > 1 else ''}, for which no mean and deviation are usual: give "
                "--mean and --std (and --scale, 1/255 by default), or --preprocess imagenet|unit|raw|FILE"
            )
        values: dict[str, Any] = {"scale": UNIT_SCALE if self.scale is None else self.scale}
        for name, imagenet in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            given = getattr(self, name) or imagenet
            if len(given) == 1:
                given *= channels
            elif channels == 1 and given == imagenet:
                given = (round(sum(imagenet) / 3, 12),)  # rounded: 0.449, not 0.44899999999999995
            elif len(given) != channels:
                count = (
                    "1 channel: give one value"
                    if channels == 1
                    else f"{channels} channels: give 1 or {channels} values"
                )
                raise SettingsError(f"{name} has {len(given)} values, {spec} has {count}")
            elif color == "bgr" and given == imagenet:
                given = given[::-1]
            values[name] = given
        return values

    @property
    def _leaves_pixels(self) -> bool:
        return self.scale == 1 and set(self.mean or ()) == {0.0} and set(self.std or ()) == {1.0}

    def table(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """What each of the 256 pixel values becomes: (channels, 256), computed in float64 and cast once; when resolved."""
        assert self.scale is not None
        pixels = np.arange(256, dtype=np.float64)
        mean, std = np.array(self.mean)[:, None], np.array(self.std)[:, None]
        with np.errstate(over="ignore"):  # resolve() looks for the infinities
            values: NDArray[Any] = ((pixels * self.scale - mean) / std).astype(dtype)
        return values

    @property
    def is_imagenets(self) -> bool:
        """Whether the mean and the deviation of three channels are ImageNet's, in the order of rgb or of bgr."""
        said = ((self.mean, IMAGENET_MEAN), (self.std, IMAGENET_STD))
        return all(values is not None and values in (like, like[::-1]) for values, like in said)

    def describe(self) -> str:
        """One line for people, in the order things happen."""
        if self._leaves_pixels:
            numbers = "pixels 0..255 fed as they are, no mean or std"
        else:
            scale = "1/255" if self.scale in (None, UNIT_SCALE) else f"{self.scale:g}"
            given = [
                f"{name} {_numbers(v) if v else _IMAGENETS}" for name, v in (("mean", self.mean), ("std", self.std))
            ]
            numbers = f"scale {scale}, {', '.join(given)}"
        read = f"; from {self.source}" if self.source is not None else ""
        return f"{self.color} {self.layout}; {self._describe_size()}; {numbers}{read}"

    def _describe_size(self) -> str:
        crop = "the model's size" if self.crop is None else _size_text(self.crop)
        by = "" if self.interpolation in (None, "bilinear") else f", {self.interpolation}"
        if self.resize == NO_RESIZE:
            return f"not resized, centre crop to {crop}"
        if isinstance(self.resize, tuple):
            cut = "" if self.resize == self.crop else f", centre crop to {crop}"
            return f"resized to {_size_text(self.resize)}{by}{cut}"
        if self.resize is not None:
            return f"shorter side to {self.resize}{by}, centre crop to {crop}"
        if self.crop is None:
            return (
                f"images of the model's size as they are, others: shorter side to size/{CROP_FRACTION}{by}, centre crop"
            )
        box = [round(side / CROP_FRACTION) for side in self.crop]
        to = f"shorter side to {box[0]}" if box[0] == box[1] else f"scaled to cover {_size_text(box)}"
        return f"images of {crop} as they are, others: {to}{by}, centre crop"


_IMAGENETS = "ImageNet's"
#: What a file keeps of a preprocessing.
_STORED = tuple(f.name for f in fields(Preprocess) if f.name not in {"beside", "source"})


def _finite_float(name: str, value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError) as error:
        raise SettingsError(f"{name} must be a number, got {value!r}") from error
    if not math.isfinite(number):
        raise SettingsError(f"{name} must be a finite number, got {number}")
    return number


def _channel_values(name: str, values: object) -> tuple[float, ...]:
    if isinstance(values, numbers.Real) and not isinstance(values, bool):  # as --mean 0.5
        values = (values,)
    elif isinstance(values, np.ndarray):
        values = values.tolist()
    if not isinstance(values, (tuple, list)) or len(values) not in (1, 3, 4):
        raise SettingsError(f"{name} must have 1, 3 or 4 values, got {bounded(repr(values), 60)}")
    return tuple(_finite_float(name, value) for value in values)


def _sides(name: str, value: object) -> tuple[int, int]:
    if not (isinstance(value, tuple | list) and len(value) == 2 and all(_is_size(side) for side in value)):
        raise SettingsError(f"{name} must be a height and a width in pixels, got {bounded(repr(value), 60)}")
    return value[0], value[1]


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _size_text(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"
