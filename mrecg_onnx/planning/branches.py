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

from mrecg_onnx.converters.module_names import NARROW
from mrecg_onnx.converters.passes.values import naming, unique_name
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
    with naming(model.graph):
        return _branch(model, settings)


def _branch(model: ir.Model, settings: BitSettings) -> int:
    narrow = {layer.name for layer in plan_layers(model, settings) if layer.abits < BYSTANDER_BITS}
    graph, count, wide = model.graph, 0, _wide(model)
    nodes = {node.name for node in graph}
    for value in [v for node in graph for v in node.outputs if is_activation(v)]:
        layers = [node for node in readers(value) if node.name in narrow and node.inputs[0] is value]
        handed_out = value.is_graph_output() and _in_integers(value.producer())
        if not layers or not (handed_out or any(node in wide for node in readers(value) if node not in layers)):
            continue
        wish = name = f"{value.name}{NARROW}"
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


def _wide(model: ir.Model) -> set[ir.Node]:
    """The nodes that are integer ops without weights, or behind which, reached by unchanged values, such an op stands."""
    found: set[ir.Node] = set()
    for node in reversed(list(model.graph)):
        if is_preserving(node):
            wide = any(reader in found for output in node.outputs for reader in readers(output))
        else:
            wide = is_bridge(node) or (node.op_type in INTEGER_OPS and not is_weighted(node))
        if wide:
            found.add(node)
    return found
