"""Which nodes of an exported graph ONNX Runtime should run on integer kernels, and why the other layers are in float."""

from __future__ import annotations

import onnx_ir as ir

from mrecg_onnx.network import Simulation
from mrecg_onnx.planning import (
    BYSTANDER_BITS,
    FLOAT_ONLY,
    FLOAT_RESULT,
    WEIGHTED_OPS,
    LayerPlan,
    constant,
    is_preserving,
    readers,
)
from mrecg_onnx.writing.exported import Exported

__all__ = ["FLOAT_MATMUL", "note_float_layers", "note_integer_nodes"]

#: Under this name stand MatMul layers whose product is no code: it is float, or a bias is added to it.
FLOAT_MATMUL = "MatMul, float"


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


def note_integer_nodes(model: ir.Model, simulation: Simulation, result: Exported) -> None:
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


def note_float_layers(model: ir.Model, simulation: Simulation, result: Exported) -> None:
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
