"""How much memory decoding an image takes, known from its header, and room for it that all threads share."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MOST_PIXELS", "SIDEWAYS", "Room", "decoding_bytes", "orientation"]

#: Pixels of an image from which Pillow refuses it (a "decompression bomb").
MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)
#: Bytes that images take while they are decoded, all threads together, where nobody says how many there are: a larger image is
#: decoded alone.
SHARED = 256 << 20
#: Pillow's bytes a pixel; modes of several bands have four.
_STORED = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}
#: Bytes beside all that: a band of rows, and what the reduced image takes.
_SMALL = 8 << 20
#: Bytes a pixel of what images of a mode are turned into on the way to 8 bits of L or RGB; of others nothing is.
_TURNED = {"1": 1, "P": 4, "LA": 1, "La": 1, "PA": 4, "RGBA": 4, "RGBa": 8, "CMYK": 4, "YCbCr": 4, "LAB": 4, "HSV": 4}
#: What decoders hold beside the image, bytes a pixel: libwebp's canvases and their copy, a strip of a TIFF, a frame of a GIF.
_BESIDE = {"WEBP": 12, "TIFF": 4, "GIF": 4}
#: Coefficients of a progressive JPEG, which are kept whole: two bytes for each of three colours.
_COEFFICIENTS = 6
#: EXIF's orientation, and the values from which on height and width change places.
ORIENTATION, SIDEWAYS = 0x0112, 5


def decoding_bytes(
    image: Image.Image, *, full: tuple[int, int] | None = None, resized: tuple[int, int] | None = None
) -> int:
    """The most memory that decoding an open image and turning it into 8 bits takes, about.

    Args:
        image: just opened, nothing decoded.
        full: its size before it was asked for at a part of it (JPEG).
        resized: what it is resized to, columns first.
    """
    pixels = image.width * image.height
    stored = _STORED.get(image.mode, 4)
    turned = _TURNED.get(image.mode, 2 if stored == 2 or image.mode == "I" else 0)
    if image.mode == "P" and "transparency" in image.info:
        turned += 4
    if orientation(image) != 1:
        turned = max(turned, stored)
    needed = _SMALL + pixels * (stored + turned + _BESIDE.get(image.format or "", 0))
    if resized is not None:
        needed += max(stored, turned) * resized[0] * (resized[1] + image.height)
    if image.info.get("progressive") or image.info.get("progression"):
        width, height = full or image.size
        needed += width * height * _COEFFICIENTS
    return needed


def orientation(image: Image.Image) -> int:
    """EXIF's orientation of an open image, 1 where its header has none (that of a PNG may lie behind its pixels)."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    return int(image.getexif().get(ORIENTATION, 1))


class Room:
    """Memory for what is decoded at the same time.

    Args:
        most: bytes; what needs more waits until it is alone.
    """

    def __init__(self, most: int = SHARED) -> None:
        self.most = most
        self._used = 0
        self._changed = threading.Condition()

    @contextmanager
    def take(self, size: int) -> Iterator[None]:
        """Wait until there is room for ``size`` bytes, and hold them."""
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + size <= self.most)
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()
