"""Quant nodes of qonnx's domain, and the QuantizeLinear, Clip and DequantizeLinear that say the same: the container ``qonnx``.

A Quant node has the values, a scale, a zero point and a bit width as inputs, all float32, and whether codes are signed and narrow
as attributes. Names and shapes are those of qonnx's own conversion (QCDQToQuant, qonnx 1.0.0): ``Quant_TENSOR`` with
``Quant_TENSOR_bitwidth``, parameters a channel shaped to broadcast, a zero point of 0 as one number.

qonnx's Quant adds the zero point before it rounds, ties to even, ONNX after it: values halfway between two codes differ where a
zero point is odd. Around 0 both are the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mrecg_onnx.converters.errors import ExportError
from mrecg_onnx.converters.passes.values import claim
from mrecg_onnx.planning import readers
from mrecg_onnx.writing.constants import Array, Constants, along, array_of, stored_tensor
from mrecg_onnx.writing.pairs import dequantizers

__all__ = ["DOMAIN", "from_quant", "names_taken", "to_quant"]

#: Domain of the nodes, and its version.
DOMAIN, VERSION = "qonnx.custom_op.general", 1
#: Widest codes: Q/DQ of 8 bits is what a node is read back to.
MOST_BITS = 8


@dataclass(frozen=True)
class _Quantizer:
    """What one quantizer computes.

    Attributes:
        made: their dequantized form.
        scale: float32, shape () or (C,).
        zero: zero point, int8 or uint8, of the scale's shape.
        ends: smallest and largest code.
        axis: channel axis, None for one scale.
    """

    made: ir.Value
    scale: Array
    zero: Array
    ends: tuple[int, int]
    axis: int | None

    @property
    def signed(self) -> bool:
        """Codes are signed."""
        return self.zero.dtype == np.int8

    @property
    def bits(self) -> int:
        """Width: the bits that count the codes."""
        low, high = self.ends
        return (high - low).bit_length()

    @property
    def narrow(self) -> bool:
        """The smallest signed code is left out."""
        return self.signed and self.ends[0] == -self.ends[1]

    def check(self) -> None:
        """Refuse codes that no Quant node has.

        Raises:
            ExportError: they are not all that a width has.
        """
        low, high = self.ends
        top = 1 << (self.bits - self.signed)
        whole = (-top + self.narrow, top - 1) if self.signed else (0, top - 1)
        if (low, high) != whole:
            raise ExportError(f"'{self.made.name}' has codes {low}..{high}, which are not all of {self.bits} bits")


def _quantizer(dequantize: ir.Node) -> tuple[_Quantizer, list[ir.Node]] | None:
    """The quantizer that ``dequantize`` ends, and its nodes; None where its codes are not made by one."""
    codes, scale, zero = dequantize.inputs[:3]
    maker = codes.producer() if codes is not None else None
    nodes = [dequantize]
    assert zero is not None
    kind = np.iinfo(array_of(zero).dtype)
    ends = int(kind.min), int(kind.max)
    if maker is not None and maker.op_type == "Clip":
        ends = int(array_of(maker.inputs[1])), int(array_of(maker.inputs[2]))
        nodes.append(maker)
        maker = maker.inputs[0].producer() if maker.inputs[0] is not None else None
    if maker is None or maker.op_type != "QuantizeLinear":
        return None
    nodes.append(maker)
    for node in nodes[1:]:
        if len(readers(node.outputs[0])) > 1 or node.outputs[0].is_graph_output():
            raise ExportError(f"'{node.outputs[0].name}' are codes that several nodes read")
    values = array_of(scale)
    axis = dequantize.attributes.get_int("axis", 1) if values.ndim else None
    found = _Quantizer(dequantize.outputs[0], values, array_of(zero), ends, axis)
    found.check()
    return found, nodes


def names_taken(model: ir.Model) -> set[str | None]:
    """Names of all tensors of the graph."""
    graph = model.graph
    made = {value.name for node in graph for value in node.outputs}
    return made | set(graph.initializers) | {value.name for value in graph.inputs}


def to_quant(model: ir.Model) -> None:
    """Every QuantizeLinear with its Clip and DequantizeLinear becomes a Quant node, in place.

    Raises:
        ExportError: codes are used in a way that Quant nodes have not.
    """
    graph, constants = model.graph, Constants(model)
    for node, codes, *_ in dequantizers(model):
        if codes.is_initializer():
            raise ExportError(
                f"'{node.name}' has stored codes: the container qonnx is made of files for that target, add --target qonnx"
            )
    found = [entry for node in graph if node.op_type == "DequantizeLinear" and (entry := _quantizer(node)) is not None]
    _forget(constants, [node for _, nodes in found for node in nodes])
    for quantizer, nodes in found:
        source = nodes[-1].inputs[0]  # may have been made anew by now
        assert source is not None
        name, shape = quantizer.made.name or "", source.shape
        scale, zero = quantizer.scale, quantizer.zero if quantizer.zero.any() else np.zeros(())
        if quantizer.axis is not None:
            assert shape is not None
            scale, zero = (along(array, quantizer.axis, len(shape)) for array in (scale, zero))
        behind = source if source.is_initializer() else None
        inputs = [source]
        for part, array in (("scale", scale), ("zero_point", zero)):
            behind = constants.new(constants.name(f"{_stem(name)}_{part}"), array, ir.DataType.FLOAT, behind)
            inputs.append(behind)
        label = constants.name(f"Quant_{source.name}")
        width = constants.name(f"{label}_bitwidth")
        inputs.append(constants.new(width, np.array(quantizer.bits), ir.DataType.FLOAT, behind))
        attributes = {"narrow": int(quantizer.narrow), "rounding_mode": "ROUND", "signed": int(quantizer.signed)}
        made = ir.Value(name=name, shape=quantizer.made.shape or shape, type=ir.TensorType(ir.DataType.FLOAT))
        quant = ir.node("Quant", inputs, attributes, domain=DOMAIN, name=label, outputs=[made])
        _replace(graph, nodes, quantizer.made, quant)
    constants.write()
    model.opset_imports[DOMAIN] = VERSION


def from_quant(model: ir.Model) -> None:
    """Every Quant node becomes QuantizeLinear, Clip and DequantizeLinear, in place; Clips say only what the type does not.

    Raises:
        ExportError: a node lacks a stored scale, zero point or width, that is none of 1 to 8 bits, or a scale runs along
            none of its tensor's axes.
    """
    graph, constants = model.graph, Constants(model)
    quants = [n for n in graph if n.op_type == "Quant" and n.domain == DOMAIN]
    for node in quants:
        if len(node.inputs) != 4 or any(v is None or stored_tensor(v) is None for v in node.inputs[1:]):
            raise ExportError(f"'{node.name}' is a Quant node without a stored scale, zero point and width")
    places = {id(n): n.inputs[1] for n in quants}
    constants.taken -= {v.name for n in quants for v in n.inputs[1:4] if v is not None} | {n.name for n in quants}
    labels = {n.name for n in graph}
    for node in quants:
        source, made = node.inputs[0], node.outputs[0]
        assert source is not None
        scale, zero, width = (array_of(v) for v in node.inputs[1:4])
        bits, signed = _width(width, made.name), bool(node.attributes.get_int("signed", 1))
        narrow = bool(node.attributes.get_int("narrow", 1))
        kind = ir.DataType.INT8 if signed else ir.DataType.UINT8
        top = (1 << (bits - signed)) - 1
        ends = (-top - (not narrow), top) if signed else (0, top)
        axis = _axis(scale, source)
        scale = scale.reshape(-1) if axis is not None else scale
        zeros = np.broadcast_to(zero.reshape(-1), scale.shape) if scale.ndim else zero
        stem, behind = _stem(made.name or ""), source if source.is_initializer() else places[id(node)]
        new: dict[str, ir.Value] = {}
        for part, array, dtype in (("scale", scale, ir.DataType.FLOAT), ("zero_point", zeros, kind)):
            new[part] = behind = constants.new(constants.name(f"{stem}_{part}"), array, dtype, behind)
        attributes = {"axis": axis} if axis is not None else {}
        pair = [new["scale"], new["zero_point"]]
        quantize = ir.node("QuantizeLinear", [source, *pair], attributes, name=claim(f"{stem}_QuantizeLinear", labels))
        nodes, codes = [quantize], quantize.outputs[0]
        _describe(codes, constants.name(f"{stem}_quantized"), source, kind)
        if ends != (int(np.iinfo(kind.numpy()).min), int(np.iinfo(kind.numpy()).max)):
            bounds = []
            for part, end in zip(("low", "high"), ends, strict=True):
                behind = constants.new(constants.name(f"{stem}_{part}"), np.array(end), kind, behind)
                bounds.append(behind)
            clip = ir.node("Clip", [codes, *bounds], name=claim(f"{stem}_Clip", labels))
            codes = clip.outputs[0]
            _describe(codes, constants.name(f"{stem}_clipped"), source, kind)
            nodes.append(clip)
        value = ir.Value(name=made.name, shape=made.shape, type=made.type)
        name = claim(f"{stem}_DequantizeLinear", labels)
        nodes.append(ir.node("DequantizeLinear", [codes, *pair], attributes, name=name, outputs=[value]))
        graph.insert_before(node, nodes[:-1])
        old = list(node.inputs[1:4])
        _replace(graph, [node], made, nodes[-1])
        for entry in old:
            if entry is not None and not entry.uses():
                constants.drop(entry)
    constants.write()
    model.opset_imports.pop(DOMAIN, None)


def _width(stored: Array, name: str | None) -> int:
    """Bits of the codes of ``name``, as a node stores them."""
    if stored.size != 1 or not 1 <= float(stored.reshape(())) <= MOST_BITS:
        raise ExportError(f"'{name}' is quantized to a width that is not 1 to {MOST_BITS} bits")
    return int(stored.reshape(()))


def _stem(name: str) -> str:
    """What a quantizer's parts are called after, by the name of what it makes."""
    return name.removesuffix("_dequantized")


