"""Masks of segmentation data: a folder with a PNG for each image, whose pixels are classes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.converters.text import first_of
from mrecg_onnx.data.annotated import Targets, by_name
from mrecg_onnx.data.dataset import digest
from mrecg_onnx.data.folders import find_files
from mrecg_onnx.data.mask_names import folder_and_ending, named_as_images
from mrecg_onnx.data.pixels import UnreadableError, faults

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mrecg_onnx.data.pixels import Geometry

__all__ = ["Masks"]

#: Pixels that the network sees and the image does not have: their class counts nowhere (:class:`mrecg_onnx.measures.MeanIoU`).
OUTSIDE = 255
#: How masks end.
_SUFFIX = ".png"
#: Pillow's modes whose values are classes: grey of 8 bits, places in a palette, one bit, 16 bits.
_MODES = frozenset({"L", "P", "1", "I", "I;16", "I;16B", "I;16L", "I;16N"})


class Masks(Targets):
    """Masks for image files, ``[height, width]`` each, of what the model is fed: resized to nearest, cropped as the image is.

    Args:
        files: the images.
        root: the folder that they lie in.
        path: the folder of the masks, searched as folders of images are, and behind it what their names end in, where masks
            of several kinds lie there (:mod:`mrecg_onnx.data.mask_names`).

    Raises:
        DataError: there are none, an image has none, or several might be meant.
    """

    def __init__(self, files: Sequence[Path], root: Path, path: Path) -> None:
        super().__init__(files)
        folder, ending = folder_and_ending(path)
        _, found = find_files(folder)
        others = [str(file) for file in found if file.suffix.lower() != _SUFFIX]
        if others and ending is None:
            raise DataError(f"masks are PNG files, and {folder} holds others: {first_of(others)}")
        # Neither side has its suffix: x.jpg has the mask x.png.
        masks = [(m.relative_to(folder).with_suffix(""), m) for m in found if m.suffix.lower() == _SUFFIX]
        stems = [file.with_suffix("") for file in files]
        named = named_as_images(stems, masks, ending, folder)
        missing = "each image needs a PNG of its name, or all one of the same ending behind it (docs/metrics.md)"
        self._masks = by_name(stems, root, named, missing, folder)

    def fingerprint(self) -> str:
        """As the base class has it: names and sizes of the files."""
        return digest([self._masks[place] for place in self._places], "")

    def _made(self, place: int, geometry: Geometry) -> NDArray[Any]:
        path = self._masks[place]
        try:
            values = _values(path, geometry.size)
        except UnreadableError as error:
            raise DataError(f"the mask {path} cannot be used: {error}") from error
        rows, columns = geometry.sources()
        found: NDArray[Any] = values[np.maximum(rows, 0)[:, None], np.maximum(columns, 0)]
        found[rows < 0] = OUTSIDE
        found[:, columns < 0] = OUTSIDE
        return found


def _values(path: Path, size: tuple[int, int]) -> NDArray[Any]:
    """The classes in a file: ``[height, width]`` uint8, or int32 of 16 bits; nothing is decoded that is of another size.

    Raises:
        UnreadableError: it is no mask of an image of ``size`` (width, height).
    """
    with faults(path), Image.open(path, formats=("PNG",)) as opened:
        if opened.size != size:
            (width, height), (wide, high) = opened.size, size
            raise UnreadableError(f"it has {width}x{height} pixels, its image {wide}x{high}: one size is wanted")
        if opened.mode not in _MODES:
            raise UnreadableError(
                f"its pixels are {opened.mode}: a class for each is wanted, as grey (L) or in a palette (P)"
            )
        return np.asarray(opened).astype(np.int32 if opened.mode.startswith("I") else np.uint8)
