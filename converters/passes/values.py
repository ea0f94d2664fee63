"""What the passes share: reading constants, adding initializers, replacing one value by another."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "add_initializer",
    "attribute_int",
    "attribute_ints",
    "claim",
    "constant",
    "dims",
    "is_standard",
    "naming",
    "rank",
    "replace_node",
    "replace_value",
    "set_constant",
    "sole_reader",
    "unique_name",
]


def is_standard(node: ir.Node, *op_types: str) -> bool:
    """Tell whether ``node`` is of the standard domain and, if any are given, of one of ``op_types``."""
    return node.domain in {"", "ai.onnx"} and (not op_types or node.op_type in op_types)


def constant(value: ir.Value | None) -> NDArray[np.generic] | None:
    """Return the array an initializer holds, None for every other value."""
    if value is None or not value.is_initializer() or value.const_value is None or value.is_graph_input():
        return None
    array: NDArray[np.generic] = value.const_value.numpy()
    return array


def rank(value: ir.Value | None) -> int | None:
    """Return the number of axes of ``value`` if it is known."""
    return None if value is None or value.shape is None else len(value.shape)


def dims(value: ir.Value | None) -> list[int | None] | None:
    """Return the sizes of ``value``, None for each that is not static; None if even the rank is unknown."""
    if value is None or value.shape is None:
        return None
    return [size if isinstance(size, int) else None for size in value.shape]


def attribute_int(node: ir.Node, name: str, default: int) -> int:
    """Return an integer attribute or its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else int(attribute.as_int())


def attribute_ints(node: ir.Node, name: str) -> list[int] | None:
    """Return an attribute that is a list of integers, None if ``node`` has none."""
    attribute = node.attributes.get(name)
    return None if attribute is None else [int(item) for item in attribute.as_ints()]


def sole_reader(value: ir.Value) -> ir.Node | None:
    """Return the one node that reads ``value``; None if several do, or the graph gives it out."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    return next(iter(uses)).node


def claim(wish: str, taken: set[str | None]) -> str:
    """Return ``wish``, numbered where it is among ``taken``, and put it among them."""
    found, count = wish, 1
    while found in taken:
        count += 1
        found = f"{wish}_{count}"
    taken.add(found)
    return found


# Key of a graph's ``meta``: the names that its inputs and what its nodes make have, or had since a pass began.
_NAMES = "mrecg_onnx.names"


@contextmanager
def naming(graph: ir.Graph) -> Iterator[None]:
    """Keep the names of ``graph`` at hand for :func:`unique_name`, which else walks the whole graph at every call.

    Inside, names must come from :func:`unique_name`, or from values of ``graph`` that had them before.
    """
    if _NAMES in graph.meta:
        yield
        return
    graph.meta[_NAMES] = None  # until the first name is asked for
    try:
        yield
    finally:
        del graph.meta[_NAMES]


def _names(graph: ir.Graph) -> set[str | None]:
    names = {value.name for value in graph.inputs}
    names.update(output.name for node in graph.all_nodes() for output in node.outputs)
    return names


def unique_name(graph: ir.Graph, wish: str) -> str:
    """Return ``wish``, numbered if a value of ``graph`` has that name already."""
    seen: set[str | None] | None = graph.meta.get(_NAMES)
    now = _names(graph) if seen is None else None
    if seen is None and _NAMES in graph.meta:
        seen = graph.meta[_NAMES] = now

    def taken(name: str) -> bool:
        nonlocal now
        if name in graph.initializers:
            return True
        if seen is not None and name not in seen:
            return False
        if now is None:
            now = _names(graph)  # what was seen may have given its name away since
        return name in now

    name, count = wish, 0
    while taken(name):
        count += 1
        name = f"{wish}_{count}"
    if seen is not None:
        seen.add(name)
    return name


def add_initializer(graph: ir.Graph, name: str, array: NDArray[np.generic], *, free: bool = False) -> ir.Value:
    """Add a constant to ``graph`` under ``name``, or a numbered variant of it; ``free`` says that nothing else has the name."""
    name = name if free else unique_name(graph, name)
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def set_constant(node: ir.Node, index: int, array: NDArray[np.generic], wish: str) -> None:
    """Make ``array`` input ``index`` of ``node``.

    An initializer that nothing else reads keeps its name; one that is shared stays as it is for the others, and the
    node gets a copy of its own. An absent input gets an initializer called ``wish``.
    """
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    old = node.inputs[index] if index < len(node.inputs) else None
    name, own = wish if old is None else f"{old.name}_{node.name}", False
    if old is not None and old.is_initializer() and old.graph is graph and sole_reader(old) is node:
        assert old.name is not None
        name, own = old.name, True
        graph.initializers.pop(name)
        node.replace_input_with(index, None)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, add_initializer(graph, name, array, free=own))


def replace_value(old: ir.Value, new: ir.Value) -> bool:
    """Let everything that reads ``old`` read ``new``; the caller then removes the node that made ``old``.

    A graph output keeps its name: ``new`` takes it over if ``new`` is made by a node and is no output itself.

    Returns:
        False, with nothing changed, where the output's name cannot be kept.
    """
    if old.is_graph_output():
        if new.producer() is None or new.is_graph_output() or new.graph is not old.graph:
            return False
        name = old.name
        shape, dtype = old.shape, old.type
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        # Freed first: two values of one graph must not share a name even for a moment.
        old.name = None
        new.name = name
        # The user's declaration of the output stays.
        new.shape = shape if shape is not None else new.shape
        new.type = dtype if dtype is not None else new.type
        return True
    ir.convenience.replace_all_uses_with(old, new)
    return True


def replace_node(node: ir.Node, nodes: list[ir.Node]) -> None:
    """Put ``nodes`` where ``node`` is, the last of which makes its one output: under its name, with all that is said of it."""
    graph, output, made = node.graph, node.outputs[0], nodes[-1].outputs[0]
    assert isinstance(graph, ir.Graph)
    name = output.name
    made.shape, made.type, made.doc_string = output.shape, output.type, output.doc_string
    made.metadata_props.update(output.metadata_props)
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, [output], [made])
    made.name = name
