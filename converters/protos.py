"""ONNX models as they are stored, and as graphs that can be changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from mrecg_onnx.converters.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

__all__ = ["editable", "graphs"]


def graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """Yield the main graph, the functions and every subgraph of both."""
    pending: list[onnx.GraphProto | onnx.FunctionProto] = [model.graph, *model.functions]
    while pending:
        graph = pending.pop(0)
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    pending.append(attribute.g)
                pending.extend(attribute.graphs)


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
