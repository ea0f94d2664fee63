"""Nodes that run through ONNX Runtime inside the torch module, and what their subgraphs read: noted on the graph.

Nothing is trained through such a node. It is a unit without layers of its own, has no weights to quantize, and the tensors it
reads and makes keep 8 bits or stay in float; :mod:`mrecg_onnx.planning.activations` answers for the notes left here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import onnx_ir as ir

from mrecg_onnx.converters import fallback_nodes
from mrecg_onnx.planning.activations import CAPTURES, FALLBACK, OWNER

__all__ = ["fallbacks", "mark_fallbacks"]

logger = logging.getLogger(__name__)


def mark_fallbacks(model: ir.Model) -> dict[str, str]:
    """Note on the nodes of ``model`` which of them torch cannot run, and which outer tensors their subgraphs read.

    Returns:
        Name of the node and the reason, in topological order.

    Raises:
        ConversionError: a node can be run by neither torch nor ONNX Runtime.
    """
    found = fallback_nodes(model)
    for node in model.graph:
        if node.name in found:
            node.meta[FALLBACK] = found[node.name or ""]
        inner = list(_inner_nodes(node))
        inside = {value for part in inner for value in part.outputs}
        for part in inner:
            part.meta[OWNER] = node
        bodies = [graph for part in (node, *inner) for graph in _bodies(part)]
        known = inside | {v for graph in bodies for v in (*graph.inputs, *graph.initializers.values())}
        reads = [v for part in inner for v in part.inputs] + [v for graph in bodies for v in graph.outputs]
        captured = list(dict.fromkeys(v for v in reads if v is not None and v not in known))
        if captured:
            node.meta[CAPTURES] = captured
    if found:
        logger.warning(
            "ONNX Runtime runs what torch cannot, forward only, in float or 8 bits: %s",
            "; ".join(f"{name} ({reason})" for name, reason in found.items()),
        )
    return found


def fallbacks(model: ir.Model) -> dict[str, str]:
    """Nodes of a marked ``model`` that torch cannot run, by name, and why."""
    return {node.name or "": node.meta[FALLBACK] for node in model.graph if FALLBACK in node.meta}


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _inner_nodes(node: ir.Node) -> Iterator[ir.Node]:
    for graph in _bodies(node):
        for inner in graph:
            yield inner
            yield from _inner_nodes(inner)
