"""Find GELU where exporters have written it out: opsets below 20 have no operator for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mrecg_onnx.converters.passes.values import constant, is_standard, sole_reader

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["gelu_nodes", "starts_gelu"]

_ARITHMETIC = ("Add", "Div", "Mul", "Pow", "Sub")
# The cubic polynomial in front of tanh is the longest part that is looked through.
_MAX_NODES = 12


def gelu_nodes(graph: ir.Graph) -> dict[ir.Node, ir.Value]:
    """The nodes of every x (1 + erf(x / sqrt 2)) / 2, and of its approximation by tanh, with the value x of each."""
    found: dict[ir.Node, ir.Value] = {}
    for node in graph:
        if is_standard(node, "Erf", "Tanh"):
            found |= _around(node)
    return found


def starts_gelu(value: ir.Value, nodes: dict[ir.Node, ir.Value]) -> bool:
    """Tell whether ``value`` is the x of a GELU, written out (``nodes`` are those) or an operator."""
    return any(nodes.get(use.node) is value or is_standard(use.node, "Gelu") for use in value.uses())


def _has_constant(node: ir.Node) -> bool:
    return any(constant(value) is not None for value in node.inputs)


def _around(center: ir.Node) -> dict[ir.Node, ir.Value]:
    add = sole_reader(center.outputs[0])
    if add is None or not is_standard(add, "Add") or not _has_constant(add):
        return {}
    nodes, last = {center: None, add: None}, add
    while (
        (reader := sole_reader(last.outputs[0])) is not None and is_standard(reader, "Mul") and len(nodes) < _MAX_NODES
    ):
        nodes[reader] = None
        last = reader
    while len(nodes) <= _MAX_NODES:
        outside = {
            value: None
            for node in nodes
            for value in node.inputs
            if value is not None and constant(value) is None and value.producer() not in nodes
        }
        if len(outside) == 1:
            (x,) = outside
            return dict.fromkeys(nodes, x) if any(x in node.inputs for node in nodes if node.op_type == "Mul") else {}
        inner = next(
            (node for value in outside if (node := value.producer()) is not None and _inside(node, nodes)), None
        )
        if inner is None:
            return {}
        nodes[inner] = None
    return {}


def _inside(node: ir.Node, nodes: dict[ir.Node, None]) -> bool:
    """Tell whether ``node`` only serves ``nodes`` and could be part of the expression."""
    values = [value for value in node.inputs if constant(value) is None]
    arithmetic = is_standard(node, *_ARITHMETIC) and (_has_constant(node) or len(values) == 2)
    return (
        arithmetic
        and all(use.node in nodes for use in node.outputs[0].uses())
        and not node.outputs[0].is_graph_output()
    )
