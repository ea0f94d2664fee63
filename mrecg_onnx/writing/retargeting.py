"""From the file for ONNX Runtime (:mod:`mrecg_onnx.writing.qdq`) to the form that a target's rules ask for.

Every step keeps what the graph computes, bit for bit, where it is run as written:

* a Clip of values at ``(code - zero_point) * scale`` in front of QuantizeLinear gives the codes that a Clip of codes gives
  behind it: quantization is monotone and these values are on the grid; at the ends of the type, so does none;
* a quantizer in front of such a Clip, of the same grid as the one behind it, gives the codes that the Clip would have bounded:
  the one behind finds values on its grid;
* codes shifted by the zero point stand for the same values, and fit int8 around 0 for every width up to 7 bits;
* a bias in float is its codes times its scale, which is what DequantizeLinear computes;
* LeakyRelu with slope 1 and MaxPool of one element return their input;
* what qonnx reads is explained in :mod:`mrecg_onnx.writing.qcdq`.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir

from mrecg_onnx.converters.errors import ExportError, ModelError, SettingsError
from mrecg_onnx.converters.metadata_keys import TARGET_KEY
from mrecg_onnx.converters.passes.opset import raise_opset
from mrecg_onnx.converters.passes.structure import remove_unused
from mrecg_onnx.converters.passes.values import add_initializer, unique_name
from mrecg_onnx.planning import readers
from mrecg_onnx.targets import Target, note_requirements, stored_note
from mrecg_onnx.writing.constants import along, array_of
from mrecg_onnx.writing.containers import container_of
from mrecg_onnx.writing.pairs import (
    bounds_channels,
    dequantizers,
    insert_bound,
    is_constant,
    parts_an_add,
    quantized_value,
    quantizer_of,
    unbounded,
)
from mrecg_onnx.writing.qcdq import (
    codes_by_sign,
    plain_moves,
    shared_readers,
    state_widths,
    stated_attributes,
    stored_values,
)
from mrecg_onnx.writing.readers import part_readers
from mrecg_onnx.writing.rule_checks import broken_rules, no_channel_widths

__all__ = ["retarget", "target_of"]

_POOLS = frozenset({"AveragePool", "GlobalAveragePool"})


def target_of(model: onnx.ModelProto, where: str = "the model") -> str:
    """The target that a file of :func:`mrecg_onnx.quantize` was written for.

    Raises:
        ModelError: its metadata are not to be read.
    """
    entries = {entry.key: entry.value for entry in model.metadata_props}
    return str(stored_note(entries, TARGET_KEY, where).get("name", "ort"))


def retarget(model: onnx.ModelProto, target: Target, where: str = "the model") -> onnx.ModelProto:
    """``model``, a file for ONNX Runtime in the ``int8`` container, as ``target`` wants it; ``model`` is not changed.

    Raises:
        SettingsError: it was quantized in a way that the rules exclude; the message names the tensor.
        ModelError: it is in another form already, or its opset is above the target's.
        ExportError: the rules do not hold in the end.
    """
    if target.name == "ort":
        return model
    if container_of(model, where) != "int8":
        raise ModelError(f"{where}: targets are made from the int8 container; convert it first")
    has = target_of(model, where)
    if has != "ort":
        raise ModelError(f"{where}: was written for {has}; targets are made from a file for ort")
    graph = ir.from_proto(model)
    part_readers(graph)  # files of older versions share them
    for rule, choice, step in _STEPS:
        if getattr(target, rule) == choice:
            step(graph, where, target)
    low, high = target.opset
    if graph.opset_imports[""] > high:
        raise ModelError(
            f"{where}: has opset {graph.opset_imports['']}, target {target.name} takes up to {high}: export the model with that"
        )
    raise_opset(graph, low)
    graph.graph.sort()
    remove_unused(graph)
    graph.metadata_props[TARGET_KEY] = json.dumps({"name": target.name}, separators=(",", ":"))
    proto = ir.to_proto(graph)
    note_requirements(proto)
    broken = broken_rules(proto, target)
    if broken:
        raise ExportError(
            f"{where}: target {target.name}: {broken[0]}" + (f", and {len(broken) - 1} more" if broken[1:] else "")
        )
    return proto


def _one_scale(model: ir.Model, _where: str, _target: Target) -> None:
    """Activations have one scale, also in front of layers with float weights."""
    for node, *_ in dequantizers(model):
        maker = quantizer_of(node.inputs[0])
        if maker is not None and array_of(node.inputs[1]).ndim:
            for index in (1, 2):
                node.replace_input_with(index, maker.inputs[index])
            node.attributes.pop("axis", None)


def _plain_branches(model: ir.Model, _where: str, target: Target) -> None:
    """A tensor's second quantizer reads what the first one made, not a copy of it.

    Behind a pool in float the copy keeps ONNX Runtime, which opens these files, too, from a wrong kernel: it stays unless the
    target wants none ("direct").
    """
    for node in [n for n in model.graph if n.op_type == "LeakyRelu" and n.attributes.get_float("alpha", 0.01) == 1.0]:
        source, copy = node.inputs[0], node.outputs[0]
        maker = source.producer() if source is not None else None
        kept = target.branches == "plain" and maker is not None and maker.op_type in _POOLS
        if source is None or copy.is_graph_output() or kept:
            continue
        for user, index in list(copy.uses()):
            user.replace_input_with(index, source)
        model.graph.remove(node, safe=True)


def _pooled_operands(model: ir.Model, _where: str, _target: Target) -> None:
    """The codes that an Add alone reads of a convolution pass a MaxPool of one code."""
    graph = model.graph
    for codes in dict.fromkeys(node.inputs[0] for node, *_ in dequantizers(model)):
        maker = quantizer_of(codes)
        if codes is None or maker is None:
            continue
        behind = readers(codes)
        users = {reader.op_type for node in behind for reader in readers(node.outputs[0])}
        axes = _image_axes(maker.inputs[0])
        if users != {"Add"} or not axes or any(node.op_type != "DequantizeLinear" for node in behind):
            continue
        pool = ir.node("MaxPool", [codes], {"kernel_shape": [1] * axes}, name=f"{behind[0].name}_MaxPool")
        pool.outputs[0].name = unique_name(graph, f"{codes.name}_pooled")
        graph.insert_before(behind[0], pool)
        for node in behind:
            node.replace_input_with(0, pool.outputs[0])


def _image_axes(value: ir.Value | None) -> int:
    """How many axes behind the channels ``value`` has where a convolution made it, through a Relu or Clip, too; else 0."""
    maker = value.producer() if value is not None else None
    while maker is not None and maker.op_type in {"Relu", "Clip"}:
        maker = maker.inputs[0].producer() if maker.inputs[0] is not None else None
    if maker is None or maker.op_type not in {"Conv", "ConvTranspose"}:
        return 0
    weight = maker.inputs[1]
    held = weight.producer() if weight is not None else None
    stored = held.inputs[0] if held is not None else weight
    return len(array_of(stored).shape) - 2 if stored is not None and stored.const_value is not None else 0


def _float_bias(model: ir.Model, _where: str, _target: Target) -> None:
    graph = model.graph
    for node, *_ in dequantizers(model):
        codes = node.inputs[0]
        if codes is None or codes.const_value is None or codes.dtype != ir.DataType.INT32:
            continue
        values = array_of(codes)
        scale = along(array_of(node.inputs[1]), node.attributes.get_int("axis", 1), values.ndim)
        bias = add_initializer(graph, (codes.name or "").removesuffix("_quantized"), values.astype(np.float32) * scale)
        for user, index in list(node.outputs[0].uses()):
            user.replace_input_with(index, bias)
        graph.remove(node, safe=True)


def _float_pads(model: ir.Model, _where: str, _target: Target) -> None:
    """A Pad of codes becomes a Pad of values between DequantizeLinear and QuantizeLinear."""
    graph = model.graph
    for pad in [n for n in graph if n.op_type == "Pad" and n.outputs[0].dtype == ir.DataType.UINT8]:
        codes, padded = pad.inputs[0], pad.outputs[0]
        maker = quantizer_of(codes)
        assert codes is not None
        assert maker is not None
        name, scale, zero = padded.name or "", maker.inputs[1], maker.inputs[2]
        users = list(padded.uses())
        before = ir.node("DequantizeLinear", [codes, scale, zero], name=f"{pad.name}_DequantizeLinear")
        behind = ir.node("QuantizeLinear", [padded, scale, zero], name=f"{pad.name}_QuantizeLinear")
        before.outputs[0].name = unique_name(graph, f"{codes.name}_dequantized")
        behind.outputs[0].name = unique_name(graph, f"{name}_quantized")
        graph.insert_before(pad, before)
        graph.insert_after(pad, behind)
        pad.replace_input_with(0, before.outputs[0])
        if len(pad.inputs) > 2 and pad.inputs[2] is not None:
            pad.replace_input_with(2, add_initializer(graph, f"{pad.name}_value", np.array(0.0, np.float32)))
        padded.dtype = ir.DataType.FLOAT
        for user, index in users:
            user.replace_input_with(index, behind.outputs[0])


def _float_bounds(model: ir.Model, where: str, target: Target) -> None:
    """A Clip of codes becomes a Clip of values in front of QuantizeLinear; bounds of channels stay, or are refused."""
    _float_pads(model, where, target)
    graph = model.graph
    for quantize in [n for n in graph if n.op_type == "QuantizeLinear"]:
        scale, zero = array_of(quantize.inputs[1]), int(array_of(quantize.inputs[2]))
        if bounds_channels(quantize):
            if target.bounds != "either":
                raise no_channel_widths(where, target, quantize)
            continue
        for node in readers(quantize.outputs[0]):
            if node.op_type != "Clip":
                continue
            ends = [np.float32(int(array_of(bound)) - zero) * scale for bound in node.inputs[1:3]]
            for user, index in list(node.outputs[0].uses()):
                user.replace_input_with(index, quantize.outputs[0])
            for index, end in enumerate(ends, 1):
                name = (node.inputs[index].name or "") if node.inputs[index] is not None else ""  # type: ignore[union-attr]
                node.replace_input_with(index, add_initializer(graph, f"{name}_value", end.astype(np.float32)))
            node.replace_input_with(0, quantize.inputs[0])
            graph.remove(node)
            graph.insert_before(quantize, node)
            quantize.replace_input_with(0, node.outputs[0])


def _paired_bounds(model: ir.Model, _where: str, _target: Target) -> None:
    """A Clip of values in front of a quantizer gets another one of the same grid in front of itself."""
    graph = model.graph
    for clip in [n for n in graph if n.op_type == "Clip" and all(v is None or is_constant(v) for v in n.inputs[1:])]:
        users = readers(clip.outputs[0])
        if [node.op_type for node in users] != ["QuantizeLinear"]:
            continue
        value, (scale, zero) = clip.inputs[0], users[0].inputs[1:3]
        assert value is not None
        quantize = ir.node("QuantizeLinear", [value, scale, zero], name=f"{clip.name}_QuantizeLinear")
        quantize.outputs[0].name = unique_name(graph, f"{clip.name}_quantized")
        dequantize = ir.node(
            "DequantizeLinear", [quantize.outputs[0], scale, zero], name=f"{clip.name}_DequantizeLinear"
        )
        dequantize.outputs[0].name = unique_name(graph, f"{clip.name}_dequantized")
        graph.insert_before(clip, [quantize, dequantize])
        clip.replace_input_with(0, dequantize.outputs[0])


def _full_bounds(model: ir.Model, _where: str, _target: Target) -> None:
    """What a convolution makes passes a Clip to the ends of its codes' type, where no narrower one stands."""
    graph = model.graph
    for quantize in [n for n in graph if unbounded(n)]:
        value, scale, zero = quantize.inputs[:3]
        assert value is not None
        kind, shift = np.iinfo(array_of(zero).dtype), int(array_of(zero))
        ends = [np.float32(code - shift) * array_of(scale) for code in (kind.min, kind.max)]
        bounds = [
            add_initializer(graph, f"{value.name}_{which}_value", end.astype(np.float32))
            for which, end in zip(("low", "high"), ends, strict=True)
        ]
        insert_bound(graph, quantize, ir.node("Clip", [value, *bounds], name=f"{quantize.name}_Clip"))


