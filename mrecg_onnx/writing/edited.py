"""Files that say they were written here and were changed since: another tool's graph under this package's metadata."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import onnx_ir as ir

from mrecg_onnx.converters.errors import ModelError, MrecgError, first_line

__all__ = ["as_written"]

#: What reading a graph of another form ends in.
_SURPRISES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    ir.serde.SerdeError,
)


@contextmanager
def as_written(where: str) -> Iterator[None]:
    """Read a graph in the forms that this package writes; the one that stands there may be another.

    Raises:
        ModelError: it is; the surprise is its cause.
    """
    try:
        yield
    except MrecgError:
        raise
    except _SURPRISES as error:
        raise ModelError(
            f"{where}: its graph is not as mrecg-onnx quantize writes it ({type(error).__name__}: {first_line(error)[:150]}): "
            "convert the file before another tool changed it"
        ) from error
