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
    which returns its input: straight between quantizers the runtime would take that kernel (measured with 1.31 and 1.32);
11. every reader of dequantized values has a DequantizeLinear of its own: OpenCV 5.0 stops at one with two readers, and the
    runtime makes the same of both forms.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir

from mrecg_onnx.converters.metadata_keys import BITS_KEY, CHANNEL_BITS_KEY
from mrecg_onnx.converters.passes.gemm import split_matmul_bias
from mrecg_onnx.converters.passes.opset import raise_opset
from mrecg_onnx.converters.passes.structure import remove_unused
from mrecg_onnx.network import Simulation
from mrecg_onnx.planning import BYSTANDER_BITS, constant, lacks_kernel
from mrecg_onnx.writing.activations import write_activation
from mrecg_onnx.writing.exported import Exported
from mrecg_onnx.writing.integer_nodes import note_float_layers, note_integer_nodes
from mrecg_onnx.writing.layers import write_layer
from mrecg_onnx.writing.opsets import MIN_IR, MIN_OPSET, WIDE_OPSET
from mrecg_onnx.writing.readers import part_readers
from mrecg_onnx.writing.writer import Writer

__all__ = ["export"]


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
    writer = Writer(copy)
    lacking = [node for node in copy.graph if lacks_kernel(node) is not None]
    result = Exported(onnx.ModelProto())
    for layer in simulation.plan.quantized_layers:
        write_layer(writer, layer, simulation, result)
    values = {v.name or "": v for v in (*copy.graph.inputs, *(o for n in copy.graph for o in n.outputs))}
    for plan in simulation.plan.activations:
        if plan.name in simulation.activations:
            result.codes[plan.name] = write_activation(writer, values, plan, simulation.activations[plan.name])
    for node in list(copy.graph):
        _keep_float(writer, node)
    for node in lacking:
        _part_from_quantizer(writer, node)
    part_readers(copy)
    copy.graph.sort()
    remove_unused(copy)  # a Pad of codes leaves the DequantizeLinear in front without a reader
    note_integer_nodes(copy, simulation, result)
    note_float_layers(copy, simulation, result)
    for node in list(copy.graph):
        if node.op_type == "MatMul" and len(node.inputs) > 2:
            split_matmul_bias(node)
    copy.metadata_props.update(metadata)
    copy.metadata_props[BITS_KEY] = json.dumps(_bits(simulation), separators=(",", ":"))
    channels = _channel_bits(simulation)
    if channels:
        copy.metadata_props[CHANNEL_BITS_KEY] = json.dumps(channels, separators=(",", ":"))
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


def _keep_float(writer: Writer, node: ir.Node) -> None:
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


def _part_from_quantizer(writer: Writer, node: ir.Node) -> None:
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