def _zero_point_zero(model: ir.Model, where: str, target: Target) -> None:
    """Codes around zero point 0 in int8."""
    graph = model.graph
    quantizers = [n for n in graph if n.op_type == "QuantizeLinear"]
    zeros = list(dict.fromkeys(n.inputs[2] for n in quantizers))
    for zero in zeros:
        shift = int(array_of(zero))
        low, high = 0, 255
        for node in (n for n in quantizers if n.inputs[2] is zero):
            maker = node.inputs[0].producer() if node.inputs[0] is not None else None
            if (
                maker is not None
                and maker.op_type == "Clip"
                and len(maker.inputs) > 2
                and all(map(is_constant, maker.inputs[1:3]))
            ):
                scale = float(array_of(node.inputs[1]))
                ends = [float(array_of(end)) / scale + shift for end in maker.inputs[1:3]]
                low, high = max(low, round(ends[0])), min(high, round(ends[1]))
        if low - shift < -128 or high - shift > 127:
            name = next(n.inputs[0].name for n in quantizers if n.inputs[2] is zero and n.inputs[0] is not None)
            raise SettingsError(
                f"{where}: '{name}' has asymmetric codes of 8 bits (zero point {shift}), target {target.name} is symmetric: "
                f"quantize with --target {target.name}"
            )
        assert zero is not None
        plain = add_initializer(graph, f"{zero.name}_int8", np.array(0, np.int8))
        for user, index in list(zero.uses()):
            user.replace_input_with(index, plain)


