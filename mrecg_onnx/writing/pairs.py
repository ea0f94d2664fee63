"""Q/DQ pairs of a written graph: what is dequantized, what made codes, and what of."""

from __future__ import annotations

import onnx_ir as ir

from mrecg_onnx.converters.passes.values import unique_name
from mrecg_onnx.planning import PRESERVING_OPS, WEIGHTED_OPS, readers
from mrecg_onnx.writing.constants import array_of

__all__ = [
    "bounds_channels",
    "dequantizers",
    "insert_bound",
    "is_constant",
    "moved_from",
    "parts_an_add",
    "quantized_value",
    "quantizer_of",
    "unbounded",
]


def dequantizers(model: ir.Model) -> list[tuple[ir.Node, ir.Value, ir.Value, ir.Value | None]]:
    """Every DequantizeLinear with its codes, scale and zero point."""
    found = []
    for node in model.graph:
        if node.op_type == "DequantizeLinear":
            codes, scale, zero = (*node.inputs, None)[:3]
            assert codes is not None
            assert scale is not None
            found.append((node, codes, scale, zero))
    return found


def quantizer_of(codes: ir.Value | None) -> ir.Node | None:
    """The QuantizeLinear that made ``codes``, through ops on codes; None for constants."""
    maker = codes.producer() if codes is not None else None
    while maker is not None and maker.op_type != "QuantizeLinear":
        before = maker.inputs[0]
        maker = before.producer() if before is not None else None
    return maker


def quantized_value(quantize: ir.Node) -> ir.Value | None:
    """What is quantized, before a Clip to the ends of codes around 0; that of a Relu or Relu6 counts as an op of its own."""
    source = quantize.inputs[0]
    maker = source.producer() if source is not None else None
    if maker is not None and maker.op_type == "Clip" and len(maker.inputs) > 1 and is_constant(maker.inputs[1]):
        return maker.inputs[0] if array_of(maker.inputs[1]) < 0 else source
    return source


def unbounded(quantize: ir.Node) -> bool:
    """True for a QuantizeLinear of what a convolution makes, through a Relu, too, with no Clip in between."""
    if quantize.op_type != "QuantizeLinear":
        return False
    maker = quantize.inputs[0].producer() if quantize.inputs[0] is not None else None
    if maker is not None and maker.op_type == "Relu":
        maker = maker.inputs[0].producer() if maker.inputs[0] is not None else None
    return maker is not None and maker.op_type in {"Conv", "ConvTranspose"}


def moved_from(quantize: ir.Node) -> ir.Node | None:
    """The DequantizeLinear whose values ``quantize`` reads on the same grid, through ops that only move them; None without."""
    maker = quantize.inputs[0].producer() if quantize.inputs[0] is not None else None
    while maker is not None and maker.op_type in PRESERVING_OPS:
        maker = maker.inputs[0].producer() if maker.inputs[0] is not None else None
    same = maker is not None and maker.op_type == "DequantizeLinear"
    return maker if same and all(maker.inputs[i] is quantize.inputs[i] for i in (1, 2)) else None  # type: ignore[union-attr]


def is_constant(bound: ir.Value | None) -> bool:
    """True for a bound that is a constant, as all that the exporter writes are; those of the user's may be computed."""
    return bound is not None and bound.const_value is not None


def _from_layer(value: ir.Value | None) -> bool:
    """True for what a weighted layer makes for a single use; the Add of its bias belongs to it."""
    maker = value.producer() if value is not None else None
    if maker is None or len(list(value.uses())) != 1 or value.is_graph_output():  # type: ignore[union-attr]
        return False
    if maker.op_type == "Add":
        return any(v is not None and v.const_value is not None for v in maker.inputs) and any(
            map(_from_layer, maker.inputs)
        )
    if maker.op_type not in WEIGHTED_OPS:
        return False
    held = [v.producer() if v is not None else None for v in maker.inputs]
    stored = [node.inputs[0] if node is not None and node.op_type == "DequantizeLinear" else None for node in held]
    return any(v is not None and v.const_value is not None for v in (*maker.inputs, *stored))


def parts_an_add(quantize: ir.Node) -> bool:
    """True if what a layer makes for one Add is quantized on the way, and nothing comes to that Add straight from a layer."""
    codes = quantize.outputs[0]
    if not _from_layer(quantized_value(quantize)) or len(list(codes.uses())) != 1:
        return False
    values = readers(codes)[0].outputs[0]
    adds = readers(values)
    if len(list(values.uses())) != 1 or adds[0].op_type != "Add":
        return False
    operands = adds[0].inputs
    return not any(v is None or v.const_value is not None or _from_layer(v) for v in operands)


def bounds_channels(quantize: ir.Node) -> bool:
    """True where the codes meet a largest one a channel, behind their Clip or without one."""
    behind = readers(quantize.outputs[0])
    behind += [reader for node in behind if node.op_type == "Clip" for reader in readers(node.outputs[0])]
    return any(node.op_type == "Min" for node in behind)


def insert_bound(graph: ir.Graph, quantize: ir.Node, node: ir.Node) -> None:
    """Put ``node``, a bound of values, between a QuantizeLinear and what it reads."""
    source, made = quantize.inputs[0], node.outputs[0]
    assert source is not None
    made.name, made.shape, made.type = unique_name(graph, f"{source.name}_bounded"), source.shape, source.type
    graph.insert_before(quantize, node)
    quantize.replace_input_with(0, made)
