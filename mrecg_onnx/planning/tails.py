"""Where a model stops having a row for each image, and what it does from there on.

Detectors end in NonMaxSuppression, which makes as many boxes as it finds. Such a graph is cut: what is in front is planned,
learned and checked at the tensors where it is cut, and what lies behind, the tail, is left as it is and put behind the quantized
part again.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir

from mrecg_onnx.converters.errors import ExportError, ModelError
from mrecg_onnx.converters.metadata_keys import CUT_KEY
from mrecg_onnx.converters.normalize import normalize, restructure
from mrecg_onnx.converters.passes.opset import lower_opset, raise_opset
from mrecg_onnx.converters.passes.shapes import infer_shapes
from mrecg_onnx.converters.passes.structure import name_all, remove_unused
from mrecg_onnx.converters.passes.values import claim
from mrecg_onnx.converters.protos import editable, graphs
from mrecg_onnx.converters.text import bounded, first_of, quoted
from mrecg_onnx.planning.activations import constant, weight_index

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Tail", "cut_off", "outputs_without_rows", "told_cut"]

#: Operators whose outputs have as many rows as they find.
COUNTING = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})
#: Operators that look at the size of what they read alone.
_SIZES = frozenset({"Shape", "Size"})


@dataclass(frozen=True)
class Tail:
    """What lies behind the part of a model that has a row for each image.

    Attributes:
        model: the tail, whose inputs are the tensors where it was cut off (and inputs of the whole model that it reads itself).
        inputs: of the whole model.
        outputs: likewise.
    """

    model: onnx.ModelProto
    inputs: tuple[onnx.ValueInfoProto, ...]
    outputs: tuple[onnx.ValueInfoProto, ...]

    def behind(self, front: onnx.ModelProto) -> onnx.ModelProto:
        """``front``, a form of what was in front of the tail, with the tail behind it: in- and outputs are the whole model's.

        Names in the tail give way to those of ``front``.

        Raises:
            ExportError: a node of the tail is not there in the opset of ``front``.
        """
        whole, tail = editable(front), editable(self.model)
        _same_opset(tail, whole)
        cut = {value.name for value in tail.graph.inputs}
        taken = {value.name for value in _values(whole)}
        kept = {value.name for value in self.outputs}
        clash = sorted(name for name in kept & taken if name and name not in {v.name for v in whole.graph.outputs})
        if clash:
            raise ExportError(
                f"output {quoted(clash[0])} has the name of a tensor that quantization adds: give it another name"
            )
        for value in list(_values(tail)):
            if value.name in taken and value.name not in cut:
                value.name = claim(value.name or "", taken)
                if value.const_value is not None:
                    value.const_value.name = value.name
        nodes = {node.name for node in whole.graph.all_nodes()}
        for node in list(tail.graph.all_nodes()):
            if node.name in nodes:
                node.name = claim(node.name or "", nodes)
        made: onnx.ModelProto = ir.to_proto(whole)
        more: onnx.ModelProto = ir.to_proto(tail)
        inputs = {value.name: value for value in made.graph.input}
        there = {value.name for value in made.graph.value_info} | {value.name for value in self.outputs}
        inner = [value for value in made.graph.output if value.name not in there]
        made.graph.value_info.extend([*inner, *(v for v in more.graph.value_info if v.name not in there)])
        made.graph.node.extend(more.graph.node)
        made.graph.initializer.extend(more.graph.initializer)
        del made.graph.output[:], made.graph.input[:]
        made.graph.input.extend(inputs.get(value.name, value) for value in self.inputs)
        made.graph.output.extend(self.outputs)
        known = {entry.domain for entry in made.opset_import}
        made.opset_import.extend(entry for entry in more.opset_import if entry.domain not in known)
        made.ir_version = max(made.ir_version, more.ir_version)
        return made


class _Cut(NamedTuple):
    """The first node without rows, and names: of tensors in front, of those whose sizes alone count, of outputs behind.

    Tensors of which nothing but sizes is read, and these are known, are no places to cut at: :attr:`known` has their shapes.
    """

    node: str
    at: list[str]
    sizes: list[str]
    outputs: list[str]
    known: dict[str, list[int]]


def cut_off(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Tail | None]:
    """What of ``model`` has a row for each image, and the tail; the model itself where all of it has.

    Raises:
        ModelError: nothing is in front.
    """
    cut = _cut(model)
    if cut is None:
        return model, None
    front, back = _front(model, cut), _form(model)
    if cut.sizes:
        cut = _without_sizes(front, cut)
        front = _front(model, cut)
    if not front.graph.inputs:
        raise ModelError(f"nothing lies in front of {cut.node} that could be quantized")
    _begin_at(back, cut)
    told = {"node": cut.node, "at": [name for name in cut.at if name not in cut.sizes] or cut.at, **_layers(back)}
    front.metadata_props[CUT_KEY] = json.dumps(told, separators=(",", ":"))
    tail = Tail(ir.to_proto(back), tuple(model.graph.input[i] for i in _inputs(model)), tuple(model.graph.output))
    return ir.to_proto(front), tail


def _front(model: onnx.ModelProto, cut: _Cut) -> ir.Model:
    front = _form(model)
    by_name = {value.name: value for value in _values(front)}
    rest = [value.name for value in front.graph.outputs if value.name not in cut.outputs and value.name not in cut.at]
    front.graph.outputs[:] = [by_name[name] for name in (*rest, *cut.at)]
    remove_unused(front)
    front.graph.inputs[:] = [value for value in front.graph.inputs if value.uses()]
    return front


def _without_sizes(front: ir.Model, cut: _Cut) -> _Cut:
    """``cut`` without the tensors of which sizes alone are read, and these are the same whatever is fed.

    As an output such a tensor, a map that anchors are laid over, would be written in float beside its codes, and the layer that
    makes it would run in float.
    """
    found = {value.name: value for value in normalize(ir.to_proto(front), free=False).graph.outputs}
    known = {name: sizes for name in cut.sizes if (sizes := _known(found[name])) is not None}
    left = [name for name in cut.at if name not in known]
    return cut._replace(at=left, sizes=[name for name in cut.sizes if name in left], known=known) if left else cut


def outputs_without_rows(model: onnx.ModelProto) -> tuple[str, ...]:
    """Outputs that have as many rows as are found, whatever the batch; none where all have a row for each image."""
    cut = _cut(model)
    return () if cut is None else tuple(cut.outputs)


def told_cut(metadata: Mapping[str, str]) -> str:
    """What the metadata of a quantized file say of where its model was cut, for people; "" where it was not."""
    try:
        found = json.loads(metadata.get(CUT_KEY, "null"))
    except (ValueError, RecursionError):
        return ""
    if not isinstance(found, dict) or not isinstance(found.get("node"), str) or not isinstance(found.get("at"), list):
        return ""
    at = first_of([quoted(str(name)) for name in found["at"]])
    node = bounded(found["node"], 80)
    layers, parameters = found.get("layers"), found.get("parameters")
    what = ""
    if isinstance(layers, int) and isinstance(parameters, int) and layers > 0:
        what = f" ({layers} layer{'s' if layers > 1 else ''} with {parameters:,} parameters)"
    return f"at {at}: what comes from {node} on{what} stays as it was, in float, since it has no row for each image"


def _form(model: onnx.ModelProto) -> ir.Model:
    return restructure(editable(model), opset=False)


def _inputs(model: onnx.ModelProto) -> Iterator[int]:
    """Which inputs of a model are fed."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return (i for i, value in enumerate(model.graph.input) if value.name not in constants)


