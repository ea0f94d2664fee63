"""Windows that slide over images: ONNX pads as it likes, LiteRT knows VALID and SAME; other pads are an operator in front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mrecg_onnx.litert.flatbuffer import Held
from mrecg_onnx.litert.reading import refused
from mrecg_onnx.litert.writer import Writer

__all__ = ["Window", "pad", "window_of"]

_SAME, _VALID = 0, 1


@dataclass(frozen=True)
class Window:
    """A window over height and width.

    Attributes:
        kernel: its size.
        strides: its steps.
        dilations: distance of what it reads.
        pads: elements in front of and behind both axes, as ONNX has them: top, left, bottom, right.
        same: whether these are what SAME pads.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    same: bool

    @property
    def bare(self) -> bool:
        """Whether nothing is padded."""
        return not any(self.pads)

    def padded(self, w: Writer, held: Held, node: ir.Node, value: float | None = None) -> tuple[Held, int]:
        """What the kernel reads, and its number of padding: an operator in front where SAME is something else.

        Args:
            w: the conversion.
            held: images with their channels last.
            node: who reads them.
            value: what to pad with; None is zero, the zero point of codes.
        """
        if self.bare or self.same:
            return held, _VALID if self.bare else _SAME
        top, left, bottom, right = self.pads
        return pad(w, held, [0, 0, top, left, 0, 0, bottom, right], node, value), _VALID


def window_of(node: ir.Node, shape: Sequence[int], made: Sequence[int], kernel: Sequence[int]) -> Window:
    """The window of a convolution or pool from [N, C, H, W] in ``shape`` to such in ``made``.

    Raises:
        ExportError: it makes another number of places than windows fit into the padded image (``ceil_mode``).
    """
    strides = node.attributes.get_ints("strides", [1, 1])
    dilations = node.attributes.get_ints("dilations", [1, 1])
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    wanted = [max((-(-n // s) - 1) * s + k - n, 0) for n, s, k in zip(shape[2:], strides, spans, strict=True)]
    same = [*(total // 2 for total in wanted), *(total - total // 2 for total in wanted)]
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    pads = list(node.attributes.get_ints("pads", [0, 0, 0, 0]))
    if mode == "SAME_UPPER":
        pads = same
    elif mode == "SAME_LOWER":
        pads = same[2:] + same[:2]
    elif mode == "VALID":
        pads = [0, 0, 0, 0]
    for axis in (0, 1):
        room = shape[2 + axis] + pads[axis] + pads[axis + 2] - spans[axis]
        if room // strides[axis] + 1 != made[2 + axis]:
            raise refused(node, "windows hang over the edge of the image (ceil_mode)")
    return Window(
        (kernel[0], kernel[1]), (strides[0], strides[1]), (dilations[0], dilations[1]),
        (pads[0], pads[1], pads[2], pads[3]), pads == same,
    )  # fmt: skip


def pad(w: Writer, held: Held, pads: Sequence[int], node: ir.Node, value: float | None = None) -> Held:
    """``held`` with elements before and behind each axis, as ONNX counts them: all fronts, then all ends.

    Args:
        w: the conversion.
        held: what is padded.
        pads: how many; none along what grows with the batch.
        node: who wants it.
        value: None pads with 0, the zero point of codes; codes are padded with this code.
    """
    rank = len(held.shape)
    shape = tuple(pads[i] + size + pads[i + rank] for i, size in enumerate(held.shape))
    if min(pads) < 0 or any(held.free[i] and (pads[i] or pads[i + rank]) for i in range(rank)):
        raise refused(node, "it pads the batch, or takes elements away")
    counts = w.flat.constant("pads", np.array([[pads[a], pads[a + rank]] for a in held.order], np.int32))
    like = Held(-1, held.kind, shape, held.free, held.order, held.scales, held.low, held.high)
    made = w.flat.tensor(f"{node.name}_padded", like)
    if value is None:
        return w.flat.operator("PAD", [held, counts], made, ("PadOptions", {}))
    filler = np.array([value], np.float32 if held.kind == "FLOAT32" else np.int8)
    return w.flat.operator(
        "PADV2", [held, counts, w.flat.constant("padding", filler, held.scales)], made, ("PadV2Options", {})
    )
