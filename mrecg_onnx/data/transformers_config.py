"""Preprocessing as transformers stores it (``preprocessor_config.json``): the ``do_*`` steps with their sizes and numbers."""

from __future__ import annotations

import math

from mrecg_onnx.data.entries import Entries, short_key
from mrecg_onnx.data.preprocess import INTERPOLATIONS, NO_RESIZE, UNIT_SCALE, Preprocess

__all__ = ["from_transformers"]

#: Pillow's numbers of its filters, as transformers stores them.
_RESAMPLE = {int(number): name for name, number in INTERPOLATIONS.items()}
#: Image processors of transformers for which a size that is one number is the shorter side; for others it is a square.
_SHORTER_SIDE = ("Bit", "ChineseCLIP", "CLIP", "ConvNext", "Levit", "MobileNetV", "MobileViT", "PoolFormer", "VideoMAE")


def from_transformers(entries: Entries) -> Preprocess:
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


def _resample(entries: Entries) -> str:
    number = entries.take("resample")
    if number is None:
        return "bilinear"
    if isinstance(number, bool) or not isinstance(number, int) or number not in _RESAMPLE:
        raise entries.wrong("resample", "a number of one of Pillow's filters, 0 to 5,")
    return _RESAMPLE[number]


def _resized(entries: Entries, kind: str) -> tuple[int | tuple[int, int] | str | None, tuple[int, int] | None]:
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


def _size(entries: Entries, kind: str, *, cropped: bool) -> int | tuple[int, int] | None:
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
    rest = [f"size.{short_key(key)}" for key in sides if key not in known]
    entries.notes += [f"{', '.join(rest)} not applied"] if rest else []
    return (sides["height"], sides["width"]) if "height" in known else sides["shortest_edge"]


def _crop(entries: Entries, size: int | tuple[int, int] | None) -> tuple[int, int] | None:
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
