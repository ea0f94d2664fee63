"""ONNX models as they are stored, and as graphs that can be changed."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from mrecg_onnx.converters.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["editable", "graphs", "inside", "tensors"]


def graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """Yield the main graph, the functions and every subgraph of both."""
    yield from inside(model.graph, *model.functions)


def inside(*parts: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """Yield graphs or functions and every subgraph of them."""
    pending = deque(parts)
    while pending:
        graph = pending.popleft()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    pending.append(attribute.g)
                pending.extend(attribute.graphs)


def tensors(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Yield every constant tensor with the name under which nodes read it."""
    for graph in graphs(model):
        if isinstance(graph, onnx.GraphProto):
            for initializer in graph.initializer:
                yield initializer.name, initializer
        for node in graph.node:
            for attribute in node.attribute:
                name = node.output[0] if node.op_type == "Constant" and node.output else node.name
                if attribute.HasField("t"):
                    yield name, attribute.t
                for tensor in attribute.tensors:
                    yield name, tensor


def editable(model: onnx.ModelProto) -> ir.Model:
    """Return ``model`` as a graph that can be changed without changing ``model``.

    Raises:
        ModelError: The model is damaged.
    """
    # onnx_ir's tensors write through to the protobuf message they were made from (their names do).
    copy = type(model)()
    copy.CopyFrom(model)
    try:
        graph: ir.Model = ir.from_proto(copy)
    # Damage that onnx.checker lets pass makes onnx_ir raise its own errors and Python's.
    except Exception as error:
        cause = error.__cause__ or error
        raise ModelError(f"the model is damaged: {type(cause).__name__}: {cause}; copy or export it again") from error
    return graph
