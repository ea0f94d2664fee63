"""Leave out of a concatenation what holds nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from mrecg_onnx.converters.passes.values import attribute_int, dims, is_standard

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["drop_empties"]


def drop_empties(model: ir.Model) -> bool:
    """Remove inputs of Concat that are known to have no element along its axis; a Concat of one input becomes an Identity.

    Exporters leave them behind: the first state of a cache, a Slice past the end. One input stays where all are empty.

    Returns:
        Whether anything was removed.
    """
    changed = False
    for node in list(model.graph):
        if not is_standard(node, "Concat"):
            continue
        axis = attribute_int(node, "axis", 0)
        kept = [value for value in node.inputs if not _is_empty(value, axis)] or list(node.inputs[:1])
        if len(kept) == len(node.inputs):
            continue
        changed = True
        _read(node, kept)
        if len(kept) == 1:
            node.op_type = "Identity"
            del node.attributes["axis"]
    return changed


def _is_empty(value: ir.Value | None, axis: int) -> bool:
    sizes = dims(value)
    return sizes is not None and bool(sizes) and sizes[axis % len(sizes)] == 0


def _read(node: ir.Node, values: Sequence[ir.Value | None]) -> None:
    for index, value in enumerate(values):
        node.replace_input_with(index, value)
    for index in range(len(values), len(node.inputs)):
        node.replace_input_with(index, None)
    node.resize_inputs(len(values))
