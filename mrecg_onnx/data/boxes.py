"""Boxes of detection data in COCO's format: one JSON file for all images.

Of ``images`` the entries ``id``, ``file_name``, ``width`` and ``height`` are read, of ``annotations`` ``image_id``,
``category_id``, ``bbox`` (x, y, width and height in pixels of the image) and ``iscrowd``, of ``categories`` ``id``; all else is
dropped while the file is read, so that the outlines in it take no memory.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import numpy as np
import psutil

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.converters.files import require_regular
from mrecg_onnx.converters.text import bounded
from mrecg_onnx.data.annotated import Targets, by_name
from mrecg_onnx.data.entries import short

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mrecg_onnx.data.pixels import Geometry

__all__ = ["SUFFIX", "CocoBoxes", "names_boxes", "without_order"]

#: What files of boxes end in.
SUFFIX = ".json"
#: Said behind the name of the file: categories are counted from 0 in the order of their ids.
ORDER = ":order"
#: Bytes of a file at most; the training annotations of COCO 2017 take 470 million.
MOST = 512 * 10**6
#: Memory that reading takes, in sizes of the file: 6.3 were measured with 400,000 annotations.
_TIMES = 7
#: Largest coordinate and id.
_FAR, _MOST_ID = 1e7, 2**31 - 1
_READ = frozenset({
    "annotations", "bbox", "categories", "category_id", "file_name", "height", "id", "image_id", "images", "iscrowd", "width",
})  # fmt: skip


class _Image(NamedTuple):
    """An entry of an image."""

    name: Path
    size: tuple[int, int] | None
    boxes: list[tuple[float, ...]]
    """x, y, width, height, category, crowd"""


def names_boxes(path: Path) -> bool:
    """Whether a path is one of a file of boxes, with the word about its categories or without."""
    return path.name.removesuffix(ORDER).lower().endswith(SUFFIX)


def without_order(path: Path) -> Path:
    """The file that a path of labels names: the path without the word about categories."""
    named = path.name.removesuffix(ORDER)
    return path.with_name(named) if names_boxes(path) and named != path.name and not path.exists() else path


class CocoBoxes(Targets):
    """Boxes for image files: for each a dict of ``boxes`` [n, 4], ``labels`` [n] and ``iscrowd`` [n].

    Corners x0, y0, x1, y1 are in pixels of what the model is fed, cut off at its edges; what lies outside is left out.
    Labels are the category ids as they stand, or with ``:order`` behind the file's name the place of the id among all.

    Args:
        files: the images.
        root: the folder that they lie in.
        path: the JSON file.

    Raises:
        DataError: it cannot be read, is none of COCO's, or has no entry for a file.
    """

    def __init__(self, files: Sequence[Path], root: Path, path: Path) -> None:
        super().__init__(files)
        self._path = without_order(path)
        known = _images(_read(self._path), self._path, ordered=self._path != path)
        named = [(image.name, image) for image in known]
        self._images = by_name(
            files, root, named, "give it an entry in 'images', or take it out of the folder", self._path
        )

    def fingerprint(self) -> str:
        """As the base class has it."""
        found = hashlib.sha256()
        for place in self._places:
            image = self._images[place]
            found.update(np.array(image.boxes, np.float64).tobytes() + b"|")
        return found.hexdigest()

    def _made(self, place: int, geometry: Geometry) -> dict[str, NDArray[Any]]:
        image, file = self._images[place], self._files[place]
        if image.size is not None and image.size != geometry.size:
            (width, height), (said, high) = geometry.size, image.size
            raise DataError(
                f"{file} has {width}x{height} pixels, and {self._path} says {said}x{high}: give the images that were annotated"
            )
        rows = np.array(image.boxes, np.float64).reshape(-1, 6)
        corners = geometry.corners(rows[:, :4])
        left = (corners[:, 2:] > corners[:, :2]).all(axis=1)
        labels, crowd = rows[left, 4].astype(np.int64), rows[left, 5].astype(np.int64)
        return {"boxes": corners[left], "labels": labels, "iscrowd": crowd}


def _read(path: Path) -> dict[str, Any]:
    """The object in the file, without what is not used.

    Raises:
        DataError: it is none, or too large.
    """
    try:
        require_regular(path)
        size, free = path.stat().st_size, psutil.virtual_memory().available
        if size > MOST or _TIMES * size > free:
            raise DataError(
                f"{path} has {size:,} bytes, {min(MOST, free // _TIMES):,} are the most that is read here: leave out images that "
                "are not used, and outlines"
            )
        found = json.loads(path.read_text(encoding="utf-8-sig"), object_hook=_reduced)
    except OSError as error:
        raise DataError(f"cannot read labels {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"cannot read labels {path}: it is no JSON ({bounded(str(error), 80)})") from error
    if not isinstance(found, dict) or not {"images", "annotations"} <= set(found):
        raise DataError(
            f"{path} is no file of COCO's: an object with 'images' and 'annotations' is wanted, as pycocotools reads it"
        )
    return found


def _reduced(entries: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entries.items() if name in _READ}


def _entries(found: dict[str, Any], part: str, path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a list and what messages call them."""
    entries = found.get(part)
    if not isinstance(entries, list):
        raise DataError(f"{path}: {part} is {short(entries)}: a list of objects is expected")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise DataError(f"{path}: {part}[{number}] is {short(entry)}: an object is expected")
    return [(f"{path}: {part}[{number}]", entry) for number, entry in enumerate(entries)]