def _describe(value: ir.Value, name: str, like: ir.Value, kind: ir.DataType) -> None:
    value.name, value.shape, value.dtype = name, like.shape, kind


def _axis(scale: Array, source: ir.Value) -> int | None:
    """The axis that a scale shaped to broadcast runs along; where all its sizes are 1, one of ``source`` of size 1."""
    if not scale.ndim:
        return None
    assert source.shape is not None
    for sizes, wanted in ((scale.shape, False), (tuple(source.shape), True)):
        found = [i for i, size in enumerate(sizes) if (size == 1) is wanted]
        if found:
            return found[0]
    raise ExportError(f"'{source.name}' has a scale of shape {scale.shape}, which runs along none of its axes")


def _forget(constants: Constants, nodes: list[ir.Node]) -> None:
    """Take the constants that only ``nodes`` read out of the file, and free their names and those of codes."""
    mine = {id(node) for node in nodes}
    for value in dict.fromkeys(v for node in nodes for v in node.inputs[1:] if v is not None):
        if stored_tensor(value) is not None and all(id(user) in mine for user in readers(value)):
            constants.drop(value)
            constants.taken.discard(value.name)
    for node in nodes:
        if node.op_type != "DequantizeLinear":
            constants.taken.discard(node.outputs[0].name)


def _replace(graph: ir.Graph, old: list[ir.Node], made: ir.Value, new: ir.Node) -> None:
    """Put ``new`` in the place of ``old``, the first of which made ``made``."""
    graph.insert_before(old[0], new)
    for user, index in list(made.uses()):
        user.replace_input_with(index, new.outputs[0])
    for i, output in enumerate(graph.outputs):
        if output is made:
            graph.outputs[i] = new.outputs[0]
    for node in old:
        graph.remove(node, safe=True)
