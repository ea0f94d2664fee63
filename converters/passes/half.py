"""Compute in float32 what a model computes in half precision; its borders stay as they are."""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir

from mrecg_onnx.converters.passes.values import claim, is_standard

__all__ = ["widen_half"]

logger = logging.getLogger(__name__)

_HALF = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
# Attributes that hold the number of a type: of Cast, of random numbers, of DequantizeLinear, of windows.
_TYPES = ("to", "dtype", "output_dtype", "output_datatype", "stash_type")


def widen_half(model: ir.Model) -> bool:
    """Let a model whose tensors are float16 or bfloat16, or some of them, compute in float32.

    1. Constants, attributes and the types of tensors in all graphs become float32.
    2. Casts to half precision are casts to float32, and Identity where their input is that already.
    3. In- and outputs of the model keep their types and names: a Cast stands behind each input and in front of each output,
       or stood there already.

    ONNX Runtime's CPU provider computes such models in float32, too, and only rounds in between. Types should have been
    inferred before, functions inlined.

    Returns:
        Whether anything was half.
    """
    graphs = list(model.graphs())
    values = [value for graph in graphs for value in _values(graph)]
    borders = dict.fromkeys(v for v in (*model.graph.inputs, *model.graph.outputs) if _is_half(v.type))
    done = {value for value in borders if _is_cast(value)}
    casts = {value.producer() for value in done}
    half = {value for value in values if _is_half(value.type)} - done
    changed = [_widen_attributes(node) for graph in graphs for node in graph if node not in casts]
    if not half and not any(changed):
        return False
    types = {value: value.type for value in borders if value not in done}
    for value in half:
        value.type = _widened(value.type)
        if value.const_value is not None and value not in borders:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
    for graph in graphs:
        for node in graph:
            _pass_on(node)
    names = {value.name for value in values}
    nodes = {node.name for graph in graphs for node in graph}
    for value, kind in types.items():
        _cast_at_border(model.graph, value, kind, names, nodes)
    logger.info("half precision is computed in float32")
    return True


def _values(graph: ir.Graph) -> list[ir.Value]:
    made = [output for node in graph for output in node.outputs]
    return [*graph.inputs, *graph.initializers.values(), *made]


def _is_half(kind: ir.TypeProtocol | None) -> bool:
    return kind is not None and kind.dtype in _HALF


def _is_cast(value: ir.Value) -> bool:
    """Tell whether ``value``, half at the border of the graph, is float32 behind it."""
    maker = value.producer()
    if maker is not None:
        source = maker.inputs[0] if is_standard(maker, "Cast") else None
        return source is not None and source.dtype == ir.DataType.FLOAT and not value.uses()
    readers = [node for node, _ in value.uses()]
    return value.is_graph_input() and all(
        is_standard(node, "Cast") and node.attributes.get_int("to", 0) == ir.DataType.FLOAT for node in readers
    )


def _widened(kind: ir.TypeProtocol | None) -> ir.TypeProtocol | None:
    """``kind`` with float32 elements; sequences and optionals of half tensors as well."""
    if isinstance(kind, ir.SequenceType | ir.OptionalType):
        inner = _widened(kind.elem_type)
        return type(kind)(inner)  # type: ignore[arg-type]
    return ir.TensorType(ir.DataType.FLOAT) if _is_half(kind) else kind


def _widen_attributes(node: ir.Node) -> bool:
    changed = False
    for name, attribute in list(node.attributes.items()):
        new: ir.Attr | None = None
        if attribute.is_ref():
            continue
        if name in _TYPES and attribute.type == ir.AttributeType.INT and attribute.as_int() in _HALF:
            new = ir.AttrInt64(name, int(ir.DataType.FLOAT))
        elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in _HALF:
            new = ir.AttrTensor(name, ir.tensor(attribute.as_tensor().numpy().astype(np.float32)))
        if new is not None:
            node.attributes[name] = new
            changed = True
    return changed


def _pass_on(node: ir.Node) -> None:
    """Make a Cast from float32 to float32 an Identity."""
    if not is_standard(node, "Cast") or not node.inputs or node.inputs[0] is None:
        return
    if node.attributes.get_int("to", 0) == ir.DataType.FLOAT and node.inputs[0].dtype == ir.DataType.FLOAT:
        node.op_type = "Identity"
        node.attributes.clear()


def _cast_at_border(
    graph: ir.Graph, value: ir.Value, kind: ir.TypeProtocol | None, names: set[str | None], nodes: set[str | None]
) -> None:
    """Give ``value``, an input or output of the graph, its type ``kind`` back; what reads or makes it gets a float32 one."""
    assert kind is not None
    assert kind.dtype is not None
    inner = ir.Value(name=claim(f"{value.name}_float32", names), shape=value.shape, type=value.type)
    maker = value.producer()
    if maker is None:
        readers = list(value.uses())
        node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(ir.DataType.FLOAT))], outputs=[inner])
        value.type = kind
        if len(graph):
            graph.insert_before(graph[0], node)
        else:
            graph.append(node)
        for reader, index in readers:
            reader.replace_input_with(index, inner)
    else:
        # The value keeps its place among the outputs: the maker's output gets another name, and a Cast makes it.
        outer = ir.Value(name=None, shape=value.shape, type=kind, doc_string=value.doc_string)
        outer.metadata_props.update(value.metadata_props)
        places = [place for place, output in enumerate(graph.outputs) if output is value]
        name, value.name = value.name, inner.name
        outer.name = name
        node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(kind.dtype))], outputs=[outer])
        for place in places:
            graph.outputs[place] = outer
        graph.append(node)
    node.name = claim(f"{inner.name}_Cast", nodes)
