"""Steps towards the form that qonnx reads (QCDQ: QuantizeLinear, Clip, DequantizeLinear), for FINN and hls4ml.

Every quantizer stands in the graph whole, weights' too, and its width is what its Clip counts. What else bounds values is
written in front of it. None of the steps changes what is computed:

* weights are stored as the values of their codes, which QuantizeLinear gives back: c s / s is c within a part in 2^23;
* codes moved by half of their number stand for the same values;
* what ops that only move values make of values on a grid is on that grid: quantizing it again returns it.
"""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir

from mrecg_onnx.converters.errors import ExportError, ModelError
from mrecg_onnx.converters.metadata_keys import BITS_KEY
from mrecg_onnx.converters.passes.structure import remove_unused
from mrecg_onnx.converters.passes.values import add_initializer, claim, unique_name
from mrecg_onnx.planning import readers
from mrecg_onnx.targets import Target
from mrecg_onnx.writing.constants import along, array_of
from mrecg_onnx.writing.pairs import bounds_channels, dequantizers, insert_bound, moved_from, quantizer_of
from mrecg_onnx.writing.quant_nodes import from_quant, names_taken, to_quant
from mrecg_onnx.writing.rule_checks import no_channel_widths

__all__ = [
    "codes_by_sign",
    "plain_moves",
    "shared_readers",
    "state_widths",
    "stated_attributes",
    "stored_values",
]


