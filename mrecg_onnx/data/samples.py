"""One item of data handed over in Python, as rows of the model's inputs and their targets.

An item is a sample or a batch: an array without or with the batch axis tells by itself which. Arrays are fed as they are; PIL
images and paths of images are preprocessed as files in a folder are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.converters.text import bounded, first_of, quoted, with_article
from mrecg_onnx.data.decoding import Room
from mrecg_onnx.data.fitting import as_array, cast, has_array, on_cpu, rows_of
from mrecg_onnx.data.inputs import is_one_for_all, shape_text, uneven_rows
from mrecg_onnx.data.labels import LABEL_NAMES
from mrecg_onnx.data.pixels import UnreadableError, open_image, pixels_of, planes, read_pixels
from mrecg_onnx.data.sources import image_like, parts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mrecg_onnx.data.inputs import InputSpec
    from mrecg_onnx.data.preprocess import Preprocess

__all__ = ["Rows", "Sampler", "as_classes", "by_input", "class_indices", "no_classes", "target_in", "targets_of"]


@dataclass(frozen=True)
class Rows:
    """What an item holds.

    Attributes:
        inputs: by name, ``[rows, ...]`` in the input's type.
        targets: one for each row, None without.
        count: rows.
    """

    inputs: dict[str, NDArray[Any]]
    targets: list[Any] | None
    count: int


class Sampler:
    """Makes rows of items.

    Args:
        inputs: the model's inputs.
        preprocess: what is done to images, resolved for the model; None where the items are arrays.
        called: what messages call the data.
        classes: targets are to be classes: whole numbers that came as floats are some (:func:`as_classes`).
    """

    def __init__(
        self, inputs: Sequence[InputSpec], preprocess: Preprocess | None, called: str, *, classes: bool = False
    ) -> None:
        self.inputs, self.preprocess, self.called, self.classes = tuple(inputs), preprocess, called, classes
        self._table = preprocess.table(inputs[0].dtype) if preprocess is not None else None
        self._room = Room()
        self._shapes: dict[str, tuple[int, ...]] = {}

    def take(self, item: Any, number: int) -> Rows:
        """Rows of an item, of which ``number`` samples came before.

        Raises:
            DataError: it is not what the model is fed, or its size is not that of the samples before it.
        """
        what = f"sample {number} of {self.called}"
        value, target = parts(item)
        if isinstance(item, tuple) and len(item) > 2:
            raise DataError(f"{what} is a tuple of {len(item)}: give inputs, or a pair (inputs, target)")
        if isinstance(value, Mapping):
            if target is None:
                target = target_in(value, self.inputs)
            found = by_input(value, self.inputs, what)
        elif len(self.inputs) > 1:
            names = ", ".join(quoted(spec.name) for spec in self.inputs)
            raise DataError(
                f"{what} is one {type(value).__name__}, the model has {len(self.inputs)} inputs ({names}): give a dict"
            )
        else:
            found = {self.inputs[0].name: value}
        made = {spec.name: self._rows(found[spec.name], spec, what, number) for spec in self.inputs}
        most = max(map(len, made.values()))
        for spec in self.inputs:
            if is_one_for_all(made[spec.name].shape, spec):
                made[spec.name] = np.repeat(made[spec.name], most, axis=0)
        counts = {name: len(rows) for name, rows in made.items()}
        count = next(iter(counts.values()))
        if len(set(counts.values())) > 1:
            raise DataError(f"{what}: its inputs have {uneven_rows(counts)}")
        self._check_sizes(made, what)
        targets = targets_of(target, count, what, batch=_is_batch(found, made, self.inputs))
        return Rows(made, as_classes(targets) if self.classes else targets, count)

    def images(self, item: Any, number: int) -> list[tuple[Image.Image, Any]]:
        """The images of an item, of which ``number`` samples came before, with their targets; nothing is done to them.

        Raises:
            DataError: it has none, or one cannot be opened.
        """
        what = f"sample {number} of {self.called}"
        value, target = parts(item)
        if isinstance(value, Mapping):
            target = target_in(value, self.inputs) if target is None else target
            value = by_input(value, self.inputs, what)[self.inputs[0].name]
        several = isinstance(value, list | tuple)
        found = []
        for one in value if several else [value]:
            if not image_like(one):
                raise DataError(
                    f"{what} is {with_article(type(one).__name__)}, those before it are images: keep to one kind"
                )
            try:
                found.append(one if isinstance(one, Image.Image) else open_image(Path(os.fspath(one))))
            except UnreadableError as error:
                raise DataError(f"{what}, {one}, cannot be read: {error}") from error
        targets = targets_of(target, len(found), what, batch=several)
        return list(zip(found, targets or [None] * len(found), strict=True))

    def _rows(self, value: Any, spec: InputSpec, what: str, number: int) -> NDArray[Any]:
        if isinstance(value, list | tuple) and value and (image_like(value[0]) or has_array(value[0])):
            if len({np.shape(one) for one in value if has_array(one)}) > 1:
                raise DataError(f"{what} is a list of arrays of different shapes: all must have one")
            return np.concatenate([self._rows(one, spec, what, number + i) for i, one in enumerate(value)])
        if image_like(value):
            return self._pixels(value, what)
        if self._table is not None:
            raise DataError(
                f"{what} is {with_article(type(value).__name__)}, those before it are images: keep to one kind"
            )
        if isinstance(value, list | tuple | int | float):
            value = _numbers(value, what)
        if not has_array(value):
            raise DataError(
                f"{what} is {with_article(type(value).__name__)}: an array, a tensor, a PIL image, a path, a dict of these by "
                "input name, or a pair of one of them and a target is expected"
            )
        rows = rows_of(as_array(value, what), spec, what)
        return cast(rows, spec, np.arange(number, number + len(rows)), ("sample", f" of {self.called}"))

    def _pixels(self, image: Any, what: str) -> NDArray[Any]:
        """An image as the model takes it, a batch of one."""
        if self._table is None or self.preprocess is None:
            raise DataError(f"{what} is an image, those before it are arrays: keep to one kind")
        try:
            if isinstance(image, Image.Image):
                pixels = pixels_of(image, self.preprocess)
            else:
                path = Path(os.fspath(image))
                what = f"{what}, {path},"
                pixels = read_pixels(path, self.preprocess, self._room)
        except UnreadableError as error:
            raise DataError(f"{what} cannot be read: {error}") from error
        return planes(pixels, self._table, self.preprocess.layout)[None]

    def _check_sizes(self, made: Mapping[str, NDArray[Any]], what: str) -> None:
        for name, rows in made.items():
            first = self._shapes.setdefault(name, rows.shape[1:])
            if first != rows.shape[1:]:
                raise DataError(
                    f"{what} is {shape_text(rows.shape[1:])} for input {quoted(name)}, those before it {shape_text(first)}: all "
                    "must have one size"
                )


def _numbers(value: Any, what: str) -> NDArray[Any]:
    """Nested lists of plain numbers, as data sets on disk hand them out."""
    try:
        return np.asarray(value)
    except ValueError as error:
        raise DataError(f"{what} is a list of lists of different lengths: all must have one") from error


def by_input(values: Mapping[str, Any], inputs: Sequence[InputSpec], what: str) -> dict[str, Any]:
    """What a dict holds for each input, by its name; for a lone input the one entry that is no label, or the one image, does.

    Raises:
        DataError: an input has none.
    """
    names = {spec.name for spec in inputs}
    if names <= set(values):
        return {name: values[name] for name in names}
    if len(inputs) == 1:
        others = {name: value for name, value in values.items() if name not in LABEL_NAMES}
        images = [value for value in others.values() if isinstance(value, Image.Image)]
        for chosen in (list(others.values()), images):
            if len(chosen) == 1:
                return {inputs[0].name: chosen[0]}
    missing = next(spec.name for spec in inputs if spec.name not in values)
    there = first_of([quoted(str(name)) for name in values], 8) or "nothing"
    raise DataError(
        f"{what} has nothing for input {quoted(missing)}: it holds {there}; give a dict by input name, or the one column"
    )


def target_in(values: Mapping[str, Any], inputs: Sequence[InputSpec]) -> Any:
    """The label that lies beside the inputs in a dict, as in an .npz; None without."""
    names = {spec.name for spec in inputs}
    found = next((name for name in LABEL_NAMES if name in values and name not in names and len(values) > 1), None)
    return None if found is None else values[found]


def _is_batch(found: Mapping[str, Any], made: Mapping[str, NDArray[Any]], inputs: Sequence[InputSpec]) -> bool:
    """Whether an item is a batch, also one of a single row."""
    name = inputs[0].name
    value = found[name]
    if isinstance(value, list | tuple):
        return image_like(value[0]) or has_array(value[0]) or np.ndim(value) == made[name].ndim
    return not image_like(value) and np.ndim(value) == made[name].ndim


def targets_of(target: Any, count: int, what: str, *, batch: bool, whole: bool = False) -> list[Any] | None:
    """One target for each of ``count`` rows.

    Args:
        target: of a sample, or of all rows of a batch: an array, a sequence, or a dict of either.
        count: rows.
        what: how messages call them.
        batch: they are a batch.
        whole: they are all samples, and the targets those that were handed over for them.

    Raises:
        DataError: there are more or fewer.
    """
    if target is None:
        return None
    if has_array(target):
        target = as_array(target, f"the target of {what}")
    if not batch:
        return [_on_cpu(target, f"the target of {what}")]
    if isinstance(target, Mapping):
        columns = {name: targets_of(values, count, what, batch=True, whole=whole) for name, values in target.items()}
        return [{name: values[i] for name, values in columns.items() if values is not None} for i in range(count)]
    several = (
        target.ndim > 0
        if isinstance(target, np.ndarray)
        else isinstance(target, Sequence) and not isinstance(target, str)
    )
    if not several and count == 1:
        return [target]
    if not several or len(target) != count:
        if whole:
            given = len(target) if several else 1
            raise DataError(
                f"{what} has {count} sample{'s' * (count != 1)} and {given} label{'s' * (given != 1)}: give one for each, as "
                "(inputs, labels), a list of pairs (input, label), or labels="
            )
        there = f"{len(target)} targets" if several else "one target"
        raise DataError(f"{what} and those after it are a batch of {count} with {there}: give one for each")
    return list(target)


def _on_cpu(target: Any, what: str) -> Any:
    """A target of one's own kind with its tensors on the CPU."""
    if isinstance(target, Mapping):
        return {name: _on_cpu(value, what) for name, value in target.items()}
    if type(target) in (list, tuple):
        return type(target)(_on_cpu(value, what) for value in target)
    return on_cpu(target, what)


