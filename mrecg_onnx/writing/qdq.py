"""Writing the quantized model: Q/DQ pairs and integer codes into the user's own graph, in the 8-bit container.

Measured on ONNX Runtime (1.31, CPU provider): low bits run on the integer kernels only
when they are kept in 8-bit tensors, so

1. an activation of b < 8 bits is ``QuantizeLinear(uint8) -> Clip(0, 2^b - 1) -> DequantizeLinear``: the Clip works on codes;
2. a Relu or Clip in front of a quantizer moves into the bounds of the codes. Quantization is monotone, so this is exact; left
   in place a Clip(0, 6) keeps the convolution in float. A Relu before zero point 0 stays: the runtime absorbs it itself;
3. asymmetric weights of up to 7 bits are stored as ``code - zero_point`` in int8 with zero point 0, per output channel;
4. biases are int32 with scale s_x * s_w, for which the scale of a weight grows where it has to (Simulation.fit_biases);
5. value-preserving ops stand between DequantizeLinear and QuantizeLinear of one scale; Pad, for which the runtime has no such
   fusion, works on the codes directly and pads with the code of 0;
6. a layer that keeps a float weight or bias reads its input through a DequantizeLinear with one (equal) scale a channel.
   Behind one scale a tensor ONNX Runtime quantizes such weights itself when it loads the file, to 8 bits per tensor, and
   such biases to int32, which overflow (WeightBiasQuantization; measured with 1.31);
7. where channels have widths or upper bounds of their own, the codes of an activation meet ``Min`` with a largest code a
   channel: the runtime has it for uint8 and keeps it between its integer kernels, as it does with the Clip (measured with 1.31);
8. the scale behind a Softmax is 1/k with a whole k: QLinearSoftmax computes with floor(1/scale) steps to 1, and with any other
   scale some of its codes are one too low (measured with 1.31);
9. an activation of 16 bits is uint16, which needs opset 21. The runtime has no integer kernels and no Clip for it: a Relu or
   Clip in front stays where it is, and a Pad works on the values;
10. a pool that its integer kernel gets wrong or refuses is parted from the quantizer behind it by a LeakyRelu with slope 1,
    which returns its input: straight between quantizers the runtime would take that kernel (measured with 1.31 and 1.32).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir

from mrecg_onnx.converters.passes.gemm import split_matmul_bias
from mrecg_onnx.converters.passes.opset import raise_opset
from mrecg_onnx.converters.passes.structure import remove_unused
from mrecg_onnx.converters.passes.values import claim
from mrecg_onnx.network import QuantizedWeight, Simulation
from mrecg_onnx.planning import (
    BYSTANDER_BITS,
    FLOAT_ONLY,
    FLOAT_RESULT,
    WEIGHTED_OPS,
    ActivationPlan,
    LayerPlan,
    constant,
    is_preserving,
    lacks_kernel,
    readers,
    weight_index,
)
from mrecg_onnx.quantizers import Grid

__all__ = ["FLOAT_MATMUL", "Exported", "export"]

logger = logging.getLogger(__name__)

#: Oldest opset with per-channel DequantizeLinear, and the IR version that came with it.
MIN_OPSET, MIN_IR = 13, 7
#: Oldest opset whose QuantizeLinear writes uint16.
WIDE_OPSET = 21
#: Under this name stand MatMul layers whose product is no code: it is float, or a bias is added to it.
FLOAT_MATMUL = "MatMul, float"
INT32_MAX = 2**31 - 1


@dataclass
class Exported:
    """The written model and what could not be kept in integers.

    Attributes:
        model: quantized model.
        float_biases: layers whose bias did not fit int32.
        integer_layers: node names of layers with quantized input, weight and output, by op type.
        integer_ops: node names of other ops between quantizers, by op type.
        codes: by quantizer, the tensors that hold its codes: behind QuantizeLinear, and behind what bounds them.
        float_layers: all other layers of the model, by node name, with the reason.
    """

    model: onnx.ModelProto
    float_biases: list[str] = field(default_factory=list)
    integer_layers: dict[str, list[str]] = field(default_factory=dict)
    integer_ops: dict[str, list[str]] = field(default_factory=dict)
    codes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    float_layers: dict[str, str] = field(default_factory=dict)


class _Writer:
    """Edits one graph; names it makes are unique."""

    def __init__(self, model: ir.Model) -> None:
        self.model, self.graph = model, model.graph
        self.taken = {v.name for n in self.graph for v in n.outputs} | set(self.graph.initializers)
        self.taken |= {v.name for v in self.graph.inputs}
        self.nodes_taken = {n.name for n in self.graph}
        self.codes: dict[ir.Value, ir.Value] = {}  # dequantized value -> its codes

    def name(self, wish: str) -> str:
        """A tensor name that nobody has."""
        return claim(wish, self.taken)

    def node_name(self, wish: str) -> str:
        """A node name that nobody has."""
        return claim(wish, self.nodes_taken)

    def constant(self, wish: str, array: np.ndarray) -> ir.Value:
        """A new initializer."""
        name = self.name(wish)
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
        self.graph.register_initializer(value)
        return value

    def node(
        self,
        op: str,
        name: str,
        inputs: list[ir.Value | None],
        output: str,
        attributes: Mapping[str, int] | None = None,
    ) -> ir.Node:
        """A new node with one output, not yet in the graph."""
        return ir.node(
            op, inputs, dict(attributes or {}), name=self.node_name(name), outputs=[ir.Value(name=self.name(output))]
        )

    def hand_out(self, name: str, value: ir.Value, behind: ir.Value) -> None:
        """Let ``behind`` be the graph's output ``name`` that ``value`` was."""
        for i, output in enumerate(self.graph.outputs):
            if output is value:
                self.graph.outputs[i] = behind
        if value.name == name:
            value.name = self.name(f"{name}_float")
        behind.name, behind.shape, behind.dtype = name, value.shape, ir.DataType.FLOAT
        behind.doc_string, value.doc_string = value.doc_string, None

    def feed_codes(
        self, node: ir.Node, index: int, name: str, codes: np.ndarray, scale: np.ndarray, axis: int | None
    ) -> None:
        """Let input ``index`` of ``node`` be integer ``codes`` behind a DequantizeLinear with zero point 0 of their type."""
        parts = {"quantized": codes, "scale": scale, "zero_point": np.zeros(scale.shape, codes.dtype)}
        inputs: list[ir.Value | None] = [self.constant(f"{name}_{part}", array) for part, array in parts.items()]
        dequantize = self.node(
            "DequantizeLinear",
            f"{name}_DequantizeLinear",
            inputs,
            f"{name}_dequantized",
            {"axis": axis} if axis is not None else {},
        )
        self.graph.insert_before(node, dequantize)
        node.replace_input_with(index, dequantize.outputs[0])


