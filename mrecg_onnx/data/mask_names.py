"""Which mask belongs to which image, where their names share what stands in front and end differently.

Cityscapes has ``x_leftImg8bit.png`` and ``x_gtFine_labelIds.png``, CamVid ``x.png`` and ``x_L.png``, others ``x.jpg`` and
``x_mask.png``.
"""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.converters.text import first_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["folder_and_ending", "named_as_images", "names_masks"]

logger = logging.getLogger(__name__)

#: An ending begins behind one of these, and has a letter: numbers tell images from each other.
_BEGINS = re.compile(r"(?=[_.-])")
_LETTER = re.compile(r"[^\W\d_]")
#: Stands between a folder and the ending of the masks in it that are meant.
_SAID = ":"


def folder_and_ending(path: Path) -> tuple[Path, str | None]:
    """The folder of masks that a path of labels names, and the ending that is said behind it; None without one."""
    if _is_folder(path):
        return path, None
    folder, said, ending = str(path).rpartition(_SAID)
    if not said or not folder or not ending or os.sep in ending or not _is_folder(folder):
        return path, None
    return Path(folder), ending.removesuffix(".png")


def names_masks(path: Path) -> bool:
    """Whether a path is one of a folder of masks, with an ending behind it or without."""
    return _is_folder(folder_and_ending(path)[0])


def named_as_images(
    stems: Sequence[Path], masks: Iterable[tuple[Path, Path]], ending: str | None, folder: Path
) -> list[tuple[Path, Path]]:
    """The masks that may be meant, under the names that their images would have.

    A mask has the name of its image. Where none has, one ending is looked for that makes the name of a mask out of the name of
    every image, or out of what is left of it without the last part that all images share (``_leftImg8bit``).

    Args:
        stems: the images without suffix, whose bare names count.
        masks: names relative to ``folder``, without suffix, and the files.
        ending: what the name of a mask ends in; None where it is not said.
        folder: of the masks, for messages.

    Raises:
        DataError: no mask ends in ``ending``, or there are masks of several endings for the images.
    """
    masks = list(masks)
    if ending is not None:
        masks = [(name, file) for name, file in masks if name.name.endswith(ending)]
        if not masks:
            raise DataError(f"{folder} has no mask whose name ends in {ending}.png")
    names = {stem.name for stem in stems}
    if ending is None and any(name.name in names for name, _ in masks):
        return masks
    shared = _shared_ending(names)
    for own in ("", shared) if shared else ("",):
        found = _endings({name.removesuffix(own) for name in names}, [name.name for name, _ in masks])
        fitting = [one for one in found if (one or own) and (ending is None or one.endswith(ending))]
        if len(fitting) > 1:
            raise DataError(
                f"{folder} has several masks for each image, which end in {first_of([f'{one}.png' for one in fitting])}: "
                f"say which, as in {folder}{_SAID}{fitting[0]}"
            )
        if fitting:
            (one,) = fitting
            logger.info(
                "masks in %s: their names end in %s.png where those of the images end in %s", folder, one, own or "none"
            )
            return [
                (name.with_name(name.name[: len(name.name) - len(one)] + own), file)
                for name, file in masks
                if name.name.endswith(one)
            ]
    return masks


def _is_folder(path: Path | str) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - false, too, of what is too long for a name


def _shared_ending(names: set[str]) -> str:
    """The last part of all names, where it is the same and has a letter; "" without."""
    last = {_BEGINS.split(name)[-1] for name in names} if len(names) > 1 else set()  # of one name any part would do
    (one,) = last if len(last) == 1 else ("",)
    return one if _LETTER.search(one) else ""


def _endings(bases: set[str], masks: Iterable[str]) -> list[str]:
    """What stands behind every one of ``bases`` in the name of some mask; where there is none, behind most of them."""
    behind: dict[str, set[str]] = defaultdict(set)
    for name in masks:
        for place in (*(found.start() for found in _BEGINS.finditer(name)), len(name)):
            one = name[place:]
            if name[:place] in bases and (not one or _LETTER.search(one)):
                behind[one].add(name[:place])
    most = max(map(len, behind.values()), default=0)
    return sorted(one for one, found in behind.items() if len(found) == most and 2 * most > len(bases))
