"""Quantizers of activations: QuantizeLinear, the bounds of its codes, DequantizeLinear."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from mrecg_onnx.planning import BYSTANDER_BITS, ActivationPlan
from mrecg_onnx.quantizers import Grid
from mrecg_onnx.writing.writer import Writer, scale_array

__all__ = ["channel_bounds", "code_bounds", "write_activation"]


def code_bounds(plan: ActivationPlan, grid: Grid) -> tuple[int, int]:
    """Smallest and largest code of a tensor: the grid's ends, or the codes of the absorbed clamp's bounds (rule 2)."""
    scale, zero = np.float32(scale_array(grid)), int(grid.zero_point)
    low, high = grid.qmin, grid.qmax
    if plan.low is not None:
        low = min(max(low, int(np.rint(np.float32(plan.low) / scale)) + zero), grid.qmax)
    if plan.high is not None:
        high = max(min(high, int(np.rint(np.float32(plan.high) / scale)) + zero), grid.qmin)
    return low, max(low, high)


def channel_bounds(plan: ActivationPlan, grid: Grid) -> np.ndarray | None:
    """Largest code of each channel where it has one: of the grid's widths and of the absorbed clamp; uint8, shape (C,)."""
    bounds = []
    if grid.ceiling is not None:
        bounds.append(grid.ceiling.detach().cpu().numpy())
    if plan.ceilings is not None:
        codes = np.rint(np.asarray(plan.ceilings, np.float32) / np.float32(scale_array(grid))) + int(grid.zero_point)
        bounds.append(np.clip(codes, grid.qmin, grid.qmax))
    return np.minimum.reduce(bounds).astype(np.uint8) if bounds else None


def write_activation(
    writer: Writer, values: Mapping[str, ir.Value], plan: ActivationPlan, grid: Grid
) -> tuple[str, ...]:
    """Write a quantizer; returns the names of its codes (:attr:`Exported.codes`)."""
    root = values[plan.name]
    scale = writer.constant(f"{plan.name}_scale", scale_array(grid))
    wide = grid.bits > BYSTANDER_BITS
    kind = np.uint16 if wide else np.uint8
    zero_point = writer.constant(f"{plan.name}_zero_point", np.array(int(grid.zero_point), kind))
    clamp = root.producer() if plan.absorbs is not None else None
    keeps_clamp = clamp is not None and (wide or (clamp.op_type == "Relu" and int(grid.zero_point) == 0))
    low, high = code_bounds(plan, grid) if not keeps_clamp else (grid.qmin, grid.qmax)
    users = [(node, index) for node, index in root.uses()]
    source = root
    clip_name = f"{plan.name}_Clip"
    if clamp is not None and not keeps_clamp:
        source = clamp.inputs[0]  # type: ignore[assignment]
        clip_name = clamp.name or clip_name
        writer.nodes_taken.discard(clamp.name)
    quantize = writer.node(
        "QuantizeLinear", f"{plan.name}_QuantizeLinear", [source, scale, zero_point], f"{plan.name}_quantized"
    )
    new = [quantize]
    codes = quantize.outputs[0]
    most = channel_bounds(plan, grid) if not wide else None
    if most is not None and low == 0 and plan.high is None:
        high = 255  # the channels' own bounds do it all
    if (low, high) != (0, np.iinfo(kind).max):
        bounds = [
            writer.constant(f"{plan.name}_{end}", np.array(c, np.uint8)) for end, c in (("low", low), ("high", high))
        ]
        clip = writer.node("Clip", clip_name, [codes, *bounds], f"{plan.name}_clipped")
        new.append(clip)
        codes = clip.outputs[0]
    if most is not None:
        assert root.shape is not None
        ceiling = writer.constant(f"{plan.name}_ceiling", most.reshape(1, -1, *[1] * (len(root.shape) - 2)))
        least = writer.node("Min", f"{plan.name}_Min", [codes, ceiling], f"{plan.name}_limited")
        new.append(least)
        codes = least.outputs[0]
    dequantize = writer.node(
        "DequantizeLinear", f"{plan.name}_DequantizeLinear", [codes, scale, zero_point], f"{plan.name}_dequantized"
    )
    new.append(dequantize)
    maker = root.producer()
    if maker is None:
        writer.graph.insert_before(writer.graph[0], new)
    else:
        writer.graph.insert_after(maker, new)
    for node, index in users:
        node.replace_input_with(index, dequantize.outputs[0])
    if plan.name in plan.outputs:
        writer.hand_out(plan.name, root, dequantize.outputs[0])
    if clamp is not None and not keeps_clamp:
        writer.graph.remove(clamp, safe=True)
    writer.codes[dequantize.outputs[0]] = codes
    for name in plan.members[1:]:
        _write_member(writer, values[name], scale, zero_point, handed_out=name in plan.outputs)
    return tuple(dict.fromkeys(v.name or "" for v in (quantize.outputs[0], codes)))


def _write_member(writer: Writer, value: ir.Value, scale: ir.Value, zero_point: ir.Value, *, handed_out: bool) -> None:
    """Quantizer of a value-preserving op's output (rule 5), behind which it leaves the graph where it is ``handed_out``."""
    maker = value.producer()
    assert maker is not None
    users = list(value.uses())
    # An output that is taken from in front of the quantizer is float, so there the Pad has to stay where it is.
    stays = value.is_graph_output() and not handed_out
    if maker.op_type == "Pad" and zero_point.dtype == ir.DataType.UINT8 and not stays:
        inputs = [writer.codes[maker.inputs[0]], maker.inputs[1]]  # type: ignore[index]
        if maker.attributes.get_string("mode", "constant") == "constant":
            inputs.append(zero_point)
        elif len(maker.inputs) > 3:
            inputs.append(None)  # type: ignore[arg-type]
        inputs += maker.inputs[3:]
        maker.resize_inputs(len(inputs))
        for index, entry in enumerate(inputs):
            maker.replace_input_with(index, entry)
        codes = value
        name = value.name or ""
        value.name = writer.name(f"{name}_codes")
        value.dtype = ir.DataType.UINT8
        new = []
    else:
        name = value.name or ""
        quantize = writer.node(
            "QuantizeLinear", f"{name}_QuantizeLinear", [value, scale, zero_point], f"{name}_quantized"
        )
        codes, new = quantize.outputs[0], [quantize]
    dequantize = writer.node(
        "DequantizeLinear", f"{name}_DequantizeLinear", [codes, scale, zero_point], f"{name}_dequantized"
    )
    writer.graph.insert_after(maker, [*new, dequantize])
    for node, index in users:
        node.replace_input_with(index, dequantize.outputs[0])
    if handed_out:
        writer.hand_out(name, value, dequantize.outputs[0])
    writer.codes[dequantize.outputs[0]] = codes
