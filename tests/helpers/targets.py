"""Files written for a target."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
from helpers.architectures import PATTERNS, Graph
from helpers.stages import feeds, simulated, tensors

import mrecg_onnx
from mrecg_onnx.converters import normalize
from mrecg_onnx.converters.passes.opset import raise_opset
from mrecg_onnx.running import open_session
from mrecg_onnx.targets.target import load_target
from mrecg_onnx.writing.qdq import export

__all__ = ["RULES", "SAMPLES", "makers", "on_sample", "outputs", "padded", "quantized"]

RULES = Path(mrecg_onnx.__file__).parent / "targets" / "rules"
SAMPLES = Path(__file__).parents[2] / "samples"


def padded() -> onnx.ModelProto:
    """Two layers with a Pad of zeros between them, as TensorFlow's exporters write it."""
    g = Graph()
    x = g.conv(g.input(3, 12), 3, 8)
    x = g.op("Pad", [g.relu(x, "relu"), g.constant("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1]))], "pad")
    g.classifier(g.conv(x, 8, 8, name="conv2"), 8)
    return g.model()


@cache
def _file(pattern: str, target: str, wbits: int, abits: int) -> bytes:
    """The file for ONNX Runtime, calibrated for ``target``."""
    model = padded() if pattern == "padded" else PATTERNS[pattern]()
    graph = raise_opset(normalize(model), load_target(target).opset[0])
    stage = simulated(graph, tensors(model), wbits=wbits, abits=abits, target=target)
    return export(stage.graph, stage.simulation, {"mrecg_onnx.version": "test"}).model.SerializeToString()


def quantized(pattern: str, target: str = "ort", wbits: int = 4, abits: int = 4) -> onnx.ModelProto:
    """The file for ONNX Runtime of a pattern of :mod:`helpers.architectures`, or of ``padded``, calibrated for ``target``."""
    return onnx.load_from_string(_file(pattern, target, wbits, abits))


def outputs(model: onnx.ModelProto, level: str = "off") -> list[np.ndarray]:
    """What ONNX Runtime makes of eight random images."""
    return open_session(model, level=level, threads=1).run(None, feeds(model, 8))


def makers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Nodes by what they make."""
    return {output: node for node in model.graph.node for output in node.output}


def on_sample(*more: str) -> tuple[str, ...]:
    """Quantize the sample without learning."""
    model, calib = str(SAMPLES / "digits.onnx"), str(SAMPLES / "calib")
    return "quantize", model, "--calib", calib, "--method", "nearest", "--samples", "64", "--threads", "1", *more
