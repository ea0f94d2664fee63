"""Values at the module's border: numpy arrays to torch and back.

Tensors of a type torch has are torch tensors. Strings and numbers of types torch lacks (4 bits and fewer, float4) stay
numpy arrays, sequences are lists, and an absent optional value is None.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["from_array", "to_array"]

# Types that numpy knows only from ml_dtypes, with the integer type of the same width their bits pass through.
_BY_BITS = {
    torch.bfloat16: (ml_dtypes.bfloat16, np.int16, torch.int16),
    torch.float8_e4m3fn: (ml_dtypes.float8_e4m3fn, np.uint8, torch.uint8),
    torch.float8_e4m3fnuz: (ml_dtypes.float8_e4m3fnuz, np.uint8, torch.uint8),
    torch.float8_e5m2: (ml_dtypes.float8_e5m2, np.uint8, torch.uint8),
    torch.float8_e5m2fnuz: (ml_dtypes.float8_e5m2fnuz, np.uint8, torch.uint8),
}
_PLAIN_KINDS = "biufc"


def from_array(value: Any) -> Any:
    """Return an array as a tensor that owns its memory, a list item by item, and anything else as it is."""
    if isinstance(value, list):
        return [from_array(item) for item in value]
    if not isinstance(value, np.ndarray | np.generic):
        return value
    array = np.array(value, order="C")
    for dtype, (own, bits, carrier) in _BY_BITS.items():
        if array.dtype == own:
            return torch.from_numpy(array.view(bits)).view(carrier).view(dtype)
    if array.dtype.kind not in _PLAIN_KINDS:
        return array
    # numpy has two names for 64 bits; torch knows only one of them.
    return torch.from_numpy(array.view(np.dtype(f"{array.dtype.kind}{array.dtype.itemsize}")))


def to_array(value: Any) -> Any:
    """Return a tensor as an array, a list item by item, and anything else as it is."""
    if isinstance(value, list | tuple):
        return [to_array(item) for item in value]
    if not isinstance(value, torch.Tensor):
        return value
    tensor = value.detach().cpu()
    if tensor.dtype not in _BY_BITS:
        return tensor.resolve_neg().numpy()
    own, _, carrier = _BY_BITS[tensor.dtype]
    array: NDArray[Any] = tensor.contiguous().view(carrier).numpy().view(own)
    return array