def export(model: ir.Model, simulation: Simulation, metadata: Mapping[str, str]) -> Exported:
    """Write the quantized form of ``model``.

    Args:
        model: normalized (and equalized) float graph; not changed.
        simulation: grids and codes.
        metadata: entries for the file's metadata_props; those of the user's file stay.

    Returns:
        The model and what to expect from the runtime.
    """
    copy = ir.from_proto(ir.to_proto(model))
    writer = _Writer(copy)
    lacking = [node for node in copy.graph if lacks_kernel(node) is not None]
    result = Exported(onnx.ModelProto())
    for layer in simulation.plan.quantized_layers:
        _write_layer(writer, layer, simulation, result)
    values = {v.name or "": v for v in (*copy.graph.inputs, *(o for n in copy.graph for o in n.outputs))}
    for plan in simulation.plan.activations:
        if plan.name in simulation.activations:
            result.codes[plan.name] = _write_activation(writer, values, plan, simulation.activations[plan.name])
    for node in list(copy.graph):
        _keep_float(writer, node)
    for node in lacking:
        _part_from_quantizer(writer, node)
    copy.graph.sort()
    remove_unused(copy)  # a Pad of codes leaves the DequantizeLinear in front without a reader
    _note_integer_nodes(copy, simulation, result)
    _note_float_layers(copy, simulation, result)
    for node in list(copy.graph):
        if node.op_type == "MatMul" and len(node.inputs) > 2:
            split_matmul_bias(node)
    copy.metadata_props.update(metadata)
    copy.metadata_props["mrecg_onnx.bits"] = json.dumps(_bits(simulation), separators=(",", ":"))
    channels = _channel_bits(simulation)
    if channels:
        copy.metadata_props["mrecg_onnx.channel_bits"] = json.dumps(channels, separators=(",", ":"))
    copy.opset_imports[""] = max(MIN_OPSET, copy.opset_imports.get("", MIN_OPSET))
    copy.ir_version = max(MIN_IR, copy.ir_version or MIN_IR)
    if any(grid.bits > BYSTANDER_BITS for grid in simulation.activations.values()):
        raise_opset(copy, WIDE_OPSET)
    copy.graph.sort()
    result.model = ir.to_proto(copy)
    return result


