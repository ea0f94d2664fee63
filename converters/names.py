"""Names that a file gives twice."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from mrecg_onnx.converters.passes.values import claim
from mrecg_onnx.converters.protos import graphs

if TYPE_CHECKING:
    import onnx

__all__ = ["unique_nodes"]


def unique_nodes(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Give each node of a graph a name of its own; the first of several with one name keeps it, no name is none.

    onnx.checker lets such names pass, ONNX Runtime 1.31 refuses them where older releases did not.

    Returns:
        ``model`` itself where nothing was to be renamed, else a changed copy, and the old names by the new ones.
    """
    if not any(_repeated(graph) for graph in graphs(model)):
        return model, {}
    copy = type(model)()
    copy.CopyFrom(model)
    renamed: dict[str, str] = {}
    for graph in graphs(copy):
        repeated = _repeated(graph)
        taken: set[str | None] = {node.name for node in graph.node}
        seen: set[str] = set()
        for node in graph.node:
            if node.name in repeated and node.name in seen:
                old, node.name = node.name, claim(node.name, taken)
                renamed[node.name] = old
            seen.add(node.name)
    return copy, renamed


def _repeated(graph: onnx.GraphProto | onnx.FunctionProto) -> set[str]:
    counts = Counter(node.name for node in graph.node)
    return {name for name, count in counts.items() if name and count > 1}
