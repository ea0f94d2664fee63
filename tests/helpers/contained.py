"""Files in the int8 container, to be converted."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
from helpers.architectures import PATTERNS
from helpers.stages import feeds, simulated

from mrecg_onnx.running import open_session
from mrecg_onnx.writing.qdq import export

__all__ = ["VERSION", "outputs", "quantized"]

VERSION = {"mrecg_onnx.version": "test"}


@cache
def _file(pattern: str, wbits: int, abits: int, ends: int = 8) -> bytes:
    stage = simulated(PATTERNS[pattern](), wbits=wbits, abits=abits, first_last_bits=ends)
    return export(stage.graph, stage.simulation, VERSION).model.SerializeToString()


def quantized(pattern: str, wbits: int = 4, abits: int = 4, ends: int = 8) -> onnx.ModelProto:
    """The file of a pattern of :mod:`helpers.architectures`; ``ends``: width of the first and last layer."""
    return onnx.load_from_string(_file(pattern, wbits, abits, ends))


def outputs(model: onnx.ModelProto, level: str = "off") -> list[np.ndarray]:
    """What ONNX Runtime makes of four random images."""
    return open_session(model, level=level, threads=1).run(None, feeds(model, 4))
