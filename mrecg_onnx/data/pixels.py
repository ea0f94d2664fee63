"""One image file becomes pixels of the model's size: decoded, turned upright, in 8 bits, resized and cropped."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mrecg_onnx.data.decoding import MOST_PIXELS, SIDEWAYS, Room, decoding_bytes, orientation
from mrecg_onnx.data.preprocess import CROP_FRACTION, INTERPOLATIONS, NO_RESIZE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from mrecg_onnx.data.preprocess import Preprocess

__all__ = [
    "Geometry", "UnreadableError", "cover", "faults", "fit", "geometry", "geometry_of", "needed_bytes", "open_image", "pixels_of",
    "planes", "read_pixels",
]  # fmt: skip

#: Pillow's decoders for the suffixes looked for and for a .gif named by itself: it goes by content, and others start programs
#: (Ghostscript for EPS).
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
#: Pixels above which a JPEG is decoded at a part of its size where that is enough; smaller ones keep every bit that they had.
DRAFTED_PIXELS = 1 << 25
#: Pixels of 16 bits that are scaled at a time.
BAND_PIXELS = 1 << 20


def read_pixels(path: Path, preprocess: Preprocess, room: Room) -> NDArray[np.uint8]:
    """The image in the model's size and channel order: (height, width, channels) uint8; decoded where ``room`` has memory for it.

    Raises:
        UnreadableError: it gives no pixels.
    """
    with _opened(path, preprocess) as (opened, _, needed), room.take(needed):
        return _finished(opened, preprocess)


def open_image(path: Path) -> Image.Image:
    """The image in a file as it is, decoded.

    Raises:
        UnreadableError: it gives no pixels.
    """
    with faults(path), Image.open(path, formats=_FORMATS) as opened:
        return opened.copy()


def pixels_of(image: Image.Image, preprocess: Preprocess) -> NDArray[np.uint8]:
    """The same of an image that somebody opened or made; it is not changed.

    Raises:
        UnreadableError: it gives no pixels.
    """
    with faults():
        return _finished(image.copy(), preprocess)


def _finished(opened: Image.Image, preprocess: Preprocess) -> NDArray[np.uint8]:
    image = fit(_upright(opened, preprocess), preprocess)
    if len(preprocess.mean or ()) == 3:
        # Grey becomes three channels behind the resizing: the same, and a quarter of the work.
        image = image.convert("RGB")
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        return pixels[:, :, None]
    return pixels[:, :, ::-1] if preprocess.color == "bgr" else pixels


def planes(pixels: NDArray[np.uint8], table: NDArray[Any], layout: str) -> NDArray[Any]:
    """Pixels (height, width, channels) as numbers in the model's layout, each read from ``table`` (:meth:`Preprocess.table`)."""
    values = [table[channel][pixels[:, :, channel]] for channel in range(len(table))]
    return np.stack(values, axis=0 if layout == "nchw" else 2)


def needed_bytes(path: Path, preprocess: Preprocess) -> tuple[int, tuple[int, int]]:
    """Memory that decoding a file takes, and its width and height, of which only the header is read.

    Raises:
        UnreadableError: it is no image.
    """
    with _opened(path, preprocess) as (_, size, needed):
        return needed, size


@contextmanager
def _opened(path: Path, preprocess: Preprocess) -> Iterator[tuple[Image.Image, tuple[int, int], int]]:
    """The file with nothing decoded but its header, its size, and the bytes that the rest takes; faults as UnreadableError."""
    with faults(path), Image.open(path, formats=_FORMATS) as opened:
        full = opened.size
        if full[0] * full[1] > DRAFTED_PIXELS and opened.format in {"JPEG", "MPO"}:
            _draft(opened, preprocess)
        resized = _resized(*opened.size, preprocess)
        if resized != opened.size:
            _check_resized(opened, resized)
        yield opened, full, decoding_bytes(opened, full=full, resized=resized)


