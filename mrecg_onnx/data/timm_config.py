"""Preprocessing as timm stores it (``config.json``): the evaluation transforms of a ``pretrained_cfg``."""

from __future__ import annotations

import math

from mrecg_onnx.data.entries import Entries, short
from mrecg_onnx.data.preprocess import INTERPOLATIONS, UNIT_SCALE, Preprocess

__all__ = ["from_timm"]

#: timm's share of the image that is kept where its configuration has none.
TIMM_CROP = 0.875


def from_timm(entries: Entries) -> Preprocess:
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
        entries.notes.append(f"crop_mode {short(mode)} not applied: images are cropped at the centre")
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


def _timm_size(entries: Entries) -> tuple[int, int] | None:
    size = entries.take("input_size")
    if size is None:
        return None
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) not in (2, 3):
        raise entries.wrong("input_size", "channels, height and width")
    height, width = (entries.side("input_size", side) for side in sides[-2:])
    return height, width
