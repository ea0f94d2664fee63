"""What ``labels`` may name beside images: a table of kinds, each recognised by its path and read by a function of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.converters.files import irregular, no_such
from mrecg_onnx.data.annotated import Targets
from mrecg_onnx.data.boxes import CocoBoxes, names_boxes, without_order
from mrecg_onnx.data.labels import labels_for
from mrecg_onnx.data.mask_names import folder_and_ending, names_masks
from mrecg_onnx.data.masks import Masks

__all__ = ["LabelFile", "read_labels", "require_labels"]

#: Class indices [N], or other targets, one for each file; None where nothing tells.
Read: TypeAlias = "NDArray[np.int64] | Targets | None"


class LabelFile(NamedTuple):
    """A kind of labels: what its path is recognised by, and who reads it for image files in a folder."""

    name: str
    recognised: Callable[[Path], bool]
    read: Callable[[Sequence[Path], Path, Path], Read]


#: The first one that recognises a path reads it.
LABEL_FILES: Sequence[LabelFile] = (
    LabelFile("a folder of masks", names_masks, Masks),
    LabelFile("boxes in COCO's JSON", names_boxes, CocoBoxes),
    LabelFile("a CSV of file,label", lambda _: True, labels_for),
)


def _labels_path(path: Path) -> Path:
    """The file or the folder that a path of labels names, without what is said behind it."""
    return folder_and_ending(without_order(path))[0]


def require_labels(path: Path) -> None:
    """Refuse a path where no labels can be, before anything that takes long: nothing is opened.

    Raises:
        DataError: nothing is there, or what is no file.
    """
    file = _labels_path(path)
    do, kind = "give a CSV of file,label, boxes in COCO's JSON, a folder of masks, or .npy for arrays", irregular(file)
    if kind is not None:
        raise DataError(f"labels {path}: is {kind}, no file; {do}")
    if not file.exists():
        raise DataError(f"labels {no_such(path, do, 'file or folder')}")


def read_labels(files: Sequence[Path], root: Path, path: Path | None) -> Read:
    """Labels for image ``files`` in ``root``: those at ``path``, else those that names of folders tell.

    Raises:
        DataError: they cannot be read, or are not of these files.
    """
    if path is None:
        return labels_for(files, root)
    return next(kind for kind in LABEL_FILES if kind.recognised(path)).read(files, root, path)