def _bits(simulation: Simulation) -> dict[str, int]:
    """Width of every quantized tensor, weights by initializer name."""
    widths = {plan.name: plan.bits for plan in simulation.plan.activations if plan.name in simulation.activations}
    return widths | {layer.weight: layer.wbits for layer in simulation.plan.quantized_layers}


def _channel_bits(simulation: Simulation) -> dict[str, list[int]]:
    """Widths of the channels of every tensor where they differ, by the names of :func:`_bits`."""
    grids = dict(simulation.activations)
    grids |= {layer.weight: simulation.weights[layer.name].grid for layer in simulation.plan.quantized_layers}
    return {n: [int(c).bit_length() for c in g.ceiling] for n, g in grids.items() if g.ceiling is not None}


def _scale_array(grid: Grid) -> np.ndarray:
    return grid.scale.detach().cpu().numpy().astype(np.float32)


def _write_layer(writer: _Writer, layer: LayerPlan, simulation: Simulation, result: Exported) -> None:
    node = writer.graph.node(layer.name)
    quantized = simulation.weights[layer.name]
    position = weight_index(node)
    assert position is not None
    writer.feed_codes(node, position, layer.weight, _stored_codes(quantized), _scale_array(quantized.grid), layer.axis)
    grid = simulation.input_grid(layer)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None or constant(bias) is None:
        return
    if layer.name in simulation.biases:
        learned = simulation.biases[layer.name].detach().cpu().numpy()
        bias = writer.constant(f"{layer.bias}_learned", learned.reshape(constant(bias).numpy().shape))  # type: ignore[union-attr]
        node.replace_input_with(2, bias)
    if grid is None:
        return
    _write_bias(writer, layer, node, bias, grid, quantized, result)


def _stored_codes(quantized: QuantizedWeight) -> np.ndarray:
    """``code - zero_point`` as int8 (rule 3)."""
    _, zero = quantized.grid.along(quantized.codes.dim())
    shifted = (quantized.codes - zero).cpu().numpy()
    assert np.abs(shifted).max(initial=0) <= 127, "codes of more than 7 bits must be symmetric"
    return shifted.astype(np.int8)


def _write_bias(
    writer: _Writer,
    layer: LayerPlan,
    node: ir.Node,
    bias: ir.Value,
    grid: Grid,
    quantized: QuantizedWeight,
    result: Exported,
) -> None:
    tensor = constant(bias)
    assert tensor is not None
    values = tensor.numpy()
    # The product is taken in float32, as the runtime does.
    scale = np.atleast_1d(np.float32(_scale_array(grid)) * _scale_array(quantized.grid)).astype(np.float32)
    scale = np.tile(scale, layer.bias_copies)
    if values.size != scale.size:
        result.float_biases.append(layer.name)
        return
    flat = values.astype(np.float64).reshape(-1)
    codes = np.rint(flat / scale)
    if np.abs(codes).max(initial=0) > INT32_MAX:
        logger.warning("layer '%s': its bias does not fit int32 at scale s_x * s_w and stays in float", layer.name)
        result.float_biases.append(layer.name)
        return
    name = layer.bias or f"{layer.name}_bias"
    writer.feed_codes(node, 2, name, codes.astype(np.int32).reshape(values.shape), scale, max(0, values.ndim - 1))


