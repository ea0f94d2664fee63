"""Whether a file keeps the rules of a target; for files of any origin."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir

from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.converters.text import with_article
from mrecg_onnx.planning import CLAMPS, PRESERVING_OPS, WEIGHTED_OPS, readers
from mrecg_onnx.targets import Target
from mrecg_onnx.writing.constants import array_of
from mrecg_onnx.writing.pairs import dequantizers, moved_from, parts_an_add, quantizer_of, unbounded

__all__ = ["broken_rules", "no_channel_widths", "remarks"]

#: Types of the container ``typed``, whose weights may need a zero point.
_TYPED = frozenset({ir.DataType.UINT4, ir.DataType.INT4})
_CODES = frozenset({ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.UINT16})


def broken_rules(model: onnx.ModelProto, target: Target) -> list[str]:
    """What in ``model`` breaks the rules of ``target``, one line each; empty where all hold. For files of any origin."""
    graph = ir.from_proto(model)
    opset = graph.opset_imports.get("", 0)
    low, high = target.opset
    found = [] if low <= opset <= high else [f"opset {opset} is not in {low}..{high}"]
    for node in graph.graph:
        if node.op_type in _CHECKS:
            found += _CHECKS[node.op_type](node, target)
    return found


def remarks(model: onnx.ModelProto, target: Target) -> list[str]:
    """What ``target`` takes but those behind it do not want, one line each: zero points of a file not made for it."""
    if target.zero_point != "by-sign":
        return []
    pairs = [(quantizer_of(codes), zero) for _, codes, _, zero in dequantizers(ir.from_proto(model))]
    shifted = [
        quantize for quantize, zero in pairs if quantize is not None and zero is not None and array_of(zero).any()
    ]
    weights = sum(map(_stored, shifted))
    counts = {"weights": weights, "activations": len(shifted) - weights}
    said = " and ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    line = (
        f"{said} have zero points that are not 0: qonnx runs them, FINN takes none, and values halfway between two codes may "
        f"be rounded otherwise; quantize with --target {target.name}"
    )
    return [line] if said else []


def _stored(quantize: ir.Node) -> bool:
    """True for the quantizer of a weight that is stored as values."""
    return quantize.inputs[0] is not None and quantize.inputs[0].const_value is not None


def _check_quantize(node: ir.Node, target: Target) -> list[str]:
    zero = array_of(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.array(0, np.uint8)
    if _stored(node):
        return []
    found = []
    kinds = (
        target.activation,
        *(("int8",) if target.zero_point == "by-sign" else ()),
        *(f"uint{bits}" for bits in target.wide_abits),
    )
    if zero.dtype.name not in kinds:
        found.append(f"'{node.name}' writes {zero.dtype.name}, not {' or '.join(kinds)}")
    if target.zero_point == "zero" and zero.any():
        found.append(f"'{node.name}' has the zero point {int(zero.reshape(-1)[0])}, not 0")
    if target.add_operands == "residual" and parts_an_add(node):
        found.append(f"'{node.name}' parts an Add from the layer in front of it")
    if target.full_bounds == "float" and unbounded(node):
        found.append(f"'{node.name}' quantizes what a convolution makes without a Clip in front")
    if target.moved_values == "plain" and moved_from(node) is not None and not _handed_out(node):
        found.append(f"'{node.name}' quantizes again what was only moved")
    users = {user.op_type for reader in readers(node.outputs[0]) for v in reader.outputs for user in readers(v)}
    if target.layer_outputs == "float" and users and not users & _integer_readers(target):
        found.append(f"'{node.name}' quantizes for float ops alone ({', '.join(sorted(users))})")
    return found


def _integer_readers(target: Target) -> frozenset[str]:
    """Ops that read quantized values, or pass them on to such."""
    return (
        WEIGHTED_OPS | PRESERVING_OPS | CLAMPS | frozenset(target.integer_ops) | {"QuantizeLinear", "DequantizeLinear"}
    )


def _handed_out(quantize: ir.Node) -> bool:
    """True where an output of the graph comes from behind ``quantize``."""
    behind = readers(quantize.outputs[0])
    behind += [n for clip in behind if clip.op_type == "Clip" for n in readers(clip.outputs[0])]
    return any(v.is_graph_output() for node in behind for v in node.outputs)


def _check_dequantize(node: ir.Node, target: Target) -> list[str]:
    codes = node.inputs[0]
    maker = quantizer_of(codes)
    if maker is not None and _stored(maker):
        return [] if target.stored_weights == "values" else [f"'{node.name}' has weights that are stored as values"]
    zero = array_of(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros((), np.int8)
    constant = maker is None  # stored, or unpacked from what is
    kind = codes.dtype if codes is not None else None
    found = []
    if constant and target.stored_weights == "values":
        found.append(f"'{node.name}' has codes without a quantizer")
    if target.dequantizers == "shared" and codes is not None and len(readers(codes)) > 1:
        found.append(f"'{codes.name}' are codes that several nodes read")
    if len(node.inputs) < 3 and target.bounds == "width":
        found.append(f"'{node.name}' has no zero point written out")
    if constant and kind == ir.DataType.INT32 and target.bias == "float":
        found.append(f"'{node.name}' is an int32 bias, it should be float")
    if constant and kind not in _TYPED and zero.any():
        found.append(f"'{node.name}' has weights with a zero point that is not 0")
    if not constant and array_of(node.inputs[1]).ndim and target.float_layers == "one-scale":
        found.append(f"'{node.name}' has activations with a scale a channel")
    if not constant and target.zero_point == "zero" and zero.any():
        found.append(f"'{node.name}' has the zero point {int(zero.reshape(-1)[0])}, not 0")
    return found


def _check_codes(node: ir.Node, target: Target) -> list[str]:
    source = node.inputs[0]
    made = source.producer() if source is not None else None
    by_quantizer = made is not None and made.op_type == "QuantizeLinear"
    on_codes = by_quantizer or (source is not None and source.dtype is not None and source.dtype in _CODES)
    if not on_codes or target.bounds in {"codes", "either"}:
        return []
    if target.bounds != "width" or node.op_type != "Clip":
        return [f"'{node.name}' is {with_article(node.op_type)} of codes"]
    low, high = (int(array_of(end)) for end in node.inputs[1:3])
    counts = (high - low + 1, high - low + 2)
    fits = low in {0, -high, -high - 1} and any(count & (count - 1) == 0 for count in counts)
    return [] if fits else [f"'{node.name}' bounds codes to {low}..{high}, which says no width"]


def _check_copy(node: ir.Node, target: Target) -> list[str]:
    idle = node.attributes.get_float("alpha", 0.01) == 1.0
    return [f"'{node.name}' is a LeakyRelu that returns its input"] if idle and target.branches == "direct" else []


_CHECKS: dict[str, Callable[[ir.Node, Target], list[str]]] = {
    "QuantizeLinear": _check_quantize,
    "DequantizeLinear": _check_dequantize,
    "Clip": _check_codes,
    "Min": _check_codes,
    "Pad": _check_codes,
    "LeakyRelu": _check_copy,
}


def no_channel_widths(where: str, target: Target, quantize: ir.Node) -> SettingsError:
    """What is said of a quantizer whose channels have widths of their own, where ``target`` has one for all."""
    value = quantize.inputs[0]
    return SettingsError(
        f"{where}: '{value.name if value is not None else ''}' has widths a channel, which target {target.name} cannot hold; "
        "quantize with --channel-bits weights or off"
    )
