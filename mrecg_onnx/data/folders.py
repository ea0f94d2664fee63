"""Which files of a folder are read: all images or all arrays below it, sorted, links followed, nothing hidden."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.converters.files import irregular, no_such
from mrecg_onnx.converters.kinds import ARRAY_SUFFIXES, IMAGE_SUFFIXES
from mrecg_onnx.converters.text import first_of

__all__ = ["ARRAY_SUFFIXES", "IMAGE_SUFFIXES", "find_files"]

logger = logging.getLogger(__name__)


def find_files(path: Path, *, say: bool = True) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the files: all images or all arrays; ``say`` what is skipped."""
    try:
        if path.is_dir():
            return path, _search(path, say=say)
        if path.is_file():
            return path.parent, [path]
    except OSError as error:
        raise DataError(f"cannot read {error.filename or path}: {error.strerror or error}") from error
    kind = irregular(path)
    if kind is not None:
        raise DataError(f"{path} is {kind}, no file: give a folder of images, an image, or an .npy or .npz file")
    raise DataError(no_such(path, "give a folder of images, an image, or an .npy or .npz file", "file or folder"))


def _search(root: Path, *, say: bool) -> list[Path]:
    everything = _walk(root)
    kinds = {file: irregular(file) for file in everything if file.suffix.lower() in IMAGE_SUFFIXES + ARRAY_SUFFIXES}
    odd = [f"{file} ({kind})" for file, kind in kinds.items() if kind is not None]
    if odd and say:
        logger.warning("skipped, no files: %s", first_of(odd))
    images = [file for file, kind in kinds.items() if kind is None and file.suffix.lower() in IMAGE_SUFFIXES]
    arrays = [file for file, kind in kinds.items() if kind is None and file.suffix.lower() in ARRAY_SUFFIXES]
    if images and arrays:
        raise DataError(
            f"{root} holds both images ({len(images)}) and arrays ({len(arrays)}, first {arrays[0].name}): "
            "keep one kind in the folder"
        )
    if not everything:
        raise DataError(f"the folder {root} is empty: give one with images")
    if not images and not arrays:
        raise DataError(
            f"no images in {root} or its subfolders ({len(everything)} other files): looked for "
            f"{' '.join(IMAGE_SUFFIXES + ARRAY_SUFFIXES)}"
        )
    return images or arrays


def _walk(root: Path) -> list[Path]:
    """All files below ``root`` sorted by path, following links once; names with a leading dot are left out.

    (macOS writes a '._x.jpg' that is no image beside every x.jpg on foreign disks.)
    """

    def stop(error: OSError) -> None:
        raise error

    found: list[Path] = []
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(root, onerror=stop, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back up
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(found, key=lambda file: file.relative_to(root).parts)
