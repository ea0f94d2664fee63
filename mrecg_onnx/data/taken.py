"""Whether a model takes the integers in data: indices into its tables may lie beyond them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mrecg_onnx.converters.errors import DataError, ModelError, first_line
from mrecg_onnx.converters.text import bounded

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mrecg_onnx.data.inputs import InputSpec

    Arrays = Mapping[str, NDArray[Any]]

__all__ = ["require_taken"]

#: What ONNX Runtime says in front of the reason, and where in its source that is.
_STATUS, _SOURCE = "Status Message: ", re.compile(r"^\S+\.(cc|h|cpp):\d+ ")


def require_taken(
    run: Callable[[dict[str, NDArray[Any]]], object],
    inputs: Sequence[InputSpec],
    named: Callable[[int], str],
    model: str,
    batches: Iterable[tuple[Arrays, NDArray[np.int64]]],
) -> None:
    """Refuse integers that a model fails on: the samples that hold the smallest and the largest are run.

    Bytes are not looked at, which are pixels. Where the model fails on zeros, too, it is not the data.

    Args:
        run: runs inputs ``[N, ...]`` by name; what fails there is a ModelError.
        inputs: the model's inputs.
        named: says where a sample lies.
        model: how messages call the model.
        batches: inputs and where their samples lie.

    Raises:
        DataError: the model fails on a sample, which is named.
    """
    integers = [spec for spec in inputs if spec.dtype.kind in "iu" and spec.dtype.itemsize > 1]
    if not integers:
        return
    rows = _extremes(batches, integers)
    size = next((spec.shape[0] for spec in inputs if spec.shape and spec.shape[0]), None)
    if size is None and rows and _fault(run, _joined(list(rows.values()))) is None:
        return
    for index, row in rows.items():
        feeds = {name: np.repeat(array, size or 1, axis=0) for name, array in row.items()}
        error = _fault(run, feeds)
        if error is None:
            continue
        if _fault(run, feeds | {spec.name: np.zeros_like(feeds[spec.name]) for spec in integers}) is not None:
            return
        raise DataError(
            f"{model} fails on {named(index)}: {_reason(error)}; give values that the model takes"
        ) from error


def _fault(run: Callable[[dict[str, NDArray[Any]]], object], feeds: dict[str, NDArray[Any]]) -> ModelError | None:
    try:
        run(feeds)
    except ModelError as error:
        return error
    return None


def _joined(rows: Sequence[Arrays]) -> dict[str, NDArray[Any]]:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _extremes(
    batches: Iterable[tuple[Arrays, NDArray[np.int64]]], integers: Iterable[InputSpec]
) -> dict[int, dict[str, NDArray[Any]]]:
    """Samples with the smallest and the largest value of each input, by where they lie in the data."""
    found: dict[tuple[str, bool], tuple[int, int, dict[str, NDArray[Any]]]] = {}
    for inputs, indices in batches:
        for spec in integers:
            flat = inputs[spec.name].reshape(len(indices), -1)
            if not flat.size:
                continue
            for key, row in (
                ((spec.name, False), int(flat.min(1).argmin())),
                ((spec.name, True), int(flat.max(1).argmax())),
            ):
                value = int(flat[row].max() if key[1] else -int(flat[row].min()))
                if key not in found or value > found[key][0]:
                    sample = {name: array[row : row + 1].copy() for name, array in inputs.items()}
                    found[key] = value, int(indices[row]), sample
    return {index: sample for _, index, sample in sorted(found.values(), key=lambda one: one[1])}


def _reason(error: ModelError) -> str:
    """What ONNX Runtime says, without codes and names of its source."""
    said = first_line(error.__cause__ or error)
    return bounded(_SOURCE.sub("", said.rpartition(_STATUS)[2]).strip(), 160)