def as_classes(targets: list[Any] | None) -> list[Any] | None:
    """Targets that are whole numbers as integers, also where all came as floats: numpy.loadtxt and pandas have those."""
    if targets is None or not all(isinstance(_lone(target), float | np.floating) for target in targets):
        return targets
    values = [float(_lone(target)) for target in targets]
    return [int(value) for value in values] if all(map(float.is_integer, values)) else targets


def no_classes(targets: Sequence[Any], called: str) -> str:
    """What is said where the targets of what is ``called`` so are no classes."""
    odd = next((one for target in targets if class_indices([one := _lone(target)]) is None), None)
    odd = odd.item() if isinstance(odd, np.generic) else odd
    such = f", such as {bounded(repr(odd), 40)}" if isinstance(odd, str | float | bool) else ""
    return f"the targets of {called} are no classes (whole numbers from 0){such}: there is no accuracy; a metric counts them"


def _lone(target: Any) -> Any:
    """A target, the number in it where it is an array of one."""
    return target.reshape(-1)[0] if isinstance(target, np.ndarray) and target.size == 1 else target


def class_indices(targets: Sequence[Any], first: int = 0) -> NDArray[np.int64] | None:
    """Targets as classes, counted from 0; None where one is something else than a whole number.

    Raises:
        DataError: one is negative; ``first`` samples came before.
    """
    found = []
    for number, target in enumerate(targets):
        value = _lone(target)
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
            return None
        if not 0 <= int(value) <= np.iinfo(np.int64).max:
            raise DataError(
                f"label {value} of sample {first + number} is no class: they count from 0; labels='none' takes data without"
            )
        found.append(int(value))
    return np.array(found, np.int64)
