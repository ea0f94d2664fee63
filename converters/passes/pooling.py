"""Write pools in the one form whose integer kernels are right: means as GlobalAveragePool, windows with their pads in front."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mrecg_onnx.converters.passes.transposes import permutation
from mrecg_onnx.converters.passes.values import (
    add_initializer,
    attribute_int,
    attribute_ints,
    claim,
    constant,
    dims,
    is_standard,
    rank,
    replace_node,
    unique_name,
)

__all__ = ["mean_to_pool", "miscounts", "plain_pools"]


def mean_to_pool(model: ir.Model) -> ir.Model:
    """Replace ReduceMean over exactly the two spatial axes of a 4-D tensor by GlobalAveragePool.

    ONNX Runtime has an integer kernel for the pool and none for the mean. The pool takes over the node's name; with
    keepdims=0 a Flatten follows that takes over the output's name. Where the mean reads a Transpose (to NHWC) of the map,
    the pool reads the map, and with keepdims=1 such a Transpose follows.
    """
    for node in list(model.graph):
        if not is_standard(node, "ReduceMean") or rank(node.inputs[0]) != 4:
            continue
        found = _pooled(node)
        if found is None:
            continue
        value, perm = found
        graph, output = model.graph, node.outputs[0]
        if value.dtype is not None and value.dtype not in {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE}:
            continue
        pool = ir.node("GlobalAveragePool", [value], name=node.name, doc_string=node.doc_string)
        pool.metadata_props.update(node.metadata_props)
        nodes = [pool]
        if not attribute_int(node, "keepdims", 1):
            pool.outputs[0].name = unique_name(graph, f"{output.name}_pooled")
            nodes.append(ir.node("Flatten", [pool.outputs[0]], {"axis": 1}, name=f"{node.name}_flatten"))
        elif perm is not None:
            pool.outputs[0].name = unique_name(graph, f"{output.name}_pooled")
            nodes.append(ir.node("Transpose", [pool.outputs[0]], {"perm": perm}, name=f"{node.name}_transpose"))
        replace_node(node, nodes)
    return model


def _pooled(node: ir.Node) -> tuple[ir.Value, list[int] | None] | None:
    """The map [N, C, H, W] whose two last axes ``node`` averages, and the Transpose that it reads the map through, if any."""
    axes, value = _axes(node), node.inputs[0]
    assert value is not None
    if axes == {2, 3}:
        return value, None
    maker = value.producer()
    perm = permutation(maker) if maker is not None and maker.graph is node.graph else None
    if maker is None or perm is None or axes is None or maker.inputs[0] is None:
        return None
    if {perm[axis] for axis in axes} != {2, 3} or [a for a in perm if a < 2] != [0, 1]:
        return None
    return maker.inputs[0], perm


def _axes(node: ir.Node) -> set[int] | None:
    """Return the axes of a mean of a 4-D tensor, counted from the front; None if they are not constant."""
    axes = attribute_ints(node, "axes")
    if axes is None and len(node.inputs) > 1:
        array = constant(node.inputs[1])
        axes = None if array is None else [int(axis) for axis in array.reshape(-1)]
    return None if axes is None else {axis % 4 for axis in axes}


def plain_pools(model: ir.Model) -> ir.Model:
    """Write every AveragePool without what ONNX Runtime's integer kernel for it gets wrong, where that is exact.

    With ``count_include_pad`` the kernel (QLinearAveragePool, 1.31 and 1.32) divides by the whole window also where ``ceil_mode``
    lets it hang over the pads, though elements beyond them never count. And it refuses the attribute ``dilations``.

    1. Dilations of 1 are left out.
    2. Without pads nothing is there to be counted: ``count_include_pad`` is left out.
    3. Where a window may hang over, pads that count become a Pad of zeros in front, behind which 2 holds.

    What remains is told by :func:`miscounts`.
    """
    labels = {node.name for node in model.graph}
    for node in list(model.graph):
        if not is_standard(node, "AveragePool"):
            continue
        if all(step == 1 for step in attribute_ints(node, "dilations") or ()):
            node.attributes.pop("dilations", None)
        if not attribute_int(node, "count_include_pad", 0):
            continue
        if miscounts(node) and "dilations" not in node.attributes and any(_pads(node)):
            pads = _pads_in_front(node)
            if pads is not None:
                _pad_in_front(node, pads, labels)
        if not any(_pads(node)) and _auto_pad(node) in {"NOTSET", "VALID"}:
            del node.attributes["count_include_pad"]
    return model


def miscounts(pool: ir.Node) -> bool:
    """Tell whether a window of an AveragePool that counts its pads may hang over them, where integer kernels are wrong."""
    if not attribute_int(pool, "count_include_pad", 0) or not attribute_int(pool, "ceil_mode", 0):
        return False
    if _auto_pad(pool).startswith("SAME"):  # these pads leave nothing to hang over
        return False
    sizes = dims(pool.inputs[0])
    kernel, pads = _extents(pool), _pads(pool)
    axes = len(kernel)
    strides = attribute_ints(pool, "strides") or [1] * axes
    if sizes is None:
        return any(stride > 1 for stride in strides)
    rooms = (
        None if size is None else size + pads[axis] + pads[axes + axis] - kernel[axis]
        for axis, size in enumerate(sizes[2:])
    )
    return any(stride > 1 and (room is None or room % stride) for room, stride in zip(rooms, strides, strict=True))


def _auto_pad(pool: ir.Node) -> str:
    return pool.attributes["auto_pad"].as_string() if "auto_pad" in pool.attributes else "NOTSET"


def _pads(pool: ir.Node) -> list[int]:
    """Pads as they are written, begins before ends; ``auto_pad`` says whether they hold."""
    written = attribute_ints(pool, "pads") if _auto_pad(pool) == "NOTSET" else None
    return list(written or [0] * 2 * len(_extents(pool)))


def _extents(pool: ir.Node) -> list[int]:
    """How far a window reaches along each axis."""
    kernel = attribute_ints(pool, "kernel_shape") or []
    steps = attribute_ints(pool, "dilations") or [1] * len(kernel)
    return [(size - 1) * step + 1 for size, step in zip(kernel, steps, strict=True)]


def _pads_in_front(pool: ir.Node) -> list[int] | None:
    """Pads behind which a pool with ``ceil_mode`` and none of its own has the same windows; None if only the size tells.

    A window that starts in the pad at the end is left out, and would not be behind a Pad. The last window starts less than a
    stride behind the last one that fits, that is before size + begin + end - kernel + stride. With end + stride <= kernel that is
    within the input and the pad in front of it, whatever the size. Else what the windows that are left do not reach is cut off.
    """
    kernel, pads, sizes = _extents(pool), _pads(pool), dims(pool.inputs[0])
    strides = attribute_ints(pool, "strides") or [1] * len(kernel)
    axes = len(kernel)
    for axis, (extent, stride) in enumerate(zip(kernel, strides, strict=True)):
        begin, end = pads[axis], pads[axes + axis]
        if end + stride <= extent:
            continue
        size = sizes[2 + axis] if sizes is not None else None
        if size is None:
            return None
        room = size + begin + end - extent
        if -(-room // stride) * stride >= size + begin:
            pads[axes + axis] -= room % stride
    return pads


def _pad_in_front(pool: ir.Node, pads: list[int], labels: set[str | None]) -> None:
    """Let ``pool`` read zeros for its pads."""
    graph, value = pool.graph, pool.inputs[0]
    assert isinstance(graph, ir.Graph)
    assert value is not None
    axes = len(pads) // 2
    amounts = np.array([0, 0, *pads[:axes], 0, 0, *pads[axes:]], np.int64)
    pad = ir.node(
        "Pad",
        [value, add_initializer(graph, f"{pool.name}_pads", amounts)],
        name=claim(f"{pool.name}_pad", labels),
    )
    pad.outputs[0].name = unique_name(graph, f"{value.name}_padded")
    pad.outputs[0].type = value.type
    graph.insert_before(pool, pad)
    pool.replace_input_with(0, pad.outputs[0])
    pool.attributes.pop("pads", None)
