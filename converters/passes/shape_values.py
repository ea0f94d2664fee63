"""Follow tensors that hold sizes (Shape, Gather, Concat, ... chains) and make Reshape's target constant where possible.

Each element of such a tensor is known as a number, or as a size of some tensor (a named one such as ``batch``, or axis
k of a given tensor), or not at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from mrecg_onnx.converters.passes.constants import make_constant
from mrecg_onnx.converters.passes.shapes import infer_node, is_vague
from mrecg_onnx.converters.passes.values import (
    add_initializer,
    attribute_int,
    constant,
    dims,
    is_standard,
    set_constant,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Size", "note_reshape", "resolve_resize", "resolve_shapes", "size_of"]

# Longer integer tensors are data (token ids, tables of indices), not shapes.
_MAX_LENGTH = 64


@dataclass(frozen=True)
class Size:
    """A multiple of a size that is not known as a number; equal sizes compare equal. It is never negative."""

    name: str
    axis: int = -1
    times: int = 1

    @classmethod
    def read(cls, text: str) -> Size:
        """The size that shape inference calls ``batch`` or ``4*batch``."""
        times, star, name = text.partition("*")
        return cls(name, times=int(times)) if star and times.isdecimal() else cls(text)

    def __str__(self) -> str:
        return self.name if self.times == 1 else f"{self.times}*{self.name}"


Element = int | Size | None


@dataclass(frozen=True)
class ShapeValue:
    """What is known of an integer tensor with at most one axis."""

    elements: tuple[Element, ...]
    is_scalar: bool = False


Known = dict[ir.Value, ShapeValue]


def resolve_shapes(model: ir.Model) -> bool:
    """Make constant what shape arithmetic determines, in one walk in which each node sees the shapes found before it.

    1. A tensor of sizes whose elements are all known as numbers becomes an initializer.
    2. Reshape to sizes that are partly symbolic gets a constant target: 0 where the size is the input's own at the same
       place, and -1 for at most one other. Both hold for every input, as the number of elements does not change.
    3. A constant target's -1 that can only mean the input's own symbolic size at the same place becomes 0, so that
       shape inference keeps the name of the size (``batch``).
    4. Resize to sizes of which the symbolic ones are the input's own gets constant scales instead.

    Returns:
        Whether anything was changed.
    """
    known: Known = {}
    changed = False
    version = model.opset_imports.get("", 0)
    for node in list(model.graph):
        if not is_standard(node):
            continue
        if any(output.shape is None or is_vague(output.shape) for output in node.outputs):
            infer_node(node, version)
        rule = _RULES.get(node.op_type)
        if rule is not None:
            found = rule(node, known)
            if found is not None and len(found.elements) <= _MAX_LENGTH:
                known[node.outputs[0]] = found
                changed |= _to_initializer(node, found)
        if node.op_type == "Reshape":
            changed |= _resolve_reshape(node, known) or _keep_symbolic(node)
            note_reshape(node)
        if node.op_type == "Resize" and len(node.inputs) > 3:
            sizes = known.get(node.inputs[3]) if node.inputs[3] is not None else None
            changed |= sizes is not None and resolve_resize(node, sizes.elements)
    return changed


def size_of(value: ir.Value, axis: int) -> Element:
    """Return the size of an axis of a value of known rank."""
    assert value.shape is not None
    size = value.shape[axis]
    if isinstance(size, int):
        return size
    return Size.read(size.value) if size.value is not None else Size(f"of {value.name}", axis)


def _known(value: ir.Value | None, known: Known) -> ShapeValue | None:
    if value is None:
        return None
    if value in known:
        return known[value]
    array = constant(value)
    if array is None or array.ndim > 1 or array.size > _MAX_LENGTH or array.dtype not in (np.int64, np.int32):
        return None
    return ShapeValue(tuple(int(item) for item in array.reshape(-1)), array.ndim == 0)


def _to_initializer(node: ir.Node, found: ShapeValue) -> bool:
    output = node.outputs[0]
    numbers = [element for element in found.elements if isinstance(element, int)]
    if len(numbers) < len(found.elements) or output.is_graph_output() or not output.uses():
        return False
    dtype = np.int64 if output.dtype is None else output.dtype.numpy()
    make_constant(output, np.array(numbers[0] if found.is_scalar else numbers, dtype))
    return True


def _shape(node: ir.Node, _known_values: Known) -> ShapeValue | None:
    value = node.inputs[0]
    if value is None or value.shape is None:
        return None
    sizes = tuple(size_of(value, axis) for axis in range(len(value.shape)))
    start = attribute_int(node, "start", 0)
    end = attribute_int(node, "end", len(sizes))
    return ShapeValue(sizes[start:end])


def _gather(node: ir.Node, known: Known) -> ShapeValue | None:
    data, index = _known(node.inputs[0], known), constant(node.inputs[1])
    if data is None or data.is_scalar or index is None or index.ndim > 1:
        return None
    length = len(data.elements)
    places = [int(item) for item in index.reshape(-1)]
    if any(not -length <= place < length for place in places):
        return None
    return ShapeValue(tuple(data.elements[place] for place in places), index.ndim == 0)


def _slice(node: ir.Node, known: Known) -> ShapeValue | None:
    data = _known(node.inputs[0], known)
    bounds = [constant(value) for value in node.inputs[1:]]
    if data is None or data.is_scalar or len(bounds) < 2 or bounds[0] is None or bounds[1] is None:
        return None
    step = 1
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        steps = bounds[3]
        if steps is None or steps.size != 1:
            return None
        step = int(steps.reshape(-1)[0])
    if step < 1 or bounds[0].size != 1:
        return None
    start, end = int(bounds[0].reshape(-1)[0]), int(bounds[1].reshape(-1)[0])
    return ShapeValue(data.elements[start:end:step])


def _unsqueeze(node: ir.Node, known: Known) -> ShapeValue | None:
    data = _known(node.inputs[0], known)
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if data is None or not data.is_scalar or axes is None or axes.size != 1:
        return None
    return ShapeValue(data.elements)


def _squeeze(node: ir.Node, known: Known) -> ShapeValue | None:
    data = _known(node.inputs[0], known)
    if data is None or data.is_scalar or len(data.elements) != 1:
        return None
    return ShapeValue(data.elements, is_scalar=True)


def _concat(node: ir.Node, known: Known) -> ShapeValue | None:
    parts = [_known(value, known) for value in node.inputs]
    elements: list[Element] = []
    for value, part in zip(node.inputs, parts, strict=True):
        if part is not None and not part.is_scalar:
            elements.extend(part.elements)
        elif (
            value is not None and value.shape is not None and len(value.shape) == 1 and isinstance(value.shape[0], int)
        ):
            elements.extend([None] * min(value.shape[0], _MAX_LENGTH + 1))
        else:
            return None
        if len(elements) > _MAX_LENGTH:  # sizes from a file: not written out
            return None
    return ShapeValue(tuple(elements))


def _cast(node: ir.Node, known: Known) -> ShapeValue | None:
    data = _known(node.inputs[0], known)
    integer = attribute_int(node, "to", 0) in {int(ir.DataType.INT64), int(ir.DataType.INT32)}
    return data if integer else None


def _same(node: ir.Node, known: Known) -> ShapeValue | None:
    return _known(node.inputs[0], known)


def _reshape(node: ir.Node, known: Known) -> ShapeValue | None:
    data, target = _known(node.inputs[0], known), constant(node.inputs[1])
    if data is None or target is None or target.size > 1:
        return None
    if target.size == 0:
        return ShapeValue(data.elements, is_scalar=True) if len(data.elements) == 1 else None
    return ShapeValue(data.elements) if int(target[0]) in {-1, len(data.elements)} else None


def _arithmetic(combine: Callable[[Element, Element], Element]) -> Callable[..., ShapeValue | None]:
    """Make the rule of an elementwise operator from what it does to two sizes."""

    def rule(node: ir.Node, known: Known) -> ShapeValue | None:
        left, right = _known(node.inputs[0], known), _known(node.inputs[1], known)
        if left is None or right is None:
            return None
        length = max(len(left.elements), len(right.elements))
        if any(len(side.elements) not in {1, length} for side in (left, right)):
            return None
        pairs = zip(
            left.elements * (length // len(left.elements)),
            right.elements * (length // len(right.elements)),
            strict=True,
        )
        return ShapeValue(tuple(combine(*pair) for pair in pairs), left.is_scalar and right.is_scalar)

    return rule


def _add(left: Element, right: Element) -> Element:
    if isinstance(left, int) and isinstance(right, int):
        return left + right
    return left if right == 0 else right if left == 0 else None


def _subtract(left: Element, right: Element) -> Element:
    if isinstance(left, int) and isinstance(right, int):
        return left - right
    return left if right == 0 else None


def _multiply(left: Element, right: Element) -> Element:
    if isinstance(left, int) and isinstance(right, int):
        return left * right
    if isinstance(left, int):
        left, right = right, left
    if isinstance(left, Size) and isinstance(right, int) and right > 0:
        return replace(left, times=left.times * right)
    return None


def _divide(left: Element, right: Element) -> Element:
    if not isinstance(right, int) or right <= 0:
        return None
    if isinstance(left, Size):
        return replace(left, times=left.times // right) if left.times % right == 0 else None
    # ONNX rounds towards zero, Python down; they agree where both are positive.
    return left // right if left is not None and left >= 0 else None


_RULES: dict[str, Callable[[ir.Node, Known], ShapeValue | None]] = {
    "Add": _arithmetic(_add),
    "Cast": _cast,
    "Concat": _concat,
    "Div": _arithmetic(_divide),
    "Gather": _gather,
    "Identity": _same,
    "Mul": _arithmetic(_multiply),
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _arithmetic(_subtract),
    "Unsqueeze": _unsqueeze,
}


def _resolve_reshape(node: ir.Node, known: Known) -> bool:
    data, target = node.inputs[0], node.inputs[1]
    if data is None or target is None or data.shape is None or constant(target) is not None:
        return False
    found = known.get(target)
    if found is None or found.is_scalar or (attribute_int(node, "allowzero", 0) and 0 in found.elements):
        return False
    wanted = _constant_target(data, found.elements)
    if wanted is None:
        return False
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    # Without a literal 0 among the sizes the attribute said nothing; with the new ones it would.
    node.attributes.pop("allowzero", None)
    node.replace_input_with(1, add_initializer(graph, f"{target.name}_constant", np.array(wanted, np.int64)))
    return True


def resolve_resize(node: ir.Node, elements: Sequence[Element]) -> bool:
    """Give a Resize constant scales in place of sizes that are ``elements``; return whether that was possible."""
    data = node.inputs[0]
    if data is None or data.shape is None:
        return False
    policy = node.attributes.get("keep_aspect_ratio_policy")
    stretches = policy is None or policy.as_string() == "stretch"
    if len(elements) != len(data.shape) or "axes" in node.attributes or not stretches:
        return False
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "nearest"
    scales = []
    for axis, wanted in enumerate(elements):
        own = size_of(data, axis)
        if wanted is not None and wanted == own:
            scales.append(np.float32(1))
        elif isinstance(wanted, int) and isinstance(own, int):
            scale = _scale(own, wanted, exact=mode == "nearest")
            if scale is None:
                return False
            scales.append(scale)
        else:
            return False
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    node.replace_input_with(2, add_initializer(graph, f"{node.name}_scales", np.array(scales, np.float32)))
    node.resize_inputs(3)
    return True


def _scale(own: int, wanted: int, *, exact: bool) -> np.float32 | None:
    """Return a factor from which a size follows as floor(own * factor), in float32 and in float64.

    The first choice is what ONNX Runtime itself computes from sizes. Where that falls short by rounding, the next
    larger number does; that moves coordinates by one unit in the last place, which rounding to nearest may not forgive.
    """
    scale = np.float32(wanted) / np.float32(own)
    for candidate in (scale,) if exact else (scale, np.nextafter(scale, np.float32(np.inf))):
        if math.floor(np.float32(own) * candidate) == wanted == math.floor(own * float(candidate)):
            return np.float32(candidate)
    return None


def _keep_symbolic(node: ir.Node) -> bool:
    data, target = node.inputs[0], constant(node.inputs[1])
    own = dims(data)
    if own is None or target is None:
        return False
    wanted = [int(size) for size in target]
    if wanted.count(-1) != 1 or min([size for size in wanted if size != -1], default=1) < 1:
        return False
    place = wanted.index(-1)
    if place >= len(own) or own[place] is not None:
        return False
    others = [size for axis, size in enumerate(own) if axis != place]
    if None in others or math.prod(size for size in others if size is not None) != -math.prod(wanted):
        return False
    wanted[place] = 0
    node.attributes.pop("allowzero", None)
    set_constant(node, 1, np.array(wanted, np.int64), f"{node.name}_shape")
    return True


def note_reshape(node: ir.Node) -> None:
    """Give the output of a Reshape to constant sizes its shape, -1 as a multiple of a symbolic size where it is one."""
    data, target = node.inputs[0], constant(node.inputs[1])
    if data is None or data.shape is None or target is None or attribute_int(node, "allowzero", 0):
        return
    own = [size_of(data, axis) for axis in range(len(data.shape))]
    wanted: list[Element] = [
        own[place] if size == 0 and place < len(own) else int(size) for place, size in enumerate(target)
    ]
    if -1 in wanted:
        total, others = _product(own), _product([size for size in wanted if size != -1])
        if total is None or others is None or others[0] == 0:
            return
        if others[1] not in {None, total[1]} or total[0] % others[0]:
            return
        count, left = total[0] // others[0], total[1] if others[1] is None else None
        wanted[wanted.index(-1)] = count if left is None else replace(left, times=count)
    if None not in wanted:
        node.outputs[0].shape = ir.Shape([size if isinstance(size, int) else str(size) for size in wanted])


def _product(sizes: list[Element]) -> tuple[int, Size | None] | None:
    """(number, symbolic size or None) whose product is that of ``sizes``; None if that is none or several sizes'."""
    symbols = [size for size in sizes if isinstance(size, Size)]
    if None in sizes or len(symbols) > 1 or any(size.axis >= 0 for size in symbols):
        return None
    number = math.prod(size.times if isinstance(size, Size) else size for size in sizes if size is not None)
    return number, replace(symbols[0], times=1) if symbols else None


def _constant_target(data: ir.Value, elements: tuple[Element, ...]) -> list[int] | None:
    """Return sizes, 0 and -1 that say the same as ``elements``, None where that cannot be proved."""
    assert data.shape is not None
    own = [size_of(data, axis) for axis in range(len(data.shape))]
    wanted: list[int] = []
    for place, element in enumerate(elements):
        if element is None:
            return None
        if isinstance(element, int):
            wanted.append(element)
        elif place < len(own) and own[place] == element:
            wanted.append(0)
        else:
            wanted.append(-1)
    if wanted.count(-1) > 1:
        return None
    if -1 in wanted and any(size == 0 and place >= len(own) for place, size in enumerate(wanted)):
        return None
    return wanted