def code_bounds(plan: ActivationPlan, grid: Grid) -> tuple[int, int]:
    """Smallest and largest code of a tensor: the grid's ends, or the codes of the absorbed clamp's bounds (rule 2)."""
    scale, zero = np.float32(_scale_array(grid)), int(grid.zero_point)
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
        codes = np.rint(np.asarray(plan.ceilings, np.float32) / np.float32(_scale_array(grid))) + int(grid.zero_point)
        bounds.append(np.clip(codes, grid.qmin, grid.qmax))
    return np.minimum.reduce(bounds).astype(np.uint8) if bounds else None


def _write_activation(
    writer: _Writer, values: Mapping[str, ir.Value], plan: ActivationPlan, grid: Grid
) -> tuple[str, ...]:
    """Write a quantizer; returns the names of its codes (:attr:`Exported.codes`)."""
    root = values[plan.name]
    scale = writer.constant(f"{plan.name}_scale", _scale_array(grid))
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


def _write_member(writer: _Writer, value: ir.Value, scale: ir.Value, zero_point: ir.Value, *, handed_out: bool) -> None:
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


def _keep_float(writer: _Writer, node: ir.Node) -> None:
    """Let a layer with a float weight or bias read its input through a quantizer of its own, one scale a channel (rule 6)."""
    if node.op_type not in {"Conv", "ConvTranspose", "Gemm"} or not any(
        constant(v) is not None for v in node.inputs[1:]
    ):
        return
    data, weight = node.inputs[0], node.inputs[1]
    source = data.producer() if data is not None else None
    if source is None or source.op_type != "DequantizeLinear" or weight is None:
        return
    stored = constant(weight)
    if stored is None:
        maker = weight.producer()
        stored = constant(maker.inputs[0]) if maker is not None and maker.op_type == "DequantizeLinear" else None
    if stored is None:
        return
    codes, scale, zero_point = source.inputs[:3]
    axis = 1 - node.attributes.get_int("transA", 0)
    sizes = stored.numpy().shape
    if node.op_type == "Conv":
        channels = sizes[1] * node.attributes.get_int("group", 1)
    else:
        channels = sizes[node.attributes.get_int("transB", 0)]
    vectors = [np.full(channels, constant(v).numpy()) for v in (scale, zero_point)]  # type: ignore[union-attr]
    name = f"{node.name}_input"
    parameters = [
        writer.constant(f"{name}_{kind}", v) for kind, v in zip(("scale", "zero_point"), vectors, strict=True)
    ]
    own = writer.node(
        "DequantizeLinear", f"{name}_DequantizeLinear", [codes, *parameters], f"{name}_dequantized", {"axis": axis}
    )
    writer.graph.insert_before(node, own)
    node.replace_input_with(0, own.outputs[0])
    if not source.outputs[0].uses():
        writer.graph.remove(source, safe=True)


def _part_from_quantizer(writer: _Writer, node: ir.Node) -> None:
    """Put a LeakyRelu that returns its input behind ``node`` (rule 10)."""
    made = node.outputs[0]
    if made.is_graph_output():
        return
    users = list(made.uses())
    apart = writer.node("LeakyRelu", f"{node.name}_float", [made], f"{made.name}_float")
    apart.attributes["alpha"] = ir.AttrFloat32("alpha", 1.0)
    apart.outputs[0].shape, apart.outputs[0].type = made.shape, made.type
    writer.graph.insert_after(node, apart)
    for user, index in users:
        user.replace_input_with(index, apart.outputs[0])


def _comes_quantized(value: ir.Value | None) -> bool:
    maker = value.producer() if value is not None else None
    return maker is not None and maker.op_type == "DequantizeLinear" and not _is_wide(maker)


def _is_wide(node: ir.Node) -> bool:
    """True for a QuantizeLinear or DequantizeLinear of 16 bits, for which the runtime has no integer kernels."""
    zero_point = node.inputs[2]
    return zero_point is not None and zero_point.dtype == ir.DataType.UINT16


