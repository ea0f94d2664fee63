"""Ready inputs in ``.npy`` and ``.npz`` files, batch first, fed as they are."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.data.array_files import HELD, ArrayFile, Repeated, RowReader
from mrecg_onnx.data.choosing import pick
from mrecg_onnx.data.dataset import Dataset, digest
from mrecg_onnx.data.fitting import cast, family, misfit
from mrecg_onnx.data.inputs import is_one_for_all, shape_text, uneven_rows
from mrecg_onnx.data.labels import LABEL_NAMES, labels_inside, labels_of_rows
from mrecg_onnx.data.samples import class_indices

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mrecg_onnx.data.inputs import InputSpec

__all__ = ["ArrayDataset"]

#: Part of the memory for reading that members of archives may stay in, and of their rows that is worth it.
HOLDING = 4


class ArrayDataset(Dataset):
    """Rows of .npy and .npz files, one file after the other, the last one of which is open."""

    def __init__(self, inputs: Sequence[InputSpec], paths: Sequence[Path], samples: int | None, seed: int) -> None:
        super().__init__(inputs)
        self._paths = list(paths)
        self._hold, self._most = HELD, False
        self._held: tuple[int, dict[str, RowReader]] | None = None
        first = self._arrays(0)
        self._row_shapes = {name: array.shape[1:] for name, array in first.items()}
        rows = []
        for number, path in enumerate(self._paths):
            arrays = self._arrays(number)
            for name, array in arrays.items():
                if array.shape[1:] != self._row_shapes[name]:
                    raise DataError(
                        f"arrays for input '{name}' differ: {shape_text(array.shape)} in {path}, "
                        f"{shape_text(first[name].shape)} in {self._paths[0]}"
                    )
            rows.append(next(iter(arrays.values())).shape[0])
        self._ends = np.cumsum(rows)
        self.total = int(self._ends[-1])
        self._chosen = pick(self.total, samples, seed)
        self._most = len(self._chosen) * HOLDING >= self.total

    def __len__(self) -> int:
        return len(self._chosen)

    def label(
        self, given: Path | None, handed: Callable[[int, object], list[Any] | None], *, classes: bool = True
    ) -> None:
        """Take the labels of a file, those that were handed over, or those that lie beside the inputs in all files.

        Args:
            given: the file, None without.
            handed: gives those for so many rows of what messages call so; None without.
            classes: they have to be class indices; else any numbers will do.

        Raises:
            DataError: they are no labels of these rows, or lie in some of the files only.
        """
        total = int(self._ends[-1])
        targets = handed(total, self._paths[0]) if given is None else None
        if targets is not None:
            self.targets = [targets[i] for i in self._chosen]
            self.labels = class_indices(self.targets)
            return
        if given is not None:
            self._take(labels_of_rows(given, total, classes=classes), f"in {given}")
            return
        names, rows = [spec.name for spec in self.inputs], np.diff(self._ends, prepend=0).tolist()
        found = [
            labels_inside(path, names, count, classes=classes) for path, count in zip(self._paths, rows, strict=True)
        ]
        there = [one for one in found if one is not None]
        if not there:
            return
        if len(there) < len(found):
            without = self._paths[found.index(None)]
            raise DataError(f"{there[0][1]} are labels, and {without} has none: label all files, or say --labels none")
        if len({labels.shape[1:] for labels, _ in there}) > 1:
            raise DataError(f"{there[0][1]} are of another shape than those of other files")
        self._take(np.concatenate([labels for labels, _ in there]), there[0][1])

    def _take(self, values: NDArray[Any], source: str) -> None:
        """Take what lies in files for all rows: class indices, or other targets."""
        values, self.labels_source = values[self._chosen], source
        if values.ndim == 2 and values.shape[1] == 1 and values.dtype.kind in "iu":
            values = values[:, 0]
        if values.ndim == 1 and values.dtype.kind in "iu" and not (len(values) and int(values.min()) < 0):
            self.labels = values.astype(np.int64)
        else:
            self.targets = list(values)

    def _share(self, rank: int, size: int) -> Dataset:
        part = copy.copy(self)
        part._chosen = self._chosen[rank::size]  # noqa: SLF001 - its own class
        part.labels = self.labels[rank::size] if self.labels is not None else None
        return part

    def named(self, index: int) -> str:
        """As the base class has it."""
        position = int(self._chosen[index])
        number = int(np.searchsorted(self._ends, position, side="right"))
        return f"row {position - (int(self._ends[number - 1]) if number else 0)} in {self._paths[number]}"

    def decode_within(self, most: int) -> tuple[int, str]:
        """Hold members of archives in a quarter of ``most`` bytes; the largest need is that of a row."""
        self._hold, self._held = most // HOLDING // len(self.inputs), None
        largest, name = 0, ""
        for number, path in enumerate(self._paths):
            row = sum(array.nbytes // array.shape[0] for array in self._arrays(number).values())
            if row > largest:
                largest, name = row, f"{path} with {row:,} bytes a row"
        return largest, name

    def require_values(self) -> None:
        """As the base class has it."""
        self._look_at_all()

    def fingerprint(self) -> str:
        """Of the files and of the rows chosen."""
        return digest(self._paths, repr(self._chosen.tolist()))

    def _arrays(self, number: int) -> dict[str, RowReader]:
        if self._held is None or self._held[0] != number:
            self._held = None  # what it holds goes before more comes
            arrays = _open_arrays(self._paths[number], self.inputs)
            for array in arrays.values():
                array.hold = self._hold if self._most else min(self._hold, HELD)
            self._held = number, arrays
        return self._held[1]

    def _read(self, indices: Sequence[int]) -> tuple[dict[str, NDArray[Any]], list[int]]:
        kept = list(indices)
        positions = self._chosen[kept]
        numbers = np.searchsorted(self._ends, positions, side="right")
        out = {s.name: np.empty((len(kept), *self._row_shapes[s.name]), s.dtype) for s in self.inputs}
        for number in np.unique(numbers).tolist():
            mine = numbers == number
            start = int(self._ends[number - 1]) if number else 0
            arrays = self._arrays(number)
            for spec in self.inputs:
                rows = positions[mine] - start
                out[spec.name][mine] = cast(
                    arrays[spec.name].read(rows), spec, rows, ("row", f" in {self._paths[number]}")
                )
        return out, kept


def _open_arrays(path: Path, inputs: Sequence[InputSpec]) -> dict[str, RowReader]:
    """The arrays of one file by input name, checked against the inputs but not yet read."""
    file = ArrayFile(path)
    arrays = _name_lone_array(path, file, inputs) if file.names is None else _named_arrays(path, file, inputs)
    for spec in inputs:
        _check_fits(arrays[spec.name], spec, path)
    most = max(array.shape[0] for array in arrays.values())
    for spec in inputs:
        if most > 1 and is_one_for_all(arrays[spec.name].shape, spec):
            arrays[spec.name] = Repeated(arrays[spec.name], most)
    rows = {name: array.shape[0] for name, array in arrays.items()}
    if len(set(rows.values())) > 1:
        raise DataError(f"the arrays in {path} have {uneven_rows(rows)}")
    return arrays


def _name_lone_array(path: Path, file: ArrayFile, inputs: Sequence[InputSpec]) -> dict[str, RowReader]:
    if len(inputs) > 1:
        names = ", ".join(f"'{spec.name}'" for spec in inputs)
        raise DataError(f"{path} holds one array, the model has {len(inputs)} inputs ({names}): give an .npz by name")
    return {inputs[0].name: file.array()}


def _named_arrays(path: Path, file: ArrayFile, inputs: Sequence[InputSpec]) -> dict[str, RowReader]:
    there = file.names or []
    names = {spec.name for spec in inputs}
    data = [name for name in there if name in names or name not in LABEL_NAMES] or there
    if len(data) == len(inputs) == 1:
        return {inputs[0].name: file.array(data[0])}
    missing = [spec.name for spec in inputs if spec.name not in there]
    if missing:
        raise DataError(f"no array for input '{missing[0]}' in {path}: it holds {file.listed()}")
    return {spec.name: file.array(spec.name) for spec in inputs}


def _check_fits(array: RowReader, spec: InputSpec, path: Path) -> None:
    fits = len(array.shape) == len(spec.shape) > 0
    if fits:
        rest = zip(array.shape[1:], spec.shape[1:], strict=True)
        fits = all(wanted is None or have == wanted for have, wanted in rest)
    if not fits:
        raise DataError(
            f"the array {shape_text(array.shape)} in {path} does not fit {spec}: {misfit(array.shape, spec)}"
        )
    if not all(array.shape):
        raise DataError(f"the array {shape_text(array.shape)} for input '{spec.name}' in {path} is empty")
    if family(array.dtype) != family(spec.dtype):
        raise DataError(
            f"the array in {path} holds {array.dtype}, {spec} wants {spec.dtype}: "
            "arrays are fed as they are, save them ready for the model"
        )
