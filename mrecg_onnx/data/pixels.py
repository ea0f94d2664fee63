"""One image file becomes pixels of the model's size: decoded, turned upright, in 8 bits, resized and cropped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mrecg_onnx.data.preprocess import CROP_FRACTION, INTERPOLATIONS, NO_RESIZE

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from mrecg_onnx.data.preprocess import Preprocess

__all__ = ["UnreadableError", "cover", "fit", "read_pixels"]

#: Pillow's decoders for the suffixes looked for and for a .gif named by itself: it goes by content, and others start programs
#: (Ghostscript for EPS).
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")


def read_pixels(path: Path, preprocess: Preprocess) -> NDArray[np.uint8]:
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


_MAX_RESIZED_PIXELS = 1 << 27  # a 10x30000 strip scaled to a shorter side of 256 would be 200 million pixels


class UnreadableError(Exception):
    """Why one image file gives no pixels."""


def fit(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    """Resize and centre crop as the resolved ``preprocess`` says.

    Raises:
        UnreadableError: an image so long and thin that its resized form would not fit into memory.
    """
    resize, crop = preprocess.resize, preprocess.crop
    assert crop is not None
    height, width = crop
    if resize is None and image.size == (width, height):
        return image
    if resize == NO_RESIZE:
        size = image.size
    elif isinstance(resize, tuple):
        size = resize[1], resize[0]
    else:
        # The larger box only matters where the shorter side's rule leaves the crop uncovered: see cover.
        box = [
            max(int(resize), side) if resize is not None else round(side / CROP_FRACTION) for side in (width, height)
        ]
        size = cover(image.width, image.height, *box)
    if size != image.size:
        if size[0] * size[1] > _MAX_RESIZED_PIXELS:
            raise UnreadableError(f"too long and thin to resize: {image.width}x{image.height} pixels")
        image = image.resize(size, INTERPOLATIONS[preprocess.interpolation or "bilinear"])
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
