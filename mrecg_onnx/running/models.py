"""A model as callers give it: a file, its bytes, or a model in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import onnx
import psutil
from onnx.external_data_helper import uses_external_data

from mrecg_onnx.converters.errors import ModelError, SettingsError
from mrecg_onnx.converters.load import read_model
from mrecg_onnx.data import InputSpec
from mrecg_onnx.machine import byte_size

__all__ = ["Model", "describe", "read_graph", "require_room", "size_bytes", "specs_of"]

Model: TypeAlias = "bytes | str | Path | onnx.ModelProto"


def describe(model: Model, otherwise: str = "the model") -> str:
    """How messages call a model: its path, or ``otherwise`` where it has none."""
    return str(model) if isinstance(model, (str, Path)) else otherwise


def read_graph(model: Model) -> onnx.ModelProto:
    """The model without what lies beside the file as external data: enough for whoever looks at nodes and names.

    Raises:
        ModelError: it cannot be read, or is damaged.
    """
    return model if isinstance(model, onnx.ModelProto) else read_model(model)


def size_bytes(model: Model) -> int:
    """Bytes of the file and of the external data of its initializers.

    Raises:
        ModelError: as :func:`read_graph`.
    """
    if isinstance(model, bytes):
        return len(model)
    if not isinstance(model, (str, Path)):
        return int(model.ByteSize())
    outside = (tensor.external_data for tensor in read_graph(model).graph.initializer if uses_external_data(tensor))
    beside = {entry.value for entries in outside for entry in entries if entry.key == "location"}
    paths = [Path(model), *(Path(model).parent / name for name in beside)]
    return sum(path.stat().st_size for path in paths if path.is_file())


def specs_of(model: onnx.ModelProto, where: str = "the model") -> list[InputSpec]:
    """What a model wants to be fed, also one that ONNX Runtime does not open; symbolic sizes become None.

    Raises:
        ModelError: it has no inputs, or one is no tensor of numbers with a batch.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    specs = []
    for value in model.graph.input:
        if value.name in constants:
            continue
        kind = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not kind.shape.dim:
            raise ModelError(f"{where}: input '{value.name}' is no tensor with a batch: it cannot be fed")
        try:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        except KeyError:
            dtype = None
        if dtype is None or dtype.kind not in "biuf":  # neither text nor what NumPy has no type of its own for
            called = dict(map(reversed, onnx.TensorProto.DataType.items())).get(kind.elem_type, kind.elem_type)
            raise ModelError(f"{where}: input '{value.name}' has elements of type {called}: it cannot be fed")
        shape = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in kind.shape.dim)
        specs.append(InputSpec(value.name, shape, dtype))
    if not specs:
        raise ModelError(f"{where}: has no inputs to feed")
    return specs


def require_room(specs: Sequence[InputSpec], rows: int) -> None:
    """Refuse inputs that memory does not hold: sizes come from the file, or from whoever asks for a batch.

    Args:
        specs: the inputs; their first sizes do not count.
        rows: items in place of those.

    Raises:
        SettingsError: they take more than half of the free memory while they are made (8 bytes a number, and the input's type).
    """
    numbers = [math.prod(int(size or 0) for size in spec.shape[1:]) * (8 + spec.dtype.itemsize) for spec in specs]
    size, room = rows * sum(numbers), psutil.virtual_memory().available // 2
    if size > room:
        raise SettingsError(
            f"{rows} items of {', '.join(map(str, specs))} take {byte_size(size)} of memory, {byte_size(room)} may "
            "be taken: ask for fewer items or a smaller batch"
        )
