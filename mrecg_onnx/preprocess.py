"""What a model's input is, and how the pixels of an image become one: size, channels and numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mrecg_onnx.converters.errors import DataError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = [
    "IMAGENET_MEAN", "IMAGENET_STD", "USE_ARRAYS", "InputSpec", "Preprocess", "UnreadableError", "cover", "fit", "shape_text",
]  # fmt: skip

# ImageNet's channel statistics of pixels in 0..1, red green blue: what torchvision's and timm's classifiers expect.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CROP_FRACTION = 0.875  # 224 of 256: the evaluation crop ImageNet classifiers are reported with
_LAYOUTS = ("auto", "nchw", "nhwc")
_COLORS = ("auto", "rgb", "bgr", "gray")
_MAX_RESIZED_PIXELS = 1 << 27  # a 10x30000 strip scaled to a shorter side of 256 would be 200 million pixels
#: What to do where images cannot feed a model.
USE_ARRAYS = "give ready inputs as .npy, or .npz by input name"


class UnreadableError(Exception):
    """Why one image file gives no pixels."""


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
        return f"input '{self.name}' {shape_text(self.shape)} {self.dtype}"


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
            raise DataError(f"images cannot feed {spec}: it does not have 4 axes; {USE_ARRAYS}")
        if spec.dtype not in (np.float32, np.float16, np.float64, np.uint8):
            raise DataError(f"images cannot feed {spec}: only float and uint8 inputs take pixels; {USE_ARRAYS}")
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
        raise DataError(f"images cannot feed {spec}: neither axis 1 nor axis 3 has 1 or 3 channels; {USE_ARRAYS}")

    def _channels_for(self, spec: InputSpec, layout: str) -> int:
        channels = spec.shape[1 if layout == "nchw" else 3]
        if channels is None:
            return 1 if self.color == "gray" else 3
        if channels not in (1, 3):
            raise DataError(f"images cannot feed {spec}: {channels} channels in {layout}, not 1 or 3; {USE_ARRAYS}")
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


def fit(image: Image.Image, resize: int | None, crop: tuple[int, int]) -> Image.Image:
    """Resize and centre crop to ``crop`` (height, width)."""
    height, width = crop
    if resize is None:
        if image.size == (width, height):
            return image
        box_width, box_height = round(width / CROP_FRACTION), round(height / CROP_FRACTION)
    else:
        box_width, box_height = max(resize, width), max(resize, height)
        # The larger box only matters where the shorter side's rule leaves the crop uncovered: see cover.
    size = cover(image.width, image.height, box_width, box_height)
    if size != image.size:
        if size[0] * size[1] > _MAX_RESIZED_PIXELS:
            raise UnreadableError(f"too long and thin to resize: {image.width}x{image.height} pixels")
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)  # torchvision's rounding
    return image.crop((left, top, left + width, top + height))


def cover(width: int, height: int, box_width: int, box_height: int) -> tuple[int, int]:
    """The smallest (width, height) of the same proportions that covers the box, rounded as torchvision's Resize does.

    For a square box that is "shorter side to the box's side". For a box max(resize, crop) it is the larger of
    "shorter side to resize" and "covers the crop", since the scale is max(box_width / width, box_height / height).
    """
    if width * box_height <= height * box_width:
        return box_width, max(box_height, int(box_width * height / width))
    return max(box_width, int(box_height * width / height)), box_height


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


def shape_text(shape: Sequence[int | None]) -> str:
    """``(?, 3, 32, 32)``; a free size is a question mark."""
    return f"({', '.join('?' if size is None else str(size) for size in shape)})"
