"""Which tensors of a model torch can compute with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto, helper

from mrecg_onnx.converters.text import with_article

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["foreign_tensor", "tensor_types"]

# Types torch computes with on every device.
_NATIVE = frozenset(
    {
        TensorProto.FLOAT,
        TensorProto.DOUBLE,
        TensorProto.FLOAT16,
        TensorProto.BFLOAT16,
        TensorProto.INT8,
        TensorProto.INT16,
        TensorProto.INT32,
        TensorProto.INT64,
        TensorProto.UINT8,
        TensorProto.BOOL,
        TensorProto.COMPLEX64,
        TensorProto.COMPLEX128,
    }
)
# Types torch can hold and convert, but has next to no arithmetic for.
_HELD = frozenset({TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64})

# Operators that move elements, whatever they are.
_MOVES = frozenset(
    {
        "BitCast",
        "Cast",
        "CastLike",
        "Flatten",
        "Identity",
        "Reshape",
        "Shape",
        "Size",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)

# Operators whose outputs are sequences.
_MAKE_SEQUENCES = frozenset(
    {"SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceMap", "SplitToSequence"}
)

# Operators whose converters compute with types that torch only holds: with all of them, because the lowest bits of the
# result depend on the lowest bits of the arguments alone, or with those that fit into int64.
_WRAPPED = frozenset({"Add", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Equal", "Mul", "Sub"})
_WIDENED = frozenset({"Div", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mod", "Pow"})


def tensor_types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    """Return the types of the graph's tensors by name, of those that are known."""
    graph = model.graph
    found = {
        value.name: value.type for value in (*graph.value_info, *graph.input, *graph.output) if _is_known(value.type)
    }
    for tensor in graph.initializer:
        found[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
    declared = {value.name for value in (*graph.input, *graph.output)}
    for node in graph.node:
        for place, name in enumerate(node.output):
            if name not in declared:
                _correct(node, place, found)
    return found


def _correct(node: onnx.NodeProto, place: int, found: dict[str, onnx.TypeProto]) -> None:
    """Make the type of an output that is a sequence one: onnx_ir notes the type of its elements instead."""
    name = node.output[place]
    kind = found.get(name)
    if node.op_type in _MAKE_SEQUENCES and kind is not None and kind.HasField("tensor_type"):
        found[name] = helper.make_sequence_type_proto(kind)
    # The carried values of a Loop come behind the number of rounds and the condition.
    source = {"Identity": 0, "Loop": place + 2}.get(node.op_type)
    if source is not None and source < len(node.input):
        like = found.get(node.input[source])
        if like is not None and not like.HasField("tensor_type"):
            found[name] = like


def foreign_tensor(node: onnx.NodeProto, types: Mapping[str, onnx.TypeProto]) -> str | None:
    """Return what torch has no tensors for among what ``node`` reads and makes, None where there is nothing."""
    fine = _NATIVE | _HELD if node.op_type in _MOVES | _WRAPPED else _NATIVE
    if node.op_type in _WIDENED:
        fine = _NATIVE | _HELD - {TensorProto.UINT64}
    for name in (*node.input, *node.output):
        kind = types.get(name)
        if kind is None:
            continue
        if not kind.HasField("tensor_type"):
            return f"'{name}', which is {with_article(str(kind.WhichOneof('value')).removesuffix('_type'))}"
        if kind.tensor_type.elem_type not in fine:
            return f"elements of type {TensorProto.DataType.Name(kind.tensor_type.elem_type)} ('{name}')"
    return None


def _is_known(kind: onnx.TypeProto) -> bool:
    field = kind.WhichOneof("value")
    return field is not None and (field != "tensor_type" or kind.tensor_type.elem_type != TensorProto.UNDEFINED)