@contextmanager
def faults(path: Path | None = None) -> Iterator[None]:
    """What goes wrong with an image, as UnreadableError."""
    try:
        yield
    except (UnreadableError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        empty = path is not None and path.stat().st_size == 0
        raise UnreadableError("the file is empty" if empty else f"not an image ({', '.join(_FORMATS)})") from error
    except Image.DecompressionBombError as error:
        count = re.search(r"\d{9,}", str(error))
        pixels = f"{int(count[0]):,} pixels, more" if count else "more pixels"
        raise UnreadableError(f"{pixels} than the {MOST_PIXELS:,} that are decoded: make it smaller") from error
    except Exception as error:  # damaged bytes make Pillow's decoders raise nearly anything
        text = (getattr(error, "strerror", None) or str(error)).strip().splitlines()
        raise UnreadableError(text[0] if text else type(error).__name__) from error


def _draft(opened: Image.Image, preprocess: Preprocess) -> None:
    """Have a huge JPEG decoded at a half, a quarter or an eighth, by its own cosines, at twice the size wanted or more."""
    turned = orientation(opened) >= SIDEWAYS
    width, height = opened.size[::-1] if turned else opened.size
    wanted = _resized(width, height, preprocess)
    if wanted != (width, height):
        wanted = 2 * wanted[0], 2 * wanted[1]
        opened.draft(None, wanted[::-1] if turned else wanted)


def _upright(opened: Image.Image, preprocess: Preprocess) -> Image.Image:
    """The first frame, upright, as 'RGBA' with alpha, else as 'L' or 'RGB' as ``convert('RGB')`` and torchvision do."""
    ImageOps.exif_transpose(opened, in_place=True)  # decoded here; copies of a large image are what takes memory
    image: Image.Image = opened
    if preprocess.color == "rgba":
        has_alpha = image.mode in {"RGBA", "RGBa", "LA", "La", "PA"} or "transparency" in image.info
        if has_alpha and not image.mode.startswith("I"):
            return _as("RGBA", image)
        return _as("RGBA", _to_eight_bits(image))
    image = _to_eight_bits(image)
    return _as("L", image) if preprocess.color == "gray" else image


def _as(mode: str, image: Image.Image) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode in ("L", "1", "LA", "La"):
        return _as("L", image)
    if mode == "I" or mode.startswith("I;16"):
        return _scaled_to_eight_bits(image)
    if mode == "F":
        raise UnreadableError("floating-point pixels have no agreed range: save as 8 or 16 bits, or give an .npy file")
    if mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the palette's colours under its transparency, as for other images with alpha
    return _as("RGB", image)


def _scaled_to_eight_bits(image: Image.Image) -> Image.Image:
    """16 bits a pixel to 8, a band of rows at a time: Pillow's own convert() clips at 255 instead of scaling."""
    if image.mode == "I":  # Pillow has handed out 16-bit PNGs as this, too
        low, high = image.getextrema()
        if low < 0 or high > 65535:  # type: ignore[operator]
            raise UnreadableError(f"integer pixels from {low} to {high} do not fit 16 bits: save as 8 or 16 bits")
    scaled = Image.new("L", image.size)
    rows = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        wide = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height)))).astype(np.int64)
        scaled.paste(Image.fromarray(((wide + 128) // 257).astype(np.uint8)), (0, top))  # to nearest: 65535 / 257 = 255
    return scaled


_MAX_RESIZED_PIXELS = 1 << 27  # a 10x30000 strip scaled to a shorter side of 256 would be 200 million pixels


class UnreadableError(Exception):
    """Why one image file gives no pixels."""


@dataclass(frozen=True)
class Geometry:
    """Where the pixels of an image go: it is resized, and a window is cut out. Widths come first.

    Attributes:
        size: of the image, upright.
        resized: of the whole image behind the resizing.
        corner: of the window, upper left in the resized image; below 0 where the window is larger.
        crop: of the window.
    """

    size: tuple[int, int]
    resized: tuple[int, int]
    corner: tuple[int, int]
    crop: tuple[int, int]

    def corners(self, boxes: NDArray[Any]) -> NDArray[np.float64]:
        """Boxes ``[n, 4]`` of the image (x, y, width, height) as corners x0, y0, x1, y1 in the window, cut off at its edges."""
        x, y, width, height = np.asarray(boxes, np.float64).reshape(-1, 4).T
        found = np.stack([x, y, x + width, y + height], axis=1)
        for axis in range(2):
            moved = found[:, axis::2] * (self.resized[axis] / self.size[axis]) - self.corner[axis]
            found[:, axis::2] = np.clip(moved, 0, self.crop[axis])
        return found

    def sources(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """The row and the column of the image that rows and columns of the window are nearest to; -1 outside of it.

        Pillow says which: where two are as near, it takes the one that it takes of an image.
        """
        found = []
        for axis in (1, 0):
            places = np.arange(self.crop[axis]) + self.corner[axis]
            line = Image.fromarray(np.arange(self.size[axis], dtype=np.int32)[None])
            nearest = np.asarray(line.resize((self.resized[axis], 1), Image.Resampling.NEAREST))[0]
            inside = (places >= 0) & (places < self.resized[axis])
            found.append(np.where(inside, nearest[np.clip(places, 0, self.resized[axis] - 1)], -1))
        return found[0], found[1]


def geometry(size: tuple[int, int], preprocess: Preprocess) -> Geometry:
    """Where the pixels of an upright image of ``size`` (width, height) go by the resolved ``preprocess``."""
    assert preprocess.crop is not None
    crop = preprocess.crop[1], preprocess.crop[0]
    if preprocess.resize is None and size == crop:
        return Geometry(size, size, (0, 0), crop)
    resized = _resized(*size, preprocess)
    corner = _before(resized[0], crop[0]), _before(resized[1], crop[1])
    return Geometry(size, resized, corner, crop)


def geometry_of(path: Path, preprocess: Preprocess) -> Geometry:
    """Where the pixels of a file go, of which only the header is read.

    Raises:
        UnreadableError: it is no image.
    """
    with _opened(path, preprocess) as (opened, full, _):
        turned = orientation(opened) >= SIDEWAYS
        found = geometry(opened.size[::-1] if turned else opened.size, preprocess)
        return replace(found, size=full[::-1] if turned else full)  # of a huge JPEG a part of the pixels is decoded


def fit(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    """Resize and centre crop as the resolved ``preprocess`` says.

    Raises:
        UnreadableError: an image so long and thin that its resized form would not fit into memory.
    """
    places = geometry(image.size, preprocess)
    if places.resized != image.size:
        _check_resized(image, places.resized)
        image = image.resize(places.resized, INTERPOLATIONS[preprocess.interpolation or "bilinear"])
    if places.corner == (0, 0) and places.crop == image.size:
        return image
    (left, top), (width, height) = places.corner, places.crop
    return image.crop((left, top, left + width, top + height))


def _before(side: int, crop: int) -> int:
    """What a centre crop leaves in front of it, below 0 what is black there: rounded as torchvision's CenterCrop does."""
    return round((side - crop) / 2) if side >= crop else -((crop - side) // 2)


def _check_resized(image: Image.Image, size: tuple[int, int]) -> None:
    if size[0] * size[1] > _MAX_RESIZED_PIXELS:
        raise UnreadableError(f"too long and thin to resize: {image.width}x{image.height} pixels")


def _resized(width: int, height: int, preprocess: Preprocess) -> tuple[int, int]:
    """Width and height that an image of ``width`` by ``height`` is resized to before it is cropped."""
    resize, crop = preprocess.resize, preprocess.crop
    assert crop is not None
    if resize == NO_RESIZE:
        return width, height
    if isinstance(resize, tuple):
        return resize[1], resize[0]
    # The larger box only matters where the shorter side's rule leaves the crop uncovered: see cover.
    box = [max(int(resize), side) if resize is not None else round(side / CROP_FRACTION) for side in crop[::-1]]
    return cover(width, height, *box)


def cover(width: int, height: int, box_width: int, box_height: int) -> tuple[int, int]:
    """The smallest (width, height) of the same proportions that covers the box, rounded as torchvision's Resize does.

    For a square box that is "shorter side to the box's side". For a box max(resize, crop) it is the larger of
    "shorter side to resize" and "covers the crop", since the scale is max(box_width / width, box_height / height).
    """
    if width * box_height <= height * box_width:
        return box_width, max(box_height, int(box_width * height / width))
    return max(box_width, int(box_height * width / height)), box_height
