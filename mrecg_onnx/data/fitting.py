"""Whether an array is what an input takes, and the array in the input's type."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from mrecg_onnx.converters.errors import DataError, first_line
from mrecg_onnx.data.inputs import shape_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mrecg_onnx.data.inputs import InputSpec

__all__ = ["as_array", "cast", "family", "has_array", "rows_of"]


def has_array(value: object) -> bool:
    """Whether it is an array, a tensor, or another object that NumPy makes an array of."""
    return hasattr(value, "__array__")


def as_array(value: object, what: str) -> NDArray[Any]:
    """An array, or a tensor of any device and with or without a gradient, as NumPy has it; its memory is shared where it can be.

    Args:
        value: what :func:`has_array` is true of.
        what: how messages call it.

    Raises:
        DataError: NumPy makes no array of it, or one of Python objects.
    """
    torch = sys.modules.get("torch")  # whoever has a tensor has imported it
    try:
        if torch is not None and isinstance(value, torch.Tensor):
            plain = value.detach()
            plain = plain.to_dense() if plain.layout != torch.strided else plain
            # NumPy has no bfloat16; float32 holds each of its values.
            value = (plain.float() if plain.dtype == torch.bfloat16 else plain).cpu().resolve_conj().resolve_neg()
        array = np.asarray(value)
    except MemoryError:
        raise
    except Exception as error:  # each library raises its own
        raise DataError(f"{what} is a {type(value).__name__} that makes no array: {first_line(error)}") from error
    if array.dtype.hasobject:
        raise DataError(f"{what} holds Python objects, which are never taken: give an array of numbers of one shape")
    return array


def rows_of(array: NDArray[Any], spec: InputSpec, what: str) -> NDArray[Any]:
    """``array`` as a batch of the input, ``[rows, ...]``: it is one already, or one sample without the batch axis.

    Raises:
        DataError: it is neither, or of another kind of numbers.
    """
    wanted = spec.shape[1:]
    sample = array.ndim == len(wanted) and spec.shape
    whole = array[None] if sample else array
    if not spec.shape or whole.ndim != len(spec.shape) or not _fits(whole.shape[1:], wanted):
        raise DataError(
            f"{what} is {array.dtype} {shape_text(array.shape)}, and does not fit {spec}{_hint(whole, spec)}"
        )
    if family(array.dtype) != family(spec.dtype):
        pixels = array.dtype == np.uint8 and spec.dtype.kind == "f"
        more = " (PIL images and paths of images are preprocessed)" if pixels else ""
        raise DataError(
            f"{what} holds {array.dtype}, {spec} wants {spec.dtype}: arrays are fed as they are, make them ready for the "
            f"model{more}"
        )
    if not all(whole.shape):
        raise DataError(f"{what} is empty: its shape is {shape_text(array.shape)}")
    return whole


def _fits(have: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return all(size is None or size == there for there, size in zip(have, wanted, strict=True))


def _hint(whole: NDArray[Any], spec: InputSpec) -> str:
    """What is likely to be meant."""
    if whole.ndim != 4 or len(spec.shape) != 4:
        return ": the batch comes first, or there is none"
    size = whole.shape
    if _fits((size[3], size[1], size[2]), spec.shape[1:]):
        return ": its channels come last, bring them to axis 1"
    if _fits((size[2], size[3], size[1]), spec.shape[1:]):
        return ": its channels come first, bring them to axis 3"
    return ": the batch comes first, or there is none"


def family(dtype: np.dtype[Any]) -> str:
    """Dtypes that may be cast into each other: floats, integers; anything else only into itself."""
    return {"f": "float", "i": "integer", "u": "integer"}.get(dtype.kind, str(dtype))


def cast(rows: NDArray[Any], spec: InputSpec, numbers: NDArray[np.int64], place: tuple[str, str]) -> NDArray[Any]:
    """``rows`` in the input's type.

    Args:
        rows: a batch of the same family.
        spec: the input.
        numbers: where the rows are in what they were taken from, for messages.
        place: what one is called there, and where "there" is.

    Raises:
        DataError: NaN, an infinity, or a value that the type does not hold; the first row is named.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        made = rows.astype(spec.dtype)
    flat = made.reshape(len(made), -1)
    if made.dtype.kind == "f":
        good, fault = np.isfinite(flat).all(axis=1), f"NaN, Inf or a value too large for {spec.dtype}"
    else:
        good, fault = (flat == rows.reshape(flat.shape)).all(axis=1), f"a value out of the range of {spec.dtype}"
    if not good.all():
        raise DataError(f"{fault} in {place[0]} {numbers[~good][0]} for input '{spec.name}'{place[1]}")
    return made