def _cut(model: onnx.ModelProto) -> _Cut | None:
    """Where to cut; None where no output depends on how much is found."""
    if not any(node.op_type in COUNTING for graph in graphs(model) for node in graph.node):
        return None
    graph = infer_shapes(_form(model)).graph
    batches = _batches(graph.inputs)
    behind: set[ir.Node] = set()
    seen: set[ir.Node] = set()  # what the images reach by their values, not by their sizes alone
    first: ir.Node | None = None
    for node in graph:  # in order
        read = list(_read(node))
        if _counts(node) or any(value.producer() in behind for value in read):
            first = first or node
            behind.add(node)
        if node.op_type not in _SIZES and any(_is_fed(value) or value.producer() in seen for value in read):
            seen.add(node)
    outputs = [v for v in graph.outputs if v.producer() in behind and not _has_row(v, batches)]
    if first is None or not outputs:
        return None
    tail: set[ir.Node] = set()
    at: set[ir.Value] = set()
    valued: set[ir.Value] = set()  # of these more is read than their sizes
    waiting = [value.producer() for value in outputs]
    while waiting:
        last = waiting.pop()
        if last is None or last in tail:
            continue
        tail.add(last)
        for value in _read(last):
            maker = value.producer()
            if maker is None or maker.graph is not graph:
                continue
            if maker in seen and maker not in behind and _has_row(value, batches):
                at.add(value)
                if last.op_type not in _SIZES:
                    valued.add(value)
            else:  # it has no row either, or nothing of the images is in it
                waiting.append(maker)
    ordered = [v for node in graph for v in node.outputs if v in at]
    names, sizes = [v.name or "" for v in ordered], [v.name or "" for v in ordered if v not in valued]
    where = f"{first.op_type} {quoted(first.name)}" if first.name else first.op_type
    return _Cut(where, names, sizes, [value.name or "" for value in outputs], {})


