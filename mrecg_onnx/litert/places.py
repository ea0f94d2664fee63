"""Where the codes of a tensor lie in int8, so that the bounds of fewer bits cost as little as possible.

int8 ends at -128 and 127, and kernels saturate there: codes at the lower end of the type have their lower bound for nothing,
those at the upper end their upper one. The other bound is a fused Relu where it is the zero point. What is left, both bounds of
a signed tensor of few bits, takes an operator more: codes are saturated at the one end, moved, and saturated at the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from mrecg_onnx.litert.reading import Codes

__all__ = ["HIGHEST", "LOWEST", "Place", "place_of"]

LOWEST, HIGHEST = -128, 127


@dataclass(frozen=True)
class Place:
    """Where codes go.

    Attributes:
        offset: code in the flatbuffer less code in the file.
        relu: whether the kernel has to apply a Relu.
        moved: the offset of the second step, which saturates at the lower end; None where one step does.
    """

    offset: int
    relu: bool = False
    moved: int | None = None


def place_of(codes: Codes, *, fuses: bool, floor: bool = False) -> Place:
    """Where to put ``codes``.

    Args:
        codes: the quantizer.
        fuses: whether the kernel that writes them takes a Relu.
        floor: whether nothing below the zero point comes.
    """
    bottom, top = LOWEST - codes.low, HIGHEST - codes.high
    if bottom == top:
        return Place(bottom)
    if codes.low == codes.zero and (fuses or floor):
        return Place(top, relu=not floor)
    return Place(top, moved=bottom)
