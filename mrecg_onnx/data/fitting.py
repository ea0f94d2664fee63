"""Whether an array is what an input takes, and the array in the input's type."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from mrecg_onnx.converters.errors import DataError, first_line
from mrecg_onnx.converters.text import with_article
from mrecg_onnx.data.inputs import shape_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mrecg_onnx.data.inputs import InputSpec

__all__ = ["as_array", "cast", "family", "fits", "has_array", "misfit", "on_cpu", "rows_of"]


def has_array(value: object) -> bool:
    """Whether it is an array, a tensor, or another object that NumPy makes an array of."""
    return hasattr(value, "__array__")


def on_cpu(value: Any, what: str) -> Any:
    """A tensor of torch without its gradient, on the CPU; anything else as it is.

    Raises:
        DataError: it holds no numbers, or they cannot be fetched.
    """
    torch = sys.modules.get("torch")  # whoever has a tensor has imported it
    if torch is None or not isinstance(value, torch.Tensor):
        return value
    if value.device.type == "meta":
        raise DataError(f"{what} is a tensor on the device meta, which holds no numbers: give one with values")
    try:
        return value.detach().cpu()
    except (MemoryError, DataError):
        raise
    except Exception as error:  # each device raises its own
        raise DataError(f"{what} is a tensor on {value.device} that cannot be fetched: {first_line(error)}") from error


def as_array(value: object, what: str) -> NDArray[Any]:
    """An array, or a tensor of any device and with or without a gradient, as NumPy has it; its memory is shared where it can be.

    Args:
        value: what :func:`has_array` is true of.
        what: how messages call it.

    Raises:
        DataError: NumPy makes no array of it, or one of Python objects.
    """
    torch, plain = sys.modules.get("torch"), on_cpu(value, what)
    try:
        if torch is not None and isinstance(plain, torch.Tensor):
            plain = plain.to_dense() if plain.layout != torch.strided else plain
            # NumPy has no bfloat16; float32 holds each of its values.
            value = (plain.float() if plain.dtype == torch.bfloat16 else plain).resolve_conj().resolve_neg()
        array = np.asarray(value)
    except MemoryError:
        raise
    except Exception as error:  # each library raises its own
        raise DataError(
            f"{what} is {with_article(type(value).__name__)} that makes no array: {first_line(error)}"
        ) from error
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
    if not spec.shape or whole.ndim != len(spec.shape) or not fits(whole.shape[1:], wanted):
        raise DataError(
            f"{what} is {array.dtype} {shape_text(array.shape)}, and does not fit {spec}: {misfit(array.shape, spec)}"
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


def fits(have: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    """``have`` is a shape that ``wanted`` allows; None is a free size."""
    return len(have) == len(wanted) and all(
        size is None or size == there for there, size in zip(have, wanted, strict=True)
    )


def misfit(shape: tuple[int, ...], spec: InputSpec) -> str:
    """Why an array of ``shape`` is no batch of the input (nor one sample of it), and how to make it one where that is plain."""
    wanted, axes = spec.shape, len(shape)
    if not wanted or axes not in (len(wanted), len(wanted) - 1) or not axes:
        return f"it has {_axes(axes)}, the input {_axes(len(wanted))}, the batch first"
    if axes == len(wanted) - 1:
        if fits(shape, wanted[1:]):
            return f"it is one sample: give several, the batch first, {shape_text((None, *shape))}"
        lacking = [axis for axis in range(1, len(wanted)) if _lacks(shape, wanted, axis)]
        if lacking:
            axis = lacking[0]
            name = (
                "the channel axis" if axes == 3 and len(lacking) == 1 and axis in (1, 3) else f"axis {axis}, of size 1,"
            )
            return f"{name} is missing: reshape it to {shape_text((*shape[:axis], 1, *shape[axis:]))}"
    batch = axes == len(wanted)
    rest, sizes = (shape[1:] if batch else shape), wanted[1:]
    if len(sizes) == 3:
        if fits((rest[2], rest[0], rest[1]), sizes):
            return "its channels come last, bring them to axis 1"
        if fits((rest[1], rest[2], rest[0]), sizes):
            return "its channels come first, bring them to axis 3"
    first = 1 if batch else 0
    wrong = [
        f"axis {first + i} is {have} and has to be {size}"
        for i, (have, size) in enumerate(zip(rest, sizes, strict=True))
        if size is not None and have != size
    ]
    return f"{', '.join(wrong)} ({'the batch comes first' if batch else 'seen as one sample, without the batch axis'})"


def _lacks(shape: tuple[int, ...], wanted: tuple[int | None, ...], axis: int) -> bool:
    """``shape`` is a batch but for ``axis``, which is of size 1."""
    return wanted[axis] == 1 and fits(shape[1:], (*wanted[1:axis], *wanted[axis + 1 :]))


def _axes(count: int) -> str:
    return f"{count} {'axis' if count == 1 else 'axes'}"


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