def _widths(model: ir.Model, where: str) -> dict[str, int]:
    """Bits by tensor, as the file notes them."""
    try:
        found = json.loads(model.metadata_props.get(BITS_KEY, "{}"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where}: its metadata entry {BITS_KEY} cannot be read") from error
    if not isinstance(found, dict) or not all(type(bits) is int and 2 <= bits <= 32 for bits in found.values()):
        raise ModelError(f"{where}: its metadata entry {BITS_KEY} cannot be read")
    return found


def state_widths(model: ir.Model, where: str, target: Target) -> None:
    """Codes are clipped to all that their width has; narrower bounds become a Relu or a Clip of values in front."""
    graph, widths = model.graph, _widths(model, where)
    for quantize in [n for n in graph if n.op_type == "QuantizeLinear"]:
        if bounds_channels(quantize):
            raise no_channel_widths(where, target, quantize)
        clip = next((n for n in readers(quantize.outputs[0]) if n.op_type == "Clip"), None)
        if clip is None:
            continue
        scale, zero = array_of(quantize.inputs[1]), int(array_of(quantize.inputs[2]))
        low, high = (int(array_of(end)) for end in clip.inputs[1:3])
        name = (quantize.inputs[1].name or "").removesuffix("_scale")  # type: ignore[union-attr]
        bits = max(widths.get(name, 2), high.bit_length(), zero.bit_length())
        top = (1 << bits) - 1
        if low == zero > 0 and high == top:
            insert_bound(graph, quantize, ir.node("Relu", [quantize.inputs[0]], name=f"{quantize.name}_Relu"))
        elif (low, high) != (0, top):
            ends = [
                add_initializer(graph, f"{name}_{end}_value", (np.float32(code - zero) * scale).astype(np.float32))
                for end, code in (("low", low), ("high", high))
            ]
            insert_bound(graph, quantize, ir.node("Clip", [quantize.inputs[0], *ends], name=f"{quantize.name}_Clip"))
        for index, end in ((1, 0), (2, top)):
            clip.replace_input_with(index, add_initializer(graph, f"{name}_end", np.array(end, np.uint8)))


def plain_moves(model: ir.Model, _where: str, _target: Target) -> None:
    """No second quantizer of one grid behind ops that only move values; where one is an output, it keeps the first one's Clip."""
    graph = model.graph
    for quantize in [n for n in graph if n.op_type == "QuantizeLinear"]:
        first = moved_from(quantize)
        if first is None:
            continue
        clip = first.inputs[0].producer() if first.inputs[0] is not None else None
        behind = [n for n in readers(quantize.outputs[0]) if n.op_type == "DequantizeLinear"]
        for node in behind:
            if node.outputs[0].is_graph_output():
                continue
            for user, index in list(node.outputs[0].uses()):
                user.replace_input_with(index, quantize.inputs[0])
            graph.remove(node, safe=True)
        rest = [n for n in behind if n.outputs[0].is_graph_output()]
        if not rest:
            graph.remove(quantize, safe=True)
        elif clip is not None and clip.op_type == "Clip":
            own = ir.node("Clip", [quantize.outputs[0], *clip.inputs[1:]], name=f"{quantize.name}_Clip")
            own.outputs[0].name = unique_name(graph, f"{quantize.outputs[0].name}_clipped")
            graph.insert_after(quantize, own)
            for node in rest:
                node.replace_input_with(0, own.outputs[0])


def codes_by_sign(model: ir.Model, _where: str, _target: Target) -> None:
    """Codes of which the middle one stands for 0 are int8 around 0; others stay uint8."""
    graph = model.graph
    for quantize in [n for n in graph if n.op_type == "QuantizeLinear" and n.inputs[0].const_value is None]:  # type: ignore[union-attr]
        zero = quantize.inputs[2]
        assert zero is not None
        clip = next((n for n in readers(quantize.outputs[0]) if n.op_type == "Clip"), None)
        top = int(array_of(clip.inputs[2])) if clip is not None else 255
        half = (top + 1) // 2
        if array_of(zero).dtype != np.uint8 or int(array_of(zero)) != half:
            continue
        own = add_initializer(graph, f"{zero.name}_int8", np.array(0, np.int8))
        behind = [clip] if clip is not None else []
        ends = readers((clip or quantize).outputs[0])
        for node in (quantize, *(n for n in ends if n.op_type == "DequantizeLinear")):
            node.replace_input_with(2, own)
        for node in behind:
            for index, code in ((1, -half), (2, half - 1)):
                name = f"{node.inputs[index].name}_int8"  # type: ignore[union-attr]
                node.replace_input_with(index, add_initializer(graph, name, np.array(code, np.int8)))


def stored_values(model: ir.Model, where: str, _target: Target) -> None:
    """Weights are stored as values, quantized in the graph: signed around 0 where their codes allow it.

    Raises:
        ExportError: quantizing the values would not give the codes.
    """
    graph, widths = model.graph, _widths(model, where)
    for node, codes, scale, zero in dequantizers(model):
        if codes.const_value is None or codes.dtype != ir.DataType.INT8 or zero is None:
            continue
        kept, steps = array_of(codes).astype(np.int16), array_of(scale)
        axis = node.attributes.get_int("axis", 1) if steps.ndim else 0
        wide, name = along(steps, axis, kept.ndim), (codes.name or "").removesuffix("_quantized")
        bits = widths.get(name, 8)
        top = (1 << (bits - 1)) - 1
        ends, kind, shift = (-top - (bits < 8), top), ir.DataType.INT8.numpy(), np.zeros(steps.shape, np.int16)
        if kept.min() < ends[0] or kept.max() > top:
            lines = np.moveaxis(kept, axis, 0).reshape(kept.shape[axis], -1) if steps.ndim else kept.reshape(1, -1)
            ends, kind, shift = (
                (0, (1 << bits) - 1),
                ir.DataType.UINT8.numpy(),
                np.maximum(0, -lines.min(1)).reshape(steps.shape),
            )
        moved = kept + along(shift, axis, kept.ndim)
        values = (kept.astype(np.float32) * wide).astype(np.float32)
        again = np.clip(np.rint(values / wide) + along(shift, axis, kept.ndim), *ends)
        if not np.array_equal(again, moved):
            raise ExportError(f"{where}: the weight '{name}' does not quantize to its {bits}-bit codes")
        taken = names_taken(model)
        stored = add_initializer(graph, claim(name, taken), values)
        point = add_initializer(graph, f"{name}_point", shift.astype(kind))
        attributes = {"axis": axis} if steps.ndim else {}
        quantize = ir.node("QuantizeLinear", [stored, scale, point], attributes, name=f"{name}_QuantizeLinear")
        quantize.outputs[0].name = claim(f"{name}_codes", taken)
        bounds = [add_initializer(graph, f"{name}_{end}", np.array(c, kind)) for end, c in zip("ab", ends, strict=True)]
        clip = ir.node("Clip", [quantize.outputs[0], *bounds], name=f"{name}_Clip")
        clip.outputs[0].name = claim(f"{name}_clipped", taken)
        graph.insert_before(node, [quantize, clip])
        node.replace_input_with(0, clip.outputs[0])
        node.replace_input_with(2, point)


def stated_attributes(model: ir.Model, _where: str, _target: Target) -> None:
    """Convolutions and pools say what is the default, too: qonnx's channels-last operators ask for all of it."""
    for node in [n for n in model.graph if n.op_type in {"Conv", "MaxPool", "AveragePool"}]:
        source, pool = node.inputs[int(node.op_type == "Conv")], node.op_type != "Conv"
        if node.attributes.get_string("auto_pad", "NOTSET") not in {"NOTSET", "VALID"} or source is None:
            continue
        sizes = node.attributes.get_ints("kernel_shape", []) if pool or source.shape is None else list(source.shape)[2:]
        axes = len(sizes)
        wanted = {"kernel_shape": sizes, "strides": [1] * axes, "pads": [0] * (2 * axes)}
        if node.op_type != "AveragePool":
            wanted["dilations"] = [1] * axes
        for name, values in wanted.items():
            known = [value for value in values if isinstance(value, int)]
            if name not in node.attributes and axes and len(known) == len(values):
                node.attributes[name] = ir.AttrInt64s(name, known)
        if not pool and "group" not in node.attributes:
            node.attributes["group"] = ir.AttrInt64("group", 1)


def shared_readers(model: ir.Model, _where: str, _target: Target) -> None:
    """One DequantizeLinear for all that read the same values; then every quantizer has nodes and constants of its own."""
    graph = model.graph
    first: dict[tuple[int, ...], ir.Node] = {}
    for node, *_ in dequantizers(model):
        if quantizer_of(node.inputs[0]) is None:
            continue
        key = tuple(map(id, node.inputs))
        kept = first.setdefault(key, node)
        if kept is node:
            continue
        if node.outputs[0].is_graph_output() and not kept.outputs[0].is_graph_output():
            first[key], kept, node = node, node, kept  # noqa: PLW2901 - the output keeps its name
        if not node.outputs[0].is_graph_output():
            for user, index in list(node.outputs[0].uses()):
                user.replace_input_with(index, kept.outputs[0])
            graph.remove(node, safe=True)
    graph.sort()
    remove_unused(model)  # frees the names of what was replaced
    to_quant(model)
    from_quant(model)
