"""Class indices of validation images, from folder names or a CSV file."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.converters.files import require_regular

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["labels_for"]


def labels_for(
    files: Sequence[Path], root: Path, labels_csv: str | os.PathLike[str] | None = None
) -> NDArray[np.int64] | None:
    """The class index of each file: (len(files),) int64, or None if nothing tells.

    1. ``labels_csv`` given: rows of ``file,label``, the file relative to ``root`` or by its bare name, the label an
       integer of 0 or more. A header may name the two columns; rows about other files are ignored.
    2. All files directly in ``root``: None.
    3. All in folders: the folder directly below ``root`` counts. If the names of those with images are all numbers, the
       number is the class; otherwise all folders directly below ``root``, with images or not, are sorted by name and
       numbered from 0 (as torchvision's ``ImageFolder``).

    Raises:
        DataError: files both in folders and directly in ``root``; the CSV cannot be read, lacks a file, or contradicts
            itself.
    """
    relative = [file.relative_to(root) for file in files]
    if labels_csv is not None:
        return _labels_from_csv(relative, Path(labels_csv))
    loose = [file for file in relative if len(file.parts) == 1]
    if len(loose) == len(relative):
        return None
    if loose:
        raise DataError(
            f"{len(loose)} of {len(relative)} images lie in {root} itself (first {loose[0]}), not in a folder "
            "named by class: move them or give --labels"
        )
    folders = [file.parts[0] for file in relative]
    if all(name.isascii() and name.isdigit() for name in folders):
        return _int64([int(name) for name in folders], root)
    present = {entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    number = {name: index for index, name in enumerate(sorted(present | set(folders)))}
    return np.array([number[name] for name in folders], np.int64)


def _labels_from_csv(relative: Sequence[Path], csv_path: Path) -> NDArray[np.int64]:
    table = _csv_table(csv_path)
    shared = Counter(file.name for file in relative)
    labels = []
    for file in relative:
        label = table.get(file.as_posix())
        if label is None and file.name in table:
            if shared[file.name] > 1:
                raise DataError(
                    f"{csv_path} has '{file.name}', a name {shared[file.name]} images share: add the folder"
                )
            label = table[file.name]
        if label is None:
            raise DataError(f"no label for {file.as_posix()} in {csv_path}: add a line '{file.as_posix()},LABEL'")
        labels.append(label)
    return _int64(labels, csv_path)


def _csv_table(path: Path) -> dict[str, int]:
    try:
        require_regular(path)
        with path.open(newline="", encoding="utf-8-sig") as handle:
            rows = [(number, row) for number, row in enumerate(csv.reader(handle), 1) if any(row)]
    except OSError as error:
        raise DataError(f"cannot read labels {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read labels {path}: not a CSV file of file,label ({error})") from error
    file_column, label_column = 0, 1
    if rows and len(rows[0][1]) > 1 and _label(rows[0][1][1]) is None:  # a header
        names = [name.strip().lower() for name in rows.pop(0)[1]]
        if {"file", "label"} <= set(names):
            file_column, label_column = names.index("file"), names.index("label")
    table: dict[str, int] = {}
    for number, row in rows:
        cells = dict(enumerate(row))
        label = _label(cells.get(label_column, ""))
        if file_column not in cells or label is None:
            raise DataError(f"{path}, line {number}: expected file,label with an integer label, got {','.join(row)!r}")
        name = PurePosixPath(cells[file_column].strip().replace("\\", "/")).as_posix()
        if table.setdefault(name, label) != label:
            raise DataError(f"{path}, line {number}: two labels for {name}: {table[name]} and {label}")
    return table


def _label(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() else None


def _int64(labels: Sequence[int], source: Path) -> NDArray[np.int64]:
    if max(labels, default=0) > np.iinfo(np.int64).max:
        raise DataError(f"label {max(labels)} from {source} is no class index")
    return np.array(labels, np.int64)
