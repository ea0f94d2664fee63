"""What a network's tensors take, known from the shapes in its graph before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from mrecg_onnx.planning.plan import Plan, UnitPlan

__all__ = ["LOCAL_OPS", "POINTWISE_OPS", "Footprint", "footprint"]

#: Operators whose result at a pixel depends on that pixel, or on those around it: maps between them may be cut into windows.
POINTWISE_OPS = frozenset({
    "Add", "Clip", "Div", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Min", "Mish", "Mul", "PRelu",
    "Relu", "Selu", "Sigmoid", "Softplus", "Sub", "Tanh",
})  # fmt: skip
LOCAL_OPS = frozenset({"Conv", "MaxPool", "AveragePool"})
#: Bytes of a number in torch.
_FLOAT = 4
#: Pixels on both sides of a window that a cut spoils, about.
_SPOILED = 8


@dataclass(frozen=True)
class Footprint:
    """Bytes in float32.

    Attributes:
        weights: of all initializers.
        inputs: of one image, all inputs.
        tensors: of one image, all that the nodes make.
        unit: of one image, what the nodes of the largest unit make while it learns.
        pair: the same of two neighbours.
        maps: of one image, what the nodes of the largest unit make of whole maps.
        unknown: tensors whose size the graph does not say; they are left out.
    """

    weights: int
    inputs: int
    tensors: int
    unit: int
    pair: int
    maps: int = 0
    unknown: int = 0


def footprint(
    graph: ir.Model,
    plan: Plan,
    inputs: Sequence[Sequence[int | None]],
    window: int = 0,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Footprint:
    """What ``graph`` takes.

    Args:
        graph: normalized, with shapes where they could be inferred.
        plan: its units.
        inputs: shapes of the inputs as they are fed, batch first.
        window: largest side of the maps that a unit learns from, 0 for whole maps.
        shapes: of tensors by name, of one image, where the graph does not say them.
    """
    nodes = {node.name: node for node in graph.graph}
    sizes = {name: [_sizes(value, shapes or {}) for value in node.outputs] for name, node in nodes.items()}

    def made_by(unit: UnitPlan) -> list[tuple[int, ...]]:
        return [found for name in unit.nodes if name in nodes for found in sizes[name] if found is not None]

    def learned(unit: UnitPlan) -> int:
        mine = [name for name in unit.nodes if name in nodes]
        made = made_by(unit)
        maps = [found[1:] for found in made if len(found) == 3]
        if window == 0 or not maps or any(nodes[name].op_type not in POINTWISE_OPS | LOCAL_OPS for name in mine):
            return sum(_bytes(found) for found in made)
        least = min(maps)  # the window is cut there; a map in front of a stride is read in a larger one

        def sides(found: tuple[int, ...]) -> list[int]:
            return (
                [window * a // b + _SPOILED for a, b in zip(found[1:], least, strict=True)] if len(found) == 3 else []
            )

        return sum(_bytes(found, sides(found)) for found in made)

    units = [learned(unit) for unit in plan.units]
    return Footprint(
        weights=_FLOAT * sum(_count(value.shape) or 0 for value in graph.graph.initializers.values()),
        inputs=_FLOAT * sum(math.prod(size or 1 for size in shape[1:]) for shape in inputs),
        tensors=sum(_bytes(found) for made in sizes.values() for found in made),
        unit=max(units, default=0),
        pair=max((sum(units[i : i + 2]) for i in range(len(units))), default=0),
        maps=max((sum(map(_bytes, made_by(unit))) for unit in plan.units), default=0),
        unknown=sum(made.count(None) for made in sizes.values()),
    )


def _sizes(value: ir.Value, shapes: Mapping[str, Sequence[int]]) -> tuple[int, ...] | None:
    """Of one image; None where nobody knows."""
    known = [size for size in value.shape[1:] if isinstance(size, int)] if value.shape is not None else None
    if known is not None and value.shape is not None and len(known) == max(0, len(value.shape) - 1):
        return tuple(known)
    name = value.name or ""
    return tuple(shapes[name]) if name in shapes else None


def _bytes(sizes: tuple[int, ...] | None, most: Sequence[int] = ()) -> int:
    """Of a tensor of one image; of a map with at most so many rows and columns."""
    if sizes is None:
        return 0
    if most:
        sizes = sizes[0], *map(min, sizes[1:], most)
    return _FLOAT * math.prod(sizes)


def _count(sizes: ir.Shape | None) -> int | None:
    """Numbers of a tensor, None where a size is free."""
    if sizes is None:
        return None
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if len(known) == len(sizes) else None
