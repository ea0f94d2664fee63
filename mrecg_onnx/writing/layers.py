"""Weights and biases of layers, written as integer codes behind DequantizeLinear."""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir

from mrecg_onnx.network import INT32_MAX, QuantizedWeight, Simulation
from mrecg_onnx.planning import LayerPlan, constant, weight_index
from mrecg_onnx.quantizers import Grid
from mrecg_onnx.writing.exported import Exported
from mrecg_onnx.writing.writer import Writer, scale_array

__all__ = ["write_layer"]

logger = logging.getLogger(__name__)


def write_layer(writer: Writer, layer: LayerPlan, simulation: Simulation, result: Exported) -> None:
    """Write the codes of a layer's weight, and those of its bias where they fit int32 (rules 3 and 4)."""
    node = writer.graph.node(layer.name)
    quantized = simulation.weights[layer.name]
    position = weight_index(node)
    assert position is not None
    writer.feed_codes(node, position, layer.weight, _stored_codes(quantized), scale_array(quantized.grid), layer.axis)
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
    writer: Writer,
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
    scale = np.atleast_1d(np.float32(scale_array(grid)) * scale_array(quantized.grid)).astype(np.float32)
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
