"""What protobuf and onnx.checker let pass in a file though no reader of ONNX can go on with it, told with its place.

Each check is made once, when a model is loaded, so that nothing behind it has to expect such a file: text that is not UTF-8,
tensors whose data do not fit their shape, sizes below 0, attributes of functions outside of one, and calls that do not fit
their function.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped]
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto

from mrecg_onnx.converters.errors import ModelError
from mrecg_onnx.converters.protos import graphs
from mrecg_onnx.converters.text import printable, quoted

if TYPE_CHECKING:
    from google.protobuf.message import Message  # type: ignore[import-untyped]

__all__ = ["DEEPEST", "MOST_NUMBERS", "bytes_of", "label", "nesting", "require_wellformed"]

MOST_NUMBERS = 2**31 - 1
"""So many numbers a tensor that is fed or given out has at most."""

DEEPEST = 33
"""So many graphs lie inside each other at most: protobuf reads 100 messages deep; a graph, its node and its attribute are 3."""

# The fields that hold the numbers of a tensor, by its type, with the numbers that an entry holds.
_FIELDS: dict[int, tuple[str, float]] = {
    TensorProto.FLOAT: ("float_data", 1),
    TensorProto.COMPLEX64: ("float_data", 1 / 2),
    TensorProto.DOUBLE: ("double_data", 1),
    TensorProto.COMPLEX128: ("double_data", 1 / 2),
    TensorProto.INT64: ("int64_data", 1),
    TensorProto.UINT32: ("uint64_data", 1),
    TensorProto.UINT64: ("uint64_data", 1),
    TensorProto.STRING: ("string_data", 1),
}
# All others are in entries of 32 bits, of 4 and 2 bits as many as fill a byte.
_DATA_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")

# Fields of tensors that are text, or messages that have some.
_TEXTS_OF_TENSORS = tuple(
    field
    for field in TensorProto.DESCRIPTOR.fields
    if field.type == FieldDescriptor.TYPE_STRING or field.name in {"external_data", "metadata_props"}
)

# Attributes that name the type of elements.
_OF_TYPES = frozenset({"to", "dtype", "output_dtype"})
#: Types of elements that onnx and onnx_ir both know: each may be newer than the other.
_KNOWN = frozenset(TensorProto.DataType.values()) & frozenset(int(kind) for kind in ir.DataType)
# The field that holds the value of an attribute of each type.
_ATTRIBUTE_FIELDS = {
    AttributeProto.FLOAT: "f",
    AttributeProto.INT: "i",
    AttributeProto.STRING: "s",
    AttributeProto.TENSOR: "t",
    AttributeProto.GRAPH: "g",
    AttributeProto.SPARSE_TENSOR: "sparse_tensor",
    AttributeProto.TYPE_PROTO: "tp",
    AttributeProto.FLOATS: "floats",
    AttributeProto.INTS: "ints",
    AttributeProto.STRINGS: "strings",
    AttributeProto.TENSORS: "tensors",
    AttributeProto.GRAPHS: "graphs",
    AttributeProto.SPARSE_TENSORS: "sparse_tensors",
    AttributeProto.TYPE_PROTOS: "type_protos",
}
_AGAIN = "export the model again"


def require_wellformed(model: ModelProto) -> None:
    """Refuse a model that cannot be read, whatever its operators are; no file beside it is looked at.

    Raises:
        ModelError: it is damaged; the message says what and where, without the path of the file.
    """
    _require_text(model)
    _require_imports(model)
    functions = {(function.domain, function.name): function for function in model.functions}
    for graph in graphs(model):
        if isinstance(graph, GraphProto):
            _require_values(graph)
            for tensor in graph.initializer:
                _require_tensor(tensor, f"tensor {quoted(tensor.name)}")
            for sparse in graph.sparse_initializer:
                _require_sparse(sparse, f"tensor {quoted(sparse.values.name)}")
        for node in graph.node:
            _require_node(node, functions)
    for graph, parameters in _scopes(model):
        for node in graph.node:
            _require_parameters(node, parameters)


# --- text ------------------------------------------------------------------------------------------------------------


def _require_text(model: ModelProto) -> None:
    """Refuse text that is not UTF-8: protobuf hands it out as bytes."""
    trail: list[Any] = []
    if not _all_text(model, trail):
        field, owner = trail[0], next((name for name in map(_named, trail[1:]) if name), "the model")
        raise ModelError(f"{owner}: its {field} is not text in UTF-8; the file is damaged, copy or export it again")


def _all_text(message: Message, trail: list[Any]) -> bool:
    """Tell whether all text in ``message`` is; if not, ``trail`` becomes the field and the messages around it."""
    # All fields of a tensor would be copied, its data among them.
    tensor = message.DESCRIPTOR is TensorProto.DESCRIPTOR
    for field, value in _texts_of_tensor(message) if tensor else message.ListFields():
        kind = field.type
        if kind == FieldDescriptor.TYPE_MESSAGE:
            for part in value if field.is_repeated else (value,):
                if not _all_text(part, trail):
                    trail.append(message)
                    return False
        elif kind == FieldDescriptor.TYPE_STRING:
            for text in value if field.is_repeated else (value,):
                if not isinstance(text, str):
                    trail.extend((field.name, message))
                    return False
    return True


def _texts_of_tensor(tensor: TensorProto) -> list[tuple[Any, Any]]:
    return [(field, getattr(tensor, field.name)) for field in _TEXTS_OF_TENSORS]


_CALLED = {
    "NodeProto": "node",
    "TensorProto": "tensor",
    "ValueInfoProto": "tensor",
    "FunctionProto": "function",
    "AttributeProto": "attribute",
    "GraphProto": "graph",
    "StringStringEntryProto": "metadata",
}


def _named(message: Message) -> str:
    """What ``message`` is called, "" where it has no name."""
    kind = message.DESCRIPTOR.name
    if kind not in _CALLED:
        return ""
    name = message.key if kind == "StringStringEntryProto" else message.name
    if not name and kind == "NodeProto":
        name = next(iter(message.output), "")
    return f"{_CALLED[kind]} {quoted(_decoded(name))}" if name else ""


def _decoded(name: str | bytes) -> str:
    return name if isinstance(name, str) else name.decode("utf-8", "backslashreplace")


# --- operator sets ---------------------------------------------------------------------------------------------------


def _require_imports(model: ModelProto) -> None:
    owners: list[tuple[str, ModelProto | FunctionProto]] = [("the model", model)]
    owners += [(f"function {quoted(function.name)}", function) for function in model.functions]
    for what, owner in owners:
        seen: dict[str, int] = {}
        for entry in owner.opset_import:
            domain = "" if entry.domain == "ai.onnx" else entry.domain
            if entry.version < 1 or entry.version > 2**31 - 1:
                raise ModelError(
                    f"{what} imports version {entry.version} of the operator set {quoted(domain or 'ai.onnx')}: "
                    f"versions count from 1; {_AGAIN}"
                )
            if seen.setdefault(domain, entry.version) != entry.version:
                raise ModelError(
                    f"{what} imports versions {seen[domain]} and {entry.version} of the operator set "
                    f"{quoted(domain or 'ai.onnx')}; {_AGAIN}"
                )


# --- in- and outputs -------------------------------------------------------------------------------------------------


def _require_values(graph: GraphProto) -> None:
    """Sizes that graphs declare are sizes."""
    for kind, values in (("input", graph.input), ("output", graph.output), ("tensor", graph.value_info)):
        for value in values:
            _require_types(value.type, f"{kind} {quoted(value.name)}")
            fixed = 1
            for dim in value.type.tensor_type.shape.dim:
                if dim.WhichOneof("value") == "dim_value":
                    if dim.dim_value < 0:
                        raise ModelError(
                            f"{kind} {quoted(value.name)} has the size {dim.dim_value}: sizes are 0 or more, and a free one "
                            f"has a name; {_AGAIN}"
                        )
                    fixed *= dim.dim_value or 1
            if fixed > MOST_NUMBERS:
                raise ModelError(
                    f"{kind} {quoted(value.name)} has {fixed:.3g} numbers or more, {MOST_NUMBERS} are the most: give it smaller "
                    "sizes, or a free batch"
                )


def _require_types(kind: TypeProto, what: str) -> None:
    """The elements of a tensor, and of what tensors are put together in, are of types that are known."""
    while True:
        form = kind.WhichOneof("value")
        if form in {"tensor_type", "sparse_tensor_type"}:
            element = getattr(kind, form).elem_type
            break
        if form in {"sequence_type", "optional_type"}:
            kind = getattr(kind, form).elem_type
        elif form == "map_type" and kind.map_type.HasField("value_type"):
            kind = kind.map_type.value_type
        elif form == "map_type":
            raise ModelError(f"{what} is a map of values without a type; {_AGAIN}")
        else:
            return
    if element not in _KNOWN:
        raise ModelError(f"{what} has elements of no type that is known ({element}); {_AGAIN}")


# --- tensors ---------------------------------------------------------------------------------------------------------


def bytes_of(tensor: TensorProto) -> int:
    """How many bytes the numbers of ``tensor`` take in a file, text none."""
    bits: int = 0 if tensor.data_type == TensorProto.STRING else ir.DataType(tensor.data_type).bitwidth
    return -(-int(math.prod(tensor.dims)) * bits // 8)


def _require_tensor(tensor: TensorProto, what: str) -> None:
    """The data of a tensor fit its type and shape; those in a file of their own are looked at where that is."""
    if tensor.data_type not in _KNOWN or tensor.data_type == TensorProto.UNDEFINED:
        raise ModelError(f"{what} is of no type that is known ({tensor.data_type}); {_AGAIN}")
    if any(size < 0 for size in tensor.dims):
        raise ModelError(f"{what} has the shape {_shape(tensor.dims)}: sizes are 0 or more; {_AGAIN}")
    if tensor.HasField("segment"):
        raise ModelError(f"{what} is stored in segments, which no runtime reads; {_AGAIN}")
    outside = tensor.data_location == TensorProto.EXTERNAL
    if tensor.data_location not in {TensorProto.DEFAULT, TensorProto.EXTERNAL}:
        raise ModelError(f"{what} keeps its data in no place that is known ({tensor.data_location}); {_AGAIN}")
    filled = [field for field in _DATA_FIELDS if len(getattr(tensor, field))]
    raw = tensor.HasField("raw_data")
    if outside:
        if tensor.data_type == TensorProto.STRING:
            raise ModelError(f"{what} holds text, which cannot be in a file of its own; {_AGAIN}")
        return
    own, each = _FIELDS.get(tensor.data_type) or ("int32_data", _per_entry(tensor.data_type))
    if raw and filled == [] and tensor.data_type != TensorProto.STRING:
        found, needed, unit = len(tensor.raw_data), bytes_of(tensor), "bytes"
    elif filled in ([], [own]) and not (raw and len(tensor.raw_data)):
        found, needed, unit = len(getattr(tensor, own)), math.ceil(math.prod(tensor.dims) / each), f"entries of {own}"
    else:
        fields = [*(["raw_data"] if raw else []), *filled]
        kind = TensorProto.DataType.Name(tensor.data_type)
        raise ModelError(f"{what} of type {kind} has its data in {' and '.join(fields)}; {_AGAIN}")
    if found != needed:
        raise ModelError(
            f"{what} of shape {_shape(tensor.dims)} takes {needed} {unit}, the file has {found}; copy or export it again"
        )


def _per_entry(data_type: int) -> float:
    bits = ir.DataType(data_type).bitwidth
    return 8 / bits if bits < 8 else 1


def _require_sparse(sparse: Any, what: str) -> None:
    if any(size < 0 for size in sparse.dims) or math.prod(sparse.dims) > MOST_NUMBERS:
        raise ModelError(f"{what} has the shape {_shape(sparse.dims)}: {MOST_NUMBERS} numbers are the most; {_AGAIN}")
    for tensor, part in ((sparse.values, "values"), (sparse.indices, "indices")):
        _require_tensor(tensor, f"{what} (its {part})")
        if tensor.data_location == TensorProto.EXTERNAL:
            raise ModelError(f"{what} is sparse and keeps its {part} in a file of their own; {_AGAIN}")


def _shape(sizes: Sequence[int]) -> str:
    few = " x ".join(str(size) for size in list(sizes)[:8])
    return f"{few or '()'}{' x ...' if len(sizes) > 8 else ''}"


# --- nodes -----------------------------------------------------------------------------------------------------------


def label(node: NodeProto) -> str:
    """What messages call ``node``: by its name, or by what it makes."""
    if node.name:
        return f"node {quoted(node.name)}"
    return f"the {printable(node.op_type)[:40]} that makes {quoted(', '.join(node.output))}"


def _require_node(node: NodeProto, functions: dict[tuple[str, str], FunctionProto]) -> None:
    names = [attribute.name for attribute in node.attribute]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ModelError(f"{label(node)} has the attribute {quoted(twice)} twice; {_AGAIN}")
    for attribute in node.attribute:
        _require_attribute(node, attribute)
        names_type = node.domain in {"", "ai.onnx"} and attribute.name in _OF_TYPES and attribute.type == attribute.INT
        # 0 is none; of an attribute that refers to a function's it says nothing.
        if names_type and attribute.i and attribute.i not in _KNOWN:
            raise ModelError(
                f"{label(node)}: attribute {quoted(attribute.name)} names no type that is known ({attribute.i}); {_AGAIN}"
            )
    if any(not entry.configuration_id for entry in node.device_configurations):
        raise ModelError(f"{label(node)} is for devices of a configuration without a name; {_AGAIN}")
    function = functions.get((node.domain, node.op_type))
    if function is None:
        return
    for kind, given, taken in (("inputs", node.input, function.input), ("outputs", node.output, function.output)):
        if len(given) > len(taken):
            raise ModelError(
                f"{label(node)} calls the function {quoted(function.name)} with {len(given)} {kind}, it has {len(taken)}; "
                f"{_AGAIN}"
            )


def _require_attribute(node: NodeProto, attribute: AttributeProto) -> None:
    """An attribute has one value, of its type."""
    what = f"{label(node)}: attribute {quoted(attribute.name)}"
    if not attribute.name:
        raise ModelError(f"{label(node)} has an attribute without a name; {_AGAIN}")
    if attribute.type not in _ATTRIBUTE_FIELDS:
        raise ModelError(f"{what} is of no type that is known ({attribute.type}); {_AGAIN}")
    own = _ATTRIBUTE_FIELDS[attribute.type]
    filled = [field.name for field, _ in attribute.ListFields() if field.name in _ATTRIBUTE_FIELDS.values()]
    # What writers leave out is 0 or empty; a tensor or a graph is never.
    missing = not attribute.ref_attr_name and own in {"t", "g", "sparse_tensor", "tp"}
    if filled not in ([own], []) or (filled == [] and missing):
        called = AttributeProto.AttributeType.Name(attribute.type)
        held = " and ".join(filled) or "no value"
        raise ModelError(f"{what} of type {called} holds {held}; {_AGAIN}")
    # Nodes of makers of runtimes keep programs in text.
    if node.domain in {"", "ai.onnx", "ai.onnx.ml"} and not all(map(_is_text, (attribute.s, *attribute.strings))):
        raise ModelError(f"{what} is not text in UTF-8; the file is damaged, copy or export it again")
    for kind in [*([attribute.tp] if own == "tp" and filled else []), *attribute.type_protos]:
        _require_types(kind, what)
    for tensor in [*([attribute.t] if own == "t" and filled else []), *attribute.tensors]:
        _require_tensor(tensor, f"{what} (a tensor)")
    for sparse in [
        *([attribute.sparse_tensor] if own == "sparse_tensor" and filled else []),
        *attribute.sparse_tensors,
    ]:
        _require_sparse(sparse, f"{what} (a tensor)")


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


# --- functions -------------------------------------------------------------------------------------------------------


def _scopes(model: ModelProto) -> Iterator[tuple[GraphProto | FunctionProto, frozenset[str]]]:
    """Each graph with the attributes that its nodes may refer to: those of the function that it is in."""
    pending: list[tuple[GraphProto | FunctionProto, frozenset[str]]] = [(model.graph, frozenset())]
    for function in model.functions:
        own = {*function.attribute, *(attribute.name for attribute in function.attribute_proto)}
        pending.append((function, frozenset(own)))
    while pending:
        graph, names = pending.pop()
        yield graph, names
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    pending.append((attribute.g, names))
                pending.extend((inner, names) for inner in attribute.graphs)


def _require_parameters(node: NodeProto, parameters: frozenset[str]) -> None:
    for attribute in node.attribute:
        wanted = attribute.ref_attr_name
        if wanted and wanted not in parameters:
            raise ModelError(
                f"{label(node)}: attribute {quoted(attribute.name)} refers to {quoted(wanted)}, which is no attribute of a "
                f"function around it; {_AGAIN}"
            )


# --- files that are not read -----------------------------------------------------------------------------------------

# Field numbers of a model's graph, a graph's nodes, a node's attributes and an attribute's graphs.
_DOWN = {0: (7,), 1: (1,), 2: (5,), 3: (6, 11)}


def nesting(content: bytes) -> int:
    """How many graphs lie inside each other in a serialized model: protobuf reads :data:`DEEPEST` of them.

    Damaged parts count as far as they can be read.
    """
    deepest = 0
    pending = [(0, len(content), 0)]  # begin, end, level: model, graph, node, attribute, graph, ...
    while pending:
        at, end, level = pending.pop()
        deepest = max(deepest, level)
        wanted = _DOWN[level if level == 0 else (level - 1) % 3 + 1]
        for number, begin, stop in _parts(content, at, end):
            if number in wanted:
                pending.append((begin, stop, level + 1))
    return -(-deepest // 3)


def _parts(content: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Fields of a message that have a length: number, begin and end of what they hold."""
    while at < end:
        tag, at = _varint(content, at, end)
        kind = tag & 7
        if kind == 2:
            length, at = _varint(content, at, end)
            if at + length > end:
                return
            yield tag >> 3, at, at + length
            at += length
        elif kind == 0:
            _, at = _varint(content, at, end)
        elif kind in {1, 5}:
            at += 8 if kind == 1 else 4
        else:
            return


def _varint(content: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end:
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128 or shift > 63:
            break
    return value, at
