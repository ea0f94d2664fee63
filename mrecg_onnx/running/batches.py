"""Running an open session on any number of items, whatever batch the model fixes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from mrecg_onnx.converters.deadline import run_limited
from mrecg_onnx.converters.errors import ModelError, first_line
from mrecg_onnx.running.sessions import ORT_ERRORS, fixed_batch

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["pad_batch", "run", "run_outputs", "run_padded"]

Array = npt.NDArray[Any]


def run_padded(session: ort.InferenceSession, feeds: Mapping[str, Array], *, several: bool = False) -> dict[str, Array]:
    """Run ``n`` items, also through a model whose batch is fixed at another size.

    A short batch is filled up with copies of its last item, as any other filling could raise NaN where the items do
    not, and what the copies gave is cut off; a long one is run piece by piece.

    Args:
        session: An open session whose inputs and outputs all have the batch as their first axis.
        feeds: Inputs by name, each ``[n, ...]`` with the same ``n >= 1``.
        several: An output may have other rows than items, as tensors inside a network have that are looked at: windows of an
            image, or, where it runs image by image, channels. They are those of one piece after the other.

    Returns:
        Outputs by name, each ``[n, ...]``, in the order of the graph's outputs.

    Raises:
        ModelError: ONNX Runtime fails on the inputs, or an output does not have one row per item.
    """
    n = len(next(iter(feeds.values())))
    size = fixed_batch(session) or n
    pieces = [
        _run_rows(session, {name: pad_batch(x[start : start + size], size) for name, x in feeds.items()}, size, several)
        for start in range(0, n, size)
    ]
    if several and len(pieces) == 1 and n == size:
        return pieces[0]
    return {
        name: np.concatenate([piece[name] for piece in pieces])[: n * (len(y) // size)] for name, y in pieces[0].items()
    }


def pad_batch(array: Array, size: int) -> Array:
    """``array`` with its last row repeated until it has ``size`` rows, for models with a fixed batch.

    Raises:
        ValueError: it is empty or longer than ``size`` already.
    """
    if not 1 <= len(array) <= size:
        raise ValueError(f"cannot pad {len(array)} rows to {size}")
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])


def run(session: ort.InferenceSession, feeds: Mapping[str, Array]) -> list[Array]:
    """Run ``feeds`` as they are: the outputs in the graph's order.

    Raises:
        ModelError: ONNX Runtime fails on the inputs; their shapes are in the message.
        TimeLimitError: it takes too long (:mod:`mrecg_onnx.converters.deadline`).
    """
    try:
        results: list[Array] = run_limited(session, None, feeds, "a run of the model")
    except ORT_ERRORS as error:
        shapes = ", ".join(f"{name} {list(x.shape)} {x.dtype}" for name, x in feeds.items())
        raise ModelError(f"ONNX Runtime cannot run the model on {shapes}: {first_line(error)}") from error
    return results


def run_outputs(session: ort.InferenceSession, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run ``feeds`` as they are: outputs by name, whatever their first axis is.

    Raises:
        ModelError: as :func:`run`.
    """
    return dict(zip((output.name for output in session.get_outputs()), run(session, feeds), strict=True))


def _run_rows(session: ort.InferenceSession, feeds: Mapping[str, Array], rows: int, several: bool) -> dict[str, Array]:
    outputs = run_outputs(session, feeds)
    for name, y in outputs.items():
        if not isinstance(y, np.ndarray) or y.ndim == 0 or (len(y) != rows and not several):
            shape = list(y.shape) if isinstance(y, np.ndarray) else type(y).__name__
            raise ModelError(f"output {name!r} is {shape} for {rows} items: its first axis has to be the batch")
    return outputs
