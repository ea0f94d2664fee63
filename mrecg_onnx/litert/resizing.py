"""Resize of images: nearest moves codes, linear runs in float; each where LiteRT reads the same places."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from mrecg_onnx.litert.flatbuffer import Held, channels_last
from mrecg_onnx.litert.reading import refused
from mrecg_onnx.litert.writer import Out, Writer

__all__ = ["resize"]


def resize(w: Writer, node: ir.Node) -> None:
    """Resize of height and width.

    Raises:
        ExportError: a mode that LiteRT has not, or one whose places differ.
    """
    x = node.inputs[0]
    assert x is not None
    sizes, made = w.size(x, node), w.size(node.outputs[0], node)
    mode = node.attributes.get_string("mode", "nearest")
    places = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if len(sizes.shape) != 4 or sizes.shape[:2] != made.shape[:2]:
        raise refused(node, "it resizes other axes than height and width")
    target = w.flat.constant("size", np.array(made.shape[2:], np.int32))
    if mode == "linear":
        if places not in {"half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"} or 1 in made.shape[2:]:
            raise refused(node, f"its places are '{places}'")
        held = w.ordered(w.float(x, node), channels_last(4), node)
        table = {"alignCorners": places == "align_corners", "halfPixelCenters": places.endswith("half_pixel")}
        options = ("ResizeBilinearOptions", table)
        out = Out(node.outputs[0], made)
        w.write_float(
            out,
            channels_last(4),
            lambda to, _relu: w.flat.operator("RESIZE_BILINEAR", [held, target], to, options),
        )
        return
    rounding = node.attributes.get_string("nearest_mode", "round_prefer_floor")
    if mode != "nearest" or not all(
        np.array_equal(_nearest(a, b, places, rounding), np.arange(b) * a // b)
        for a, b in zip(sizes.shape[2:], made.shape[2:], strict=True)
    ):
        raise refused(node, f"mode '{mode}' with places '{places}' reads others than LiteRT's")
    options = ("ResizeNearestNeighborOptions", {"alignCorners": False, "halfPixelCenters": False})
    codes = w.ints(x)
    held = w.ordered(codes if codes is not None else w.float(x, node), channels_last(4), node)

    def emit(to: Held, _relu: bool) -> None:
        w.flat.operator("RESIZE_NEAREST_NEIGHBOR", [held, target], to, options)

    if codes is not None:
        w.pass_codes(w.out(node.outputs[0], node), held, channels_last(4), emit)
    else:
        w.write_float(Out(node.outputs[0], made), channels_last(4), emit)


def _nearest(before: int, after: int, places: str, rounding: str) -> npt.NDArray[np.int64]:
    """Which of ``before`` elements each of ``after`` is, as ONNX defines it; none where the mode is another."""
    at = np.arange(after, dtype=np.float64)
    scale = after / before
    if places == "asymmetric":
        at = at / scale
    elif places in {"half_pixel", "pytorch_half_pixel"}:
        at = (at + 0.5) / scale - 0.5
    elif places == "align_corners" and after > 1:
        at = at * (before - 1) / (after - 1)
    else:
        return np.empty(0, np.int64)
    rounds: dict[str, Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]] = {
        "floor": np.floor,
        "ceil": np.ceil,
        "round_prefer_floor": lambda v: np.ceil(v - 0.5),
        "round_prefer_ceil": lambda v: np.floor(v + 0.5),
    }
    if rounding not in rounds:
        return np.empty(0, np.int64)
    return np.clip(rounds[rounding](at), 0, before - 1).astype(np.int64)