def _goes_quantized(node: ir.Node) -> bool:
    """True if the output is only read by QuantizeLinear, directly or through a Relu that the runtime absorbs."""
    made = list(node.outputs)
    users = [r for v in made for r in readers(v)]
    if len(users) == 1 and users[0].op_type == "Relu":
        made += users[0].outputs
        users = [r for v in users[0].outputs for r in readers(v)]
    return (
        bool(users)
        and all(u.op_type == "QuantizeLinear" and not _is_wide(u) for u in users)
        and not any(v.is_graph_output() for v in made)
    )


def _float_inputs(node: ir.Node) -> list[ir.Value]:
    """Inputs that hold floats, constants too: a constant that is not quantized keeps an op in float."""
    inputs = node.inputs[:1] if node.op_type == "Resize" else node.inputs
    return [v for v in inputs if v is not None and (not v.is_initializer() or v.dtype == ir.DataType.FLOAT)]


def _is_left_product(node: ir.Node) -> bool:
    """A MatMul whose weight is the left operand: QLinearMatMul wants one scale there, the weight has one a row."""
    maker = node.inputs[0].producer() if node.op_type == "MatMul" and node.inputs[0] is not None else None
    return maker is not None and maker.op_type == "DequantizeLinear" and constant(maker.inputs[0]) is not None


def _note_integer_nodes(model: ir.Model, simulation: Simulation, result: Exported) -> None:
    """What the runtime should run on integer kernels, for the check after export."""
    layers = {layer.name: layer for layer in simulation.plan.quantized_layers}
    for node in model.graph:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear", *FLOAT_ONLY}:
            continue
        floats = _float_inputs(node)
        # Layers that multiply matrices write float, too; the others need a quantizer behind.
        quantized = bool(floats) and all(_comes_quantized(v) for v in floats) and not _is_left_product(node)
        goes = _goes_quantized(node)
        if not quantized or not (goes or (node.op_type in FLOAT_RESULT and node.name in layers)):
            continue
        store = result.integer_layers if node.name in layers else result.integer_ops
        if node.name in layers or not is_preserving(node):
            plain = node.op_type != "MatMul" or (goes and len(node.inputs) == 2)
            store.setdefault(node.op_type if plain else FLOAT_MATMUL, []).append(node.name or "")


def _note_float_layers(model: ir.Model, simulation: Simulation, result: Exported) -> None:
    """Which layers are not among those that run in integers, and why."""
    integer = {name for names in result.integer_layers.values() for name in names}
    nodes = {node.name: node for node in model.graph}
    for layer in simulation.plan.layers:
        if layer.name not in integer:
            result.float_layers[layer.name] = _why_float(layer, nodes[layer.name], simulation, result)
    planned = {layer.name for layer in simulation.plan.layers}
    for node in model.graph:
        if node.op_type in WEIGHTED_OPS - {"MatMul"} and node.name not in planned:
            stored = constant(node.inputs[1]) is not None
            reason = "torch cannot run it" if stored else "its weight is computed by the graph"
            result.float_layers[node.name or ""] = reason


def _why_float(layer: LayerPlan, node: ir.Node, simulation: Simulation, result: Exported) -> str:
    grid = simulation.input_grid(layer)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if layer.excluded:
        return "excluded"
    if layer.op in FLOAT_ONLY:
        return f"ONNX Runtime has no integer kernel for {layer.op}"
    if grid is None:
        return "activations are in float" if not simulation.activations else "what it reads is not quantized"
    if grid.bits > BYSTANDER_BITS:
        return f"activations of {grid.bits} bits, for which ONNX Runtime has no integer kernels"
    if layer.name in result.float_biases:
        return "its bias does not fit int32"
    if bias is not None and not _comes_quantized(bias):
        return "its bias is computed by the graph"
    if _is_left_product(node):
        return "its weight is the left factor of a MatMul, which may have only one scale there"
    return "what it makes is not quantized"
