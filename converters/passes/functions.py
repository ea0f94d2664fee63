"""Bring a model and its local functions, which may import other versions of an operator set, to one version of each."""

from __future__ import annotations

import graphlib
from collections import Counter
from typing import TYPE_CHECKING

import onnx_ir as ir

from mrecg_onnx.converters.errors import ModelError
from mrecg_onnx.converters.passes.opset import TARGET_OPSET, raise_opset
from mrecg_onnx.converters.passes.structure import standard_domain
from mrecg_onnx.converters.protos import inside
from mrecg_onnx.converters.text import first_of, quoted

if TYPE_CHECKING:
    from collections.abc import Container

    import onnx

    _Function = tuple[str, str, str]

__all__ = ["MOST_NODES", "align_functions", "are_aligned", "require_bounded"]

MOST_NODES = 100_000
"""So many nodes a model with local functions has at most when each call has become the function's body."""

# Each call of a function looks for names that no earlier call has taken: a million steps are a second or so.
_MOST_STEPS = 30_000_000


def require_bounded(model: onnx.ModelProto) -> None:
    """Refuse local functions that call each other in a circle, or whose calls would become too many nodes.

    The nodes are counted along the calls, in whole numbers of any size; nothing is put in place for it.

    Raises:
        ModelError: They do, or would.
    """
    if not model.functions:
        return
    bodies = {(_domain(f.domain), f.name, f.overload): f for f in model.functions}
    calls: dict[_Function, Counter[_Function]] = {}
    sizes: dict[_Function, int] = {}
    for key, function in bodies.items():
        calls[key], sizes[key] = _content(function, bodies)
    try:
        order = list(graphlib.TopologicalSorter(calls).static_order())
    except graphlib.CycleError as error:
        circle = first_of([quoted(name) for _, name, _ in error.args[1]], 4)
        raise ModelError(
            f"its local functions call each other in a circle: {circle}; export it again without functions"
        ) from error
    times, total = _content(model.graph, bodies)
    for key in reversed(order):  # callers first
        for called, count in calls[key].items():
            times[called] += count * times[key]
    total += sum(times[key] * size for key, size in sizes.items())
    steps = sum(times[key] ** 2 * size for key, size in sizes.items())
    key = max(sizes, key=lambda one: times[one] * max(1, sizes[one]))
    if total > MOST_NODES or steps > _MOST_STEPS:
        few = f"{_number(total)} nodes, more than {MOST_NODES:,}" if total > MOST_NODES else "too many calls"
        raise ModelError(
            f"its local functions cannot be put in place of their calls: {few} ({quoted(key[1])} is called "
            f"{_number(times[key])} times in all); export it without functions"
        )


def _content(
    graph: onnx.GraphProto | onnx.FunctionProto, bodies: Container[_Function]
) -> tuple[Counter[_Function], int]:
    """How often ``graph`` calls each function, subgraphs included, and how many other nodes it has."""
    found: Counter[_Function] = Counter()
    size = 0
    for part in inside(graph):
        for node in part.node:
            key = _domain(node.domain), node.op_type, node.overload
            if key in bodies:
                found[key] += 1
            else:
                size += 1
    return found, size


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _number(count: int) -> str:
    return f"{count:,}" if count < 10**12 else f"10^{len(str(count)) - 1}"


def are_aligned(model: onnx.ModelProto) -> bool:
    """Tell whether all functions of ``model`` import what the model does."""
    own = {entry.domain: entry.version for entry in model.opset_import}
    return all(
        own.get(entry.domain) == entry.version for function in model.functions for entry in function.opset_import
    )


def align_functions(model: ir.Model) -> ir.Model:
    """Raise the model and its functions to the newest version that one of them imports of each domain.

    A node means what the operator set of its own graph says. ONNX Runtime takes the model's for all of them, which is the
    same where it accepts it. Domains other than the standard one get the newest number without a change to their nodes.

    Raises:
        ModelError: A node cannot be raised.
    """
    standard_domain(model)
    everyone = [model.opset_imports, *(function.opset_imports for function in model.functions.values())]
    newest: dict[str, int] = {}
    for imports in everyone:
        for domain, version in imports.items():
            newest[domain] = max(version, newest.get(domain, 0))
    if len({imports[""] for imports in everyone if "" in imports}) > 1:
        target = newest[""] = max(newest[""], TARGET_OPSET)
        raise_opset(model, target)
        for function in model.functions.values():
            body = ir.Model(function.graph, ir_version=model.ir_version)
            body.opset_imports.update(function.opset_imports)
            raise_opset(body, target)
            _constants_to_nodes(function.graph)
    for imports in everyone:
        imports.update({domain: newest[domain] for domain in imports})
    for domain, version in newest.items():
        model.opset_imports.setdefault(domain, version)
    return model


def _constants_to_nodes(graph: ir.Graph) -> None:
    """A function has no initializers: what was an attribute and is an input now comes out of a Constant."""
    for value in list(graph.initializers.values()):
        assert value.const_value is not None
        assert value.name is not None
        name, tensor = value.name, value.const_value
        node = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], num_outputs=1)
        graph.insert_before(graph[0], node)
        ir.convenience.replace_all_uses_with(value, node.outputs[0])
        del graph.initializers[name]
        value.name = None
        node.outputs[0].name = name
        node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
