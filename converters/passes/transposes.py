"""Remove Transposes that undo each other, as exporters that work on NHWC leave them around every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mrecg_onnx.converters.passes.values import attribute_ints, is_standard, rank, replace_value

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["cancel_transposes", "permutation"]


def cancel_transposes(model: ir.Model) -> bool:
    """Let what reads the second of two Transposes that undo each other read what the first one reads.

    So does what reads a Transpose that leaves all axes where they are. A Transpose that something else reads as well stays for
    it, and so does one whose output's name, a graph output's, could not be kept.

    Returns:
        Whether anything was changed.
    """
    changed = False
    for node in list(model.graph):
        own = permutation(node)
        if own is None:
            continue
        source = node.inputs[0]
        assert source is not None
        if own != sorted(own):
            maker = source.producer()
            before = permutation(maker) if maker is not None and maker.graph is node.graph else None
            if maker is None or before is None or [before[axis] for axis in own] != sorted(own):
                continue
            source = maker.inputs[0]
            assert source is not None
        if replace_value(node.outputs[0], source):
            model.graph.remove(node, safe=True)
            changed = True
    return changed


def permutation(node: ir.Node) -> list[int] | None:
    """Return where each axis of a Transpose's output comes from; None for other nodes, and where that is not known."""
    if not is_standard(node, "Transpose") or not node.inputs or node.inputs[0] is None:
        return None
    perm = attribute_ints(node, "perm")
    axes = rank(node.inputs[0])
    return perm if perm is not None or axes is None else list(reversed(range(axes)))
