"""Running a flatbuffer in LiteRT, where that is installed, beside the file that it was made from in ONNX Runtime."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping

import numpy as np
import onnx

from mrecg_onnx.converters.errors import ExportError, first_line
from mrecg_onnx.litert.flatbuffer import Array
from mrecg_onnx.machine import silent
from mrecg_onnx.measures import Heads, likeness
from mrecg_onnx.running import Opened, open_session, run_padded

__all__ = ["open_litert", "run_litert"]


def run_litert(
    content: bytes, data: Mapping[str, Array], layouts: Mapping[str, tuple[int, ...]], threads: int = 1
) -> dict[str, Array]:
    """What LiteRT's interpreter with its default delegate makes of ``data``.

    Args:
        content: the flatbuffer.
        data: arrays [N, ...] by input, in ONNX's order.
        layouts: for each in- and output which of ONNX's axes each of the flatbuffer's is; inputs first, in their order.
        threads: of the interpreter.

    Returns:
        Arrays by output, in ONNX's order.

    Raises:
        ExportError: LiteRT refuses the file.
    """
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415 - an extra

    names = list(layouts)
    try:
        interpreter = Interpreter(model_content=content, num_threads=threads)
        places, made = interpreter.get_input_details(), interpreter.get_output_details()
        feeds = [np.ascontiguousarray(data[name].transpose(layouts[name])) for name in names[: len(places)]]
        for place, x in zip(places, feeds, strict=True):
            interpreter.resize_tensor_input(place["index"], x.shape, strict=True)
        # Only here: the delegate is made, which tells of that; what it refuses is raised.
        with silent(2):
            interpreter.allocate_tensors()
        for place, x in zip(places, feeds, strict=True):
            interpreter.set_tensor(place["index"], x)
        interpreter.invoke()
        found = [interpreter.get_tensor(place["index"]) for place in made]
    except (RuntimeError, ValueError) as error:
        raise ExportError(f"LiteRT refuses the file: {first_line(error)}") from error
    return {name: x.transpose(np.argsort(layouts[name])) for name, x in zip(names[len(places) :], found, strict=True)}


def open_litert(
    content: bytes,
    model: onnx.ModelProto,
    data: Mapping[str, Array],
    layouts: Mapping[str, tuple[int, ...]],
    operators: Mapping[str, int],
) -> Opened:
    """Open a flatbuffer with its ``operators`` and compare it with ``model`` on ONNX Runtime at its default level.

    That requantizes once, as LiteRT does, where the graph as written rounds twice: its two levels agree less with each other than
    LiteRT does with the default one.

    Raises:
        ExportError: LiteRT refuses the file.
    """
    if importlib.util.find_spec("ai_edge_litert.interpreter") is None:
        return Opened("not opened: LiteRT is not installed (pip install ai-edge-litert)", {})
    version = importlib.metadata.version("ai-edge-litert")
    found = run_litert(content, data, layouts)
    same, figures = likeness(run_padded(open_session(model), data), found, Heads.of_model(model))
    return Opened(f"LiteRT {version}", dict(operators), same, figures, found)