def _no_fused_operands(model: ir.Model, where: str, target: Target) -> None:
    """Refuse quantizers that would part an Add from the layer in front: without them something else is computed."""
    for quantize in [n for n in model.graph if n.op_type == "QuantizeLinear"]:
        if parts_an_add(quantize):
            value = quantized_value(quantize)
            assert value is not None
            raise SettingsError(
                f"{where}: '{value.name}' is quantized between a layer and an Add, which target {target.name} wants "
                f"in one kernel: quantize with --target {target.name}"
            )


_STEPS: tuple[tuple[str, str, Callable[[ir.Model, str, Target], None]], ...] = (
    ("float_layers", "one-scale", _one_scale),
    ("branches", "plain", _plain_branches),
    ("branches", "direct", _plain_branches),
    ("bias", "float", _float_bias),
    ("bounds", "float", _float_bounds),
    ("bounds", "pair", _float_bounds),
    ("bounds", "pair", _paired_bounds),
    ("bounds", "either", _float_bounds),
    ("full_bounds", "float", _full_bounds),
    ("bounds", "width", _float_pads),
    ("bounds", "width", state_widths),
    ("moved_values", "plain", plain_moves),
    ("zero_point", "zero", _zero_point_zero),
    ("zero_point", "by-sign", codes_by_sign),
    ("stored_weights", "values", stored_values),
    ("add_operands", "pooled", _pooled_operands),
    ("add_operands", "residual", _no_fused_operands),
    ("attributes", "stated", stated_attributes),
    ("dequantizers", "shared", shared_readers),
)
"""Rule, choice, and the step that brings it about; in this order."""
