"""A model as callers give it: a file, its bytes, or a model in memory."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import onnx
import onnx_ir as ir

__all__ = ["Model", "describe", "read_graph", "size_bytes"]

Model: TypeAlias = "bytes | str | Path | onnx.ModelProto"


def describe(model: Model, otherwise: str = "the model") -> str:
    """How messages call a model: its path, or ``otherwise`` where it has none."""
    return str(model) if isinstance(model, (str, Path)) else otherwise


def read_graph(model: Model) -> onnx.ModelProto:
    """The model without what lies beside the file as external data: enough for whoever looks at nodes and names."""
    if isinstance(model, onnx.ModelProto):
        return model
    if isinstance(model, bytes):
        return onnx.load_model_from_string(model)
    return onnx.load(model, load_external_data=False)


def size_bytes(model: Model) -> int:
    """Bytes of the file and of the external data of its initializers."""
    if isinstance(model, bytes):
        return len(model)
    if not isinstance(model, (str, Path)):
        return int(model.ByteSize())
    values = (value.const_value for value in ir.load(model).graph.initializers.values())
    beside = {Path(tensor.path) for tensor in values if isinstance(tensor, ir.ExternalTensor)}
    return Path(model).stat().st_size + sum(path.stat().st_size for path in beside)