def _images(found: dict[str, Any], path: Path, *, ordered: bool) -> list[_Image]:
    """The images of a file with their boxes.

    Raises:
        DataError: an entry is not what it must be.
    """
    images: dict[Any, _Image] = {}
    names: set[Path] = set()
    for where, entry in _entries(found, "images", path):
        key, name = entry.get("id"), entry.get("file_name")
        if not _is_id(key) and not isinstance(key, str):
            raise _wrong(where, "id", key, "a whole number")
        if key in images:
            raise DataError(f"{where} has the id {short(key)} of an image before it: each needs its own")
        if not isinstance(name, str) or not name:
            raise _wrong(where, "file_name", name, "the name of the file below the folder of images")
        file = Path(PurePosixPath(name.replace("\\", "/")))
        if file in names:
            raise DataError(f"{where} names {short(name)}, as an image before it does: give each file one entry")
        names.add(file)
        images[key] = _Image(file, _size(entry, where), [])
    labels = _labels(found, path) if ordered else None
    for where, entry in _entries(found, "annotations", path):
        key, category = entry.get("image_id"), entry.get("category_id")
        image = images.get(key) if isinstance(key, int | str) else None
        if image is None:
            raise _wrong(where, "image_id", key, "the id of an entry in 'images'")
        if not _is_id(category):
            raise _wrong(where, "category_id", category, "a whole number from 0 on")
        if labels is not None and category not in labels:
            raise _wrong(where, "category_id", category, "the id of an entry in 'categories'")
        box, crowd = entry.get("bbox"), entry.get("iscrowd", 0)
        if not _is_box(box):
            raise _wrong(where, "bbox", box, "a list of x, y, width and height in pixels")
        if crowd not in (0, 1):
            raise _wrong(where, "iscrowd", crowd, "0 or 1")
        image.boxes.append((*map(float, box), category if labels is None else labels[category], int(crowd)))
    return list(images.values())


def _size(entry: dict[str, Any], where: str) -> tuple[int, int] | None:
    """Width and height, where an image says both."""
    sides = [(name, entry.get(name)) for name in ("width", "height")]
    for name, side in sides:
        if side is not None and not (_is_id(side) and side > 0):
            raise _wrong(where, name, side, "a whole number of pixels")
    (_, width), (_, height) = sides
    return None if width is None or height is None else (width, height)


def _labels(found: dict[str, Any], path: Path) -> dict[int, int]:
    """The place of every category among the ids."""
    ids = []
    for where, entry in _entries(found, "categories", path):
        if not _is_id(entry.get("id")):
            raise _wrong(where, "id", entry.get("id"), "a whole number from 0 on")
        ids.append(entry["id"])
    return {key: place for place, key in enumerate(sorted(set(ids)))}


def _is_id(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_ID


def _is_box(value: object) -> TypeGuard[list[float]]:
    """Four finite numbers, the last two of them sizes."""
    if not isinstance(value, list) or len(value) != 4:
        return False
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) and abs(x) <= _FAR for x in value)
    return numbers and min(value[2:]) >= 0


def _wrong(where: str, key: str, value: object, wanted: str) -> DataError:
    return DataError(f"{where}: {key} is {short(value)}: {wanted} is expected")
