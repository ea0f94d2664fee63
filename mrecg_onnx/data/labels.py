"""Class indices of validation data: from folder names or a CSV file for images, from an array of their own for arrays."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.converters.files import require_regular
from mrecg_onnx.converters.text import quoted
from mrecg_onnx.data.array_files import ArrayFile, RowReader
from mrecg_onnx.data.folders import ARRAY_SUFFIXES

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = ["LABEL_NAMES", "NO_LABELS", "check_classes", "labels_for", "labels_inside", "labels_of_rows"]

#: Said in place of a file: data are taken without labels, whatever folders and arrays are called.
NO_LABELS = "none"
#: Arrays of labels in an .npz beside those of the inputs, the first one that is there counts.
LABEL_NAMES = ("y", "labels", "label")
# Digits of a class index: Python converts longer numbers slowly, and from 4,300 on not at all.
_LONGEST_LABEL = 40


def check_classes(
    labels: NDArray[np.int64],
    classes: int,
    output: str,
    source: str,
    where: Callable[[int], str],
    *,
    handed: bool = False,
) -> None:
    """Refuse labels that the model has no class for.

    Args:
        labels: of all data, ``[N]``.
        classes: how many the model has.
        output: the output that scores them.
        source: where the labels come from.
        where: how messages call item ``i`` of the data.
        handed: they were handed over in Python.

    Raises:
        DataError: one is beyond the classes.
    """
    wrong = np.flatnonzero(labels >= classes)
    if len(wrong):
        first = int(wrong[0])
        one_based = int(labels.min()) == 1 and int(labels.max()) == classes
        counted = "they seem to count from 1: subtract 1, or " if one_based else ""
        others = "labels=..., or labels='none'" if handed else "--labels FILE, or --labels none"
        raise DataError(
            f"label {labels[first]} of {where(first)} is beyond the {classes} classes of output {output!r}, which count from 0 "
            f"({len(wrong)} of {len(labels)} are): {counted}give others with {others}; they are {source}"
        )


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
        if Path(labels_csv).suffix.lower() in ARRAY_SUFFIXES:
            raise DataError(
                f"{labels_csv} labels rows of arrays, {root} holds images: give a CSV of file,label, COCO's JSON or a folder of "
                "masks"
            )
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


def labels_inside(
    path: Path, inputs: Sequence[str], rows: int, *, classes: bool = True
) -> tuple[NDArray[Any], str] | None:
    """The labels that lie in an ``.npz`` beside the inputs, ``[rows]``, and where they are; None without.

    Args:
        path: the file, an ``.npy`` has none.
        inputs: names of the model's inputs, which no labels can have.
        rows: rows of the inputs in the file.
        classes: they have to be class indices; else any numbers ``[rows, ...]`` will do, which a metric knows what to do with.

    Raises:
        DataError: they are no labels of these rows.
    """
    if path.suffix.lower() != ".npz":
        return None
    file = ArrayFile(path, "labels ")
    there = file.names or []
    name = next((n for n in LABEL_NAMES if n in there and n not in inputs and len(there) > 1), None)
    if name is None:
        return None
    return _row_labels(file.array(name), rows, classes=classes), f"'{name}' in {path}"


def labels_of_rows(path: Path, rows: int, *, classes: bool = True) -> NDArray[Any]:
    """The labels of ``rows`` rows of arrays in a file of their own: ``.npy``, or ``.npz`` with one array or one called y.

    ``classes`` is as in :func:`labels_inside`.

    Raises:
        DataError: the file cannot be read, or holds no labels of these rows.
    """
    if path.suffix.lower() not in ARRAY_SUFFIXES:
        raise DataError(f"rows of arrays have no file names for {path} to label: give the labels as .npy, one a row")
    file = ArrayFile(path, "labels ")
    if file.names is None:
        return _row_labels(file.array(), rows, classes=classes)
    names = [n for n in LABEL_NAMES if n in file.names] or (file.names if len(file.names) == 1 else [])
    if not names:
        raise DataError(f"{path} holds {file.listed()}: call the labels {LABEL_NAMES[0]}")
    return _row_labels(file.array(names[0]), rows, classes=classes)


def _row_labels(array: RowReader, rows: int, *, classes: bool) -> NDArray[Any]:
    """``array`` as class indices, one for each of ``rows``; read once its header says that it may be that."""
    shape, where = array.shape, array.where
    if not classes:
        if not shape or array.dtype.kind not in "fiub":
            raise DataError(f"{where} are {array.dtype} {list(shape)}: numbers [rows, ...] are expected")
        if shape[0] != rows:
            raise DataError(f"{where} are {shape[0]} for {rows} rows: one a row is expected")
        return array.read(np.arange(rows))
    text = f"{array.dtype} ({', '.join(str(size) for size in shape)})"
    others = DataError(
        f"{where} are {text}: one whole number a row is expected, the class counted from 0; other targets need "
        "--metric, and --labels none leaves them out"
    )
    if len(shape) not in (1, 2) or shape[1:] not in ((), (1,)) or array.dtype.kind not in "iuf":
        raise others
    if shape[0] != rows:
        raise DataError(f"{where} are {shape[0]} for {rows} rows: one a row is expected")
    values = array.read(np.arange(rows)).reshape(rows)
    # numpy.loadtxt and tables of pandas have whole numbers as floats, which are classes, too.
    if array.dtype.kind == "f" and not (np.isfinite(values) & (values == np.floor(values))).all():
        raise others
    if len(values) and int(values.min()) < 0:
        raise DataError(f"label {values.min()} of {where} is no class: they count from 0")
    if len(values) and int(values.max()) > np.iinfo(np.int64).max:
        raise DataError(f"label {values.max()} of {where} is no class index")
    return np.array(values, np.int64)


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
            raise DataError(
                f"{path}, line {number}: expected file,label with an integer label, got {quoted(','.join(row))}"
            )
        name = PurePosixPath(cells[file_column].strip().replace("\\", "/")).as_posix()
        if table.setdefault(name, label) != label:
            raise DataError(f"{path}, line {number}: two labels for {name}: {table[name]} and {label}")
    return table


def _label(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _LONGEST_LABEL else None


def _int64(labels: Sequence[int], source: Path) -> NDArray[np.int64]:
    if max(labels, default=0) > np.iinfo(np.int64).max:
        raise DataError(f"label {max(labels)} from {source} is no class index")
    return np.array(labels, np.int64)
