"""A model as callers give it: a file, its bytes, or a model in memory."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import onnx
import onnx_ir as ir

from mrecg_onnx.converters.errors import ModelError
from mrecg_onnx.data import InputSpec

__all__ = ["Model", "describe", "read_graph", "size_bytes", "specs_of"]

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


def specs_of(model: onnx.ModelProto, where: str = "the model") -> list[InputSpec]:
    """What a model wants to be fed, also one that ONNX Runtime does not open; symbolic sizes become None.

    Raises:
        ModelError: it has no inputs, or one is no tensor with a batch.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    specs = []
    for value in model.graph.input:
        if value.name in constants:
            continue
        kind = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not kind.shape.dim:
            raise ModelError(f"{where}: input '{value.name}' is no tensor with a batch: it cannot be fed")
        shape = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in kind.shape.dim)
        specs.append(InputSpec(value.name, shape, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)))
    if not specs:
        raise ModelError(f"{where}: has no inputs to feed")
    return specs
