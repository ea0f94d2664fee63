"""A written file: made, looked into, run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
from helpers.stages import Stage, simulated
from onnx import numpy_helper

from mrecg_onnx.writing.qdq import export

if TYPE_CHECKING:
    from mrecg_onnx.writing.exported import Exported

__all__ = ["exported", "initializers", "maker", "node", "run"]


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Constants by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """The node called ``name``."""
    (found,) = [n for n in model.graph.node if n.name == name]
    return found


def maker(model: onnx.ModelProto, tensor: str) -> onnx.NodeProto:
    """The node that makes ``tensor``."""
    (found,) = [n for n in model.graph.node if tensor in n.output]
    return found


def run(
    model: onnx.ModelProto, fed: dict[str, np.ndarray], outputs: list[str] | None = None, *, optimized: bool = False
) -> list[np.ndarray]:
    """On ONNX Runtime as it stands, or at the default level."""
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(outputs, fed)


def exported(model: onnx.ModelProto, **options) -> tuple[Stage, Exported]:
    """``model`` calibrated under settings ``options``, and its file."""
    stage = simulated(model, **options)
    return stage, export(stage.graph, stage.simulation, {})
