"""Make one of clamps that are written as several nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mrecg_onnx.converters.passes.values import add_initializer, constant, is_standard, rank, replace_node, sole_reader

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["fuse_clamps"]

Bound: TypeAlias = NDArray[np.generic]


def fuse_clamps(model: ir.Model) -> ir.Model:
    """Replace clamps in a row (Relu, Clip, and Min and Max with one float bound), by one Clip, or one Relu.

    1. Min(Relu(x), c) and Relu(Min(x, c)) are Clip(x, 0, c), Min(Max(x, d), c) and Max(Min(x, c), d) are Clip(x, d, c),
       Relu(Relu(x)) is Relu(x), Clip(Clip(x, a, b), d, c) is Clip(x, max(a, d), min(b, c));
    2. only where a value is left between the bounds, so that the order does not matter, and where nothing else reads what is
       between the two.

    The one takes over the name of the last node and of its output. Two of them in front of a quantizer are more than a matter of
    taste: ONNX Runtime below 1.31 drops both, and does not open the file then (``findings/ort_two_clamps_same_node_name.sh``).
    """
    for node in list(model.graph):
        outer = _clamp(node)
        if outer is None:
            continue
        maker = outer.source.producer()
        inner = _clamp(maker) if maker is not None and maker.graph is node.graph else None
        if maker is None or inner is None or sole_reader(outer.source) is not node:
            continue
        low, high = _tighter(inner.low, outer.low, max), _tighter(inner.high, outer.high, min)
        if low is not None and high is not None and float(low) > float(high):
            continue
        graph = model.graph
        if high is None and low is not None and float(low) == 0.0:
            one = ir.node("Relu", [inner.source], name=node.name, doc_string=node.doc_string)
        else:
            ends = [
                None if value is None else add_initializer(graph, f"{node.name}_{end}", value)
                for end, value in (("low", low), ("high", high))
            ]
            one = ir.node("Clip", [inner.source, *ends], name=node.name, doc_string=node.doc_string)
        one.metadata_props.update(node.metadata_props)
        replace_node(node, [one])
        graph.remove(maker, safe=True)
    return model


class _Clamp(NamedTuple):
    """What is clamped, and the bounds, without axes; None where there is none."""

    source: ir.Value
    low: Bound | None
    high: Bound | None


def _tighter(one: Bound | None, other: Bound | None, choose: Callable[..., float]) -> Bound | None:
    if one is None or other is None:
        return other if one is None else one
    return one if choose(float(one), float(other)) == float(one) else other


def _clamp(node: ir.Node) -> _Clamp | None:
    """The clamp that ``node`` is, on float32 and with constant bounds; None where it is none."""
    if not is_standard(node, "Relu", "Clip", "Min", "Max") or not node.inputs or node.inputs[0] is None:
        return None
    if node.op_type in {"Min", "Max"}:
        return _one_ended(node)
    source = node.inputs[0]
    if source.dtype != ir.DataType.FLOAT:
        return None
    if node.op_type == "Relu":
        return _Clamp(source, ir.tensor(0.0, ir.DataType.FLOAT).numpy(), None)
    ends: list[Bound | None] = []
    for value in [*node.inputs[1:3], None, None][:2]:
        bound = constant(value)
        if value is not None and (bound is None or bound.size != 1):
            return None
        ends.append(None if bound is None else bound.reshape(()))
    return _Clamp(source, *ends)


def _one_ended(node: ir.Node) -> _Clamp | None:
    """A Min or Max of something and one constant, on either side."""
    if len(node.inputs) != 2:
        return None
    for source, other in (node.inputs, node.inputs[::-1]):
        bound = constant(other)
        if source is None or bound is None or constant(source) is not None or bound.size != 1:
            continue
        axes = rank(source)
        if source.dtype == ir.DataType.FLOAT and axes is not None and bound.ndim <= axes:
            low, high = (None, bound.reshape(())) if node.op_type == "Min" else (bound.reshape(()), None)
            return _Clamp(source, low, high)
    return None