def _batches(inputs: Sequence[ir.Value]) -> set[int | str | None]:
    """First sizes that are a batch: that of the images, which have the most axes, and free ones; others are settings."""
    widest = max(inputs, key=lambda value: len(value.shape or ()), default=None)
    found: set[int | str | None] = {first for first in map(_first, inputs) if isinstance(first, str)}
    return found | ({_first(widest)} if widest is not None else set())


def _begin_at(back: ir.Model, cut: _Cut) -> None:
    """Leave of a whole graph what lies behind ``cut``."""
    graph = back.graph
    made = {value.name: value for node in graph for value in node.outputs}
    graph.outputs[:] = [
        made[name] for name in cut.outputs
    ]  # first: what is cut off may be an output, too, of the front
    for name, sizes in cut.known.items():
        for node in {use.node: None for use in made[name].uses()}:
            if node.op_type in _SIZES:  # what else reads it is in front
                _be_constant(node, sizes)
    for name in cut.at:
        old = made[name]
        new = ir.Value(name=name, shape=old.shape, type=old.type)
        ir.convenience.replace_all_uses_with(old, new)
        old.name = None
        graph.inputs.append(new)
    name_all(remove_unused(back))
    graph.inputs[:] = [value for value in graph.inputs if value.uses()]


def _known(value: ir.Value) -> list[int] | None:
    """The sizes of a value whatever is fed, None where one is free."""
    sizes = [] if value.shape is None else [size for size in value.shape if isinstance(size, int)]
    return sizes if value.shape is not None and len(sizes) == len(value.shape) else None


def _be_constant(node: ir.Node, sizes: list[int]) -> None:
    """Put what a Shape or Size says of such a tensor in its place, under the name of its output."""
    start, end = (node.attributes.get_int(name, default) for name, default in (("start", 0), ("end", len(sizes))))
    said = np.array(sizes[start:end] if node.op_type == "Shape" else math.prod(sizes), np.int64)
    name, graph = node.outputs[0].name or "", node.graph
    assert graph is not None
    value = ir.Value(name=name, shape=ir.Shape(said.shape), type=ir.TensorType(ir.DataType.INT64))
    ir.convenience.replace_all_uses_with(node.outputs[0], value)
    node.outputs[0].name = None
    graph.remove(node, safe=True)
    value.const_value = ir.tensor(said, name=name)
    graph.register_initializer(value)


def _layers(back: ir.Model) -> dict[str, int]:
    """How many layers a tail has, and their parameters."""
    layers = [(node, index) for node in back.graph.all_nodes() if (index := weight_index(node)) is not None]
    weights = [constant(node.inputs[index]) for node, index in layers]
    return {"layers": len(layers), "parameters": sum(weight.size for weight in weights if weight is not None)}


def _counts(node: ir.Node) -> bool:
    """Whether a node, or one inside it, finds a number of things."""
    return node.op_type in COUNTING or any(inner.op_type in COUNTING for inner in _inside(node))


def _inside(node: ir.Node) -> Iterator[ir.Node]:
    for attribute in node.attributes.values():
        if isinstance(attribute, ir.Attr) and attribute.type == ir.AttributeType.GRAPH:
            yield from attribute.as_graph().all_nodes()


def _read(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, and what the graphs inside it read or hand out."""
    yield from (value for value in node.inputs if value is not None)
    for inner in _inside(node):
        yield from (value for value in inner.inputs if value is not None)
    for attribute in node.attributes.values():
        if isinstance(attribute, ir.Attr) and attribute.type == ir.AttributeType.GRAPH:
            yield from attribute.as_graph().outputs


def _values(model: ir.Model) -> Iterator[ir.Value]:
    """All values, those of the graphs inside nodes, too."""
    for graph in model.graphs():
        yield from graph.inputs
        yield from list(graph.initializers.values())
        for node in graph:
            yield from node.outputs


def _is_fed(value: ir.Value) -> bool:
    return value.producer() is None and value.is_graph_input()


def _has_row(value: ir.Value, batches: set[int | str | None]) -> bool:
    return _first(value) in batches - {None}


def _same_opset(tail: ir.Model, whole: ir.Model) -> None:
    """Bring ``tail`` to the opset of ``whole``.

    Raises:
        ExportError: a node is not there in it.
    """
    opset = whole.opset_imports.get("", 0)
    try:
        lower_opset(raise_opset(tail, opset), opset)
    except ModelError as error:
        raise ExportError(f"{error}: what lies behind the quantized part has to have its opset") from error


def _first(value: ir.Value) -> int | str | None:
    """The size of the first axis, a number or a name; None where nothing is known."""
    if value.shape is None or not len(value.shape):
        return None
    size = value.shape[0]
    return size if isinstance(size, int) else size.value
