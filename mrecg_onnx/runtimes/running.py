"""Running an open session on any number of items, whatever batch the model fixes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from mrecg_onnx.converters.errors import DataError, ModelError, first_line
from mrecg_onnx.runtimes.sessions import ORT_ERRORS, fixed_batch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["BatchSource", "pad_batch", "run", "run_batches", "run_padded"]

Array = npt.NDArray[Any]


class BatchSource(Protocol):
    """What :func:`run_batches` needs of a data set."""

    def batches(self, size: int) -> Iterator[tuple[Mapping[str, Array], npt.NDArray[np.int64]]]:
        """Model inputs by name, each ``[n, ...]`` with ``n <= size``, and the indices of the ``n`` items."""
        ...


def run_padded(session: ort.InferenceSession, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run ``n`` items, also through a model whose batch is fixed at another size.

    A short batch is filled up with copies of its last item, as any other filling could raise NaN where the items do
    not, and what the copies gave is cut off; a long one is run piece by piece.

    Args:
        session: An open session whose inputs and outputs all have the batch as their first axis.
        feeds: Inputs by name, each ``[n, ...]`` with the same ``n >= 1``.

    Returns:
        Outputs by name, each ``[n, ...]``, in the order of the graph's outputs.

    Raises:
        ModelError: ONNX Runtime fails on the inputs, or an output does not have one row per item.
    """
    n = len(next(iter(feeds.values())))
    size = fixed_batch(session) or n
    pieces = [
        _run_rows(session, {name: pad_batch(x[start : start + size], size) for name, x in feeds.items()}, size)
        for start in range(0, n, size)
    ]
    return {name: np.concatenate([piece[name] for piece in pieces])[:n] for name in pieces[0]}


def pad_batch(array: Array, size: int) -> Array:
    """``array`` with its last row repeated until it has ``size`` rows, for models with a fixed batch.

    Raises:
        ValueError: it is empty or longer than ``size`` already.
    """
    if not 1 <= len(array) <= size:
        raise ValueError(f"cannot pad {len(array)} rows to {size}")
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])


def run_batches(session: ort.InferenceSession, dataset: BatchSource, batch_size: int) -> dict[str, Array]:
    """Run a whole data set and keep every output.

    Args:
        session: An open session, of dynamic or fixed batch (see :func:`run_padded`).
        dataset: Where the inputs come from.
        batch_size: Items at a time, >= 1.

    Returns:
        Outputs by name, each ``[N, ...]`` in the order of the data set.

    Raises:
        ModelError: As :func:`run_padded`.
        DataError: The data set is empty.
    """
    parts = [run_padded(session, feeds) for feeds, _ in dataset.batches(batch_size)]
    if not parts:
        raise DataError("the data set holds nothing to run")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def run(session: ort.InferenceSession, feeds: Mapping[str, Array]) -> list[Array]:
    """Run ``feeds`` as they are: the outputs in the graph's order.

    Raises:
        ModelError: ONNX Runtime fails on the inputs; their shapes are in the message.
    """
    try:
        results: list[Array] = session.run(None, dict(feeds))
    except ORT_ERRORS as error:
        shapes = ", ".join(f"{name} {list(x.shape)} {x.dtype}" for name, x in feeds.items())
        raise ModelError(f"ONNX Runtime cannot run the model on {shapes}: {first_line(error)}") from error
    return results


def _run_rows(session: ort.InferenceSession, feeds: Mapping[str, Array], rows: int) -> dict[str, Array]:
    outputs = dict(zip((output.name for output in session.get_outputs()), run(session, feeds), strict=True))
    for name, y in outputs.items():
        if not isinstance(y, np.ndarray) or y.ndim == 0 or len(y) != rows:
            shape = list(y.shape) if isinstance(y, np.ndarray) else type(y).__name__
            raise ModelError(f"output {name!r} is {shape} for {rows} items: its first axis has to be the batch")
    return outputs
