"""How long the lists of sizes are that shape inference follows, before it does.

With data propagation onnx writes out each list of sizes element by element, however it is used: a vector said to have 2^40
elements that is added to another takes 2^40 times 140 bytes. What follows here are its own rules (the operators' schemas and
``DataPropagationContextImpl`` of onnx 1.23): sizes come from shapes, small constants and vectors of known length, and seven
kinds of operators pass them on.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mrecg_onnx.converters.passes.values import attribute_int, is_standard

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx_ir as ir

__all__ = ["followed_sizes"]

#: They keep the list that they are given.
_KEEP = frozenset({"Cast", "Slice", "Squeeze", "Unsqueeze"})
_MATH = frozenset({"Add", "Mul", "Sub"})
_FOLLOWED = _KEEP | _MATH | {"Concat", "Gather", "Size"}


def followed_sizes(nodes: Iterable[ir.Node]) -> float:
    """Count the sizes that inference with data propagation writes out for ``nodes``, in their order: at most so many.

    Returns:
        infinity where a vector's length is not known yet and may come out as any number.
    """
    lists: dict[ir.Value, float] = {}
    total = 0.0
    for node in nodes:
        made = _made(node, lists)
        for output in node.outputs[:1]:
            if made:
                lists[output] = made
                total += made
    return total + sum(lists.get(value, 0.0) for value in lists if value.producer() is None)


def _made(node: ir.Node, lists: dict[ir.Value, float]) -> float:
    """Sizes in the first output of ``node``; those of vectors that it reads become known to ``lists``."""
    if not is_standard(node):
        return 0.0
    if node.op_type == "Shape":
        value = node.inputs[0] if node.inputs else None
        return float(len(value.shape)) if value is not None and value.shape is not None else 1.0
    if node.op_type not in _FOLLOWED:
        return 0.0
    read = [_read(value, lists) for value in node.inputs]
    if node.op_type == "Size":
        return 1.0
    if node.op_type == "Concat":
        return math.fsum(read) if attribute_int(node, "axis", 0) <= 0 else 0.0
    if node.op_type in _MATH:
        return max(read, default=0.0)
    if node.op_type == "Gather":
        return read[1] if len(read) > 1 else 0.0
    return read[0] if read else 0.0


def _read(value: ir.Value | None, lists: dict[ir.Value, float]) -> float:
    """Sizes that an input of a node that follows them has."""
    if value is None:
        return 0.0
    if value not in lists:
        lists[value] = _of_shape(value)
    return lists[value]


def _of_shape(value: ir.Value) -> float:
    if value.shape is None:
        return math.inf
    if len(value.shape) == 0:
        return 1.0
    if len(value.shape) > 1:
        return 0.0
    size = value.shape[0]
    return float(max(size, 0)) if isinstance(size, int) else math.inf
