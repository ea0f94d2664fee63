"""Free a fixed batch inside the graph, so that calibration can run many samples at a time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from mrecg_onnx.converters.passes.shape_values import Size, note_reshape, resolve_resize, size_of
from mrecg_onnx.converters.passes.shapes import infer_node
from mrecg_onnx.converters.passes.values import (
    add_initializer,
    attribute_int,
    constant,
    dims,
    is_standard,
    set_constant,
    unique_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = ["free_batch"]

# The batch while it is followed; nobody's own name for a size.
_BATCH = "mrecg_onnx_batch"


def free_batch(model: ir.Model) -> ir.Model:
    """Take the number of the model's fixed batch out of constants, where that changes nothing at that batch.

    Exporters write ``Reshape(x, [1, 512])`` for a model with batch 1, repeat a class token as often as the batch, and so
    on. The function of the file does not change; without the number the same nodes also run on a batch of 32. Where the
    batch is in each tensor follows from shape inference with a symbolic one:

    1. Reshape to constant sizes: 0 or -1 at the batch's place;
    2. Expand to constant sizes: 1 at the batch's place;
    3. Resize to sizes: scales;
    4. a constant with equal slices for all samples: one slice, which is broadcast, or in a Concat an Expand of it.
    """
    batches = {(dims(value) or [None])[0] for value in model.graph.inputs}
    if len(batches) != 1 or None in batches:
        return model
    batch = int(batches.pop() or 0)
    if batch < 1:
        return model
    old = {value: value.shape for value in model.graph.inputs}
    for value, shape in old.items():
        assert shape is not None
        value.shape = ir.Shape([_BATCH, *list(shape)[1:]])
    version = model.opset_imports.get("", 0)
    for node in list(model.graph):
        if not is_standard(node) or not any(_batch_axis(value) is not None for value in node.inputs):
            continue
        _RULES.get(node.op_type, _free_broadcast)(node, batch)
        infer_node(node, version)
        if node.op_type == "Reshape":
            note_reshape(node)
    for value, shape in old.items():
        value.shape = shape
    for node in model.graph:
        for output in node.outputs:
            if _batch_axis(output) is not None:
                output.shape = None
    return model


def _elements(value: ir.Value | None) -> list[int | Size | None]:
    if value is None or value.shape is None:
        return []
    return [size_of(value, axis) for axis in range(len(value.shape))]


def _batch_axis(value: ir.Value | None) -> int | None:
    """The axis of ``value`` that is a multiple of the batch."""
    found = [axis for axis, size in enumerate(_elements(value)) if isinstance(size, Size) and size.name == _BATCH]
    return found[0] if len(found) == 1 else None


def _free_reshape(node: ir.Node, batch: int) -> None:
    source, target = node.inputs[0], constant(node.inputs[1])
    axis = _batch_axis(source)
    if target is None or axis is None:
        return
    own = _elements(source)
    shape = [int(size) for size in target]
    if attribute_int(node, "allowzero", 0):
        if 0 in shape:
            return  # an empty dimension, not "as in the input"
        # torch.export's exporter always writes allowzero; without a 0 in the shape it says nothing.
        node.attributes.pop("allowzero")
    first = bool(shape) and shape[0] == batch and own[0] == Size(_BATCH)
    place = 0 if first else _place(_fill(shape, own, batch), own[axis:], batch)
    if place is None or shape[place] in {0, -1}:
        return
    if place < len(own) and own[place] == Size(_BATCH, times=max(1, shape[place] // batch)):
        shape[place] = 0
    elif -1 not in shape:
        shape[place] = -1
    else:
        shape = _fill(shape, own, batch)
        shape[place] = -1
    set_constant(node, 1, np.asarray(shape, np.int64), f"{node.name}_shape")


def _fill(shape: Sequence[int], own: Sequence[int | Size | None], batch: int) -> list[int]:
    """``shape`` with numbers for 0 and -1, at the fixed batch; empty if a size is not known."""
    known = [size.times * batch if isinstance(size, Size) and size.name == _BATCH else size for size in own]
    numbers = [size for size in known if isinstance(size, int)]
    if len(numbers) < len(known):
        return []
    filled = [numbers[place] if size == 0 and place < len(numbers) else size for place, size in enumerate(shape)]
    if -1 in filled:
        others = math.prod(size for size in filled if size != -1)
        if others == 0:
            return []
        filled[filled.index(-1)] = math.prod(numbers) // others
    return filled


def _place(shape: Sequence[int], behind: Sequence[int | Size | None], batch: int) -> int | None:
    """The axis of a target ``shape`` that steps through the samples, None where it is not known.

    ``behind`` are the source's sizes from the batch's axis on: they say how many elements a sample takes there.
    """
    stride = math.prod(size.times if isinstance(size, Size) else size or 0 for size in behind)
    inside = [math.prod(shape[place + 1 :]) for place in range(len(shape))]
    fits = [p for p, size in enumerate(shape) if stride % inside[p] == 0 and size * inside[p] >= batch * stride]
    exact = [p for p in fits if shape[p] * inside[p] == batch * stride]
    return next(iter(exact or fits), None)


def _free_expand(node: ir.Node, batch: int) -> None:
    target, axis = constant(node.inputs[1]), _batch_axis(node.inputs[0])
    if target is None or axis is None:
        return
    place = len(target) - len(_elements(node.inputs[0])) + axis
    if place < 0 or int(target[place]) % batch or int(target[place]) == 1:
        return
    shape = np.asarray(target, np.int64).copy()
    shape[place] = 1
    set_constant(node, 1, shape, f"{node.name}_shape")


def _free_resize(node: ir.Node, batch: int) -> None:
    sizes = constant(node.inputs[3]) if len(node.inputs) > 3 else None
    axis = _batch_axis(node.inputs[0])
    if sizes is None or axis is None or "axes" in node.attributes:
        return
    wanted: list[int | Size | None] = [int(size) for size in sizes]
    own = _elements(node.inputs[0])[axis]
    assert isinstance(own, Size)
    if wanted[axis] == own.times * batch:
        wanted[axis] = own
        resolve_resize(node, wanted)


def _free_concat(node: ir.Node, batch: int) -> None:
    """Expand a constant to the batch of the activations beside it."""
    batched = next((value for value in node.inputs if _batch_axis(value) is not None), None)
    axis = _batch_axis(batched)
    if batched is None or axis is None or attribute_int(node, "axis", 0) % len(_elements(batched)) == axis:
        return
    for index, value in enumerate(node.inputs):
        slice_ = _one_slice(constant(value), axis, _elements(batched)[axis], batch)
        if slice_ is None:
            continue
        axes, graph = np.asarray([axis], np.int64), node.graph
        assert isinstance(graph, ir.Graph)
        wish = f"{node.name}_{index}"
        place = add_initializer(graph, f"{wish}_axis", axes)
        count = _insert(node, "Gather", [_insert(node, "Shape", [batched], wish), place], wish)
        ones = [np.ones(length, np.int64) for length in (axis, slice_.ndim - axis - 1)]
        before, after = (add_initializer(graph, f"{wish}_ones", one) for one in ones)
        target = _insert(node, "Concat", [before, count, after], wish)
        expanded = _insert(node, "Expand", [add_initializer(graph, f"{wish}_slice", slice_), target], wish)
        expanded.shape = ir.Shape([*slice_.shape[:axis], str(_elements(batched)[axis]), *slice_.shape[axis + 1 :]])
        node.replace_input_with(index, expanded)


def _insert(node: ir.Node, op: str, inputs: Sequence[ir.Value], wish: str) -> ir.Value:
    """The output of a new node in front of ``node``; its type and shape are inferred."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    made = ir.node(op, inputs, {"axis": 0} if op in {"Gather", "Concat"} else {}, name=f"{wish}_{op}")
    output = made.outputs[0]
    output.name = unique_name(graph, f"{wish}_{op}_output")
    first = inputs[0].dtype or ir.DataType.FLOAT
    output.type = ir.TensorType(ir.DataType.INT64 if op == "Shape" else first)
    graph.insert_before(node, made)
    return output


