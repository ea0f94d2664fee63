"""A scale of its own for what low-bit layers read of a tensor that others read, too.

One quantizer for all readers of a tensor (as in BRECQ, QDrop and MRECG) rounds a residual stream to the activation width again
at every block, and its noise adds up along the stage. With a branch for the layers the stream itself keeps 8 bits, like every
tensor that no layer reads: MobileNetV2's KL divergence to FP32 at W4A4 falls from .43 to .38. LSQ and PACT go further and leave
the stream in float.

The branch is ``LeakyRelu(alpha=1)``, which returns its input: ONNX Runtime has an integer kernel for it that is one table
look-up a value, where a bare DequantizeLinear-QuantizeLinear costs two passes in float (measured with 1.31: the whole of
MobileNetV2 gets 3 % slower).
"""

from __future__ import annotations

import onnx_ir as ir

from mrecg_onnx.converters.passes.values import unique_name
from mrecg_onnx.planning.activations import (
    INTEGER_OPS,
    is_activation,
    is_bridge,
    is_clamp,
    is_preserving,
    is_weighted,
    readers,
)
from mrecg_onnx.planning.layers import plan_layers
from mrecg_onnx.planning.plan import BYSTANDER_BITS
from mrecg_onnx.planning.settings import BitSettings

__all__ = ["branch_narrow_reads"]


def branch_narrow_reads(model: ir.Model, settings: BitSettings) -> int:
    """Give every tensor that low-bit layers share with other integer ops, or with the graph's outputs, a branch for the layers.

    Args:
        model: normalized graph; changed.
        settings: the widths.

    Returns:
        Number of branches.

    Raises:
        MrecgError: as :func:`mrecg_onnx.planning.layers.plan_layers`.
    """
    narrow = {layer.name for layer in plan_layers(model, settings) if layer.abits < BYSTANDER_BITS}
    graph, count = model.graph, 0
    nodes = {node.name for node in graph}
    for value in [v for node in graph for v in node.outputs if is_activation(v)]:
        layers = [node for node in readers(value) if node.name in narrow and node.inputs[0] is value]
        handed_out = value.is_graph_output() and _in_integers(value.producer())
        if not layers or not (handed_out or any(_wide(node) for node in readers(value) if node not in layers)):
            continue
        wish = name = f"{value.name}_narrow"
        number = 0
        while name in nodes:
            number += 1
            name = f"{wish}_{number}"
        nodes.add(name)
        branch = ir.node("LeakyRelu", [value], attributes={"alpha": 1.0}, name=name)
        made = branch.outputs[0]
        made.name = unique_name(graph, wish)
        made.shape, made.type = value.shape, value.type
        for node in layers:
            node.replace_input_with(0, made)
        maker = value.producer()
        assert maker is not None
        graph.insert_after(maker, branch)
        count += 1
    return count


def _in_integers(maker: ir.Node | None) -> bool:
    """True for what ONNX Runtime may run on codes: then an output of the graph is taken from behind a quantizer of 8 bits."""
    return maker is not None and (
        is_weighted(maker) or is_preserving(maker) or is_clamp(maker) or maker.op_type in INTEGER_OPS
    )


def _wide(node: ir.Node) -> bool:
    """True if ``node``, or an op behind it that its values reach unchanged, is an integer op without weights."""
    if is_preserving(node):
        return any(_wide(reader) for output in node.outputs for reader in readers(output))
    return is_bridge(node) or (node.op_type in INTEGER_OPS and not is_weighted(node))
