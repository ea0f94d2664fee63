"""Which opset brought what a quantized file needs."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FOUR_BITS", "MIN_IR", "MIN_OPSET", "TWO_BITS", "WIDE_OPSET", "Limits"]

#: Oldest opset with per-channel DequantizeLinear, and the IR version that came with it.
MIN_OPSET, MIN_IR = 13, 7
#: Oldest opset whose QuantizeLinear writes uint16.
WIDE_OPSET = 21
#: Opset that brought UINT4 and INT4, and the one that brought UINT2.
FOUR_BITS, TWO_BITS = 21, 25


@dataclass(frozen=True)
class Limits:
    """What a container may use.

    Attributes:
        opset: types up to those of this one.
        zero_points: whether weights in 4-bit types may have a zero point.
    """

    opset: int
    zero_points: bool = True