def _free_broadcast(node: ir.Node, batch: int) -> None:
    """Keep one slice of constants that an elementwise op or MatMul broadcasts."""
    if node.op_type not in _BROADCASTING:
        return
    batched = next((value for value in node.inputs if _batch_axis(value) is not None), None)
    axis = _batch_axis(batched)
    assert axis is not None
    own = _elements(batched)
    for index, value in enumerate(node.inputs):
        array = constant(value)
        place = axis - len(own) + array.ndim if array is not None else -1
        if place < 0 or (node.op_type == "MatMul" and place >= len(own) - 2):
            continue
        slice_ = _one_slice(array, place, own[axis], batch)
        if slice_ is not None and array is not None and array.shape[place] > 1:
            set_constant(node, index, slice_, f"{value.name if value is not None else node.name}_slice")


def _one_slice(
    array: NDArray[np.generic] | None, axis: int, size: int | Size | None, batch: int
) -> NDArray[np.generic] | None:
    """The one slice along ``axis`` that ``array`` repeats for each sample, None if it does not."""
    if array is None or not isinstance(size, Size) or axis >= array.ndim or array.shape[axis] != size.times * batch:
        return None
    first = array.take([0], axis)
    return first if bool((array == first).all()) else None


_BROADCASTING = frozenset(
    {"Add", "And", "Div", "Equal", "Greater", "Less", "MatMul", "Max", "Min", "Mul", "Or", "Pow", "Sub", "Where"}
)
_RULES: dict[str, Callable[[ir.Node, int], None]] = {
    "Concat": _free_concat,
    "Expand": _free_expand,
    "Reshape": _free_reshape,
    "Resize": _free_resize,
}
