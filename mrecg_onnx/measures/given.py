"""What a target is that was handed over, whatever it may be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mrecg_onnx.converters.text import with_article

__all__ = ["as_numbers", "told"]


def as_numbers(value: Any) -> npt.NDArray[Any] | None:
    """``value`` as an array of numbers; None where it is none, as lists of arrays of different sizes are."""
    try:
        found = np.asarray(value)
    except (ValueError, TypeError, RuntimeError):  # NumPy's own words help nobody here, nor do torch's
        return None
    return found if found.dtype.kind in "fiub" else None


def told(value: Any) -> str:
    """What ``value`` is, for messages: an array by type and shape, what holds others by its kind and how many."""
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(map(str, value)) or 'nothing'}"
    if isinstance(value, list | tuple) and as_numbers(value) is None:
        return f"{with_article(type(value).__name__)} of {len(value)}"
    found = as_numbers(value)
    return with_article(type(value).__name__) if found is None else f"{found.dtype} {list(found.shape)}"
