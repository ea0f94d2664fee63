"""Operators that move, cut, repeat or describe elements without computing with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrecg_onnx.converters.ops.common import (
    OnnxGraph,
    OnnxNode,
    OperationConverterResult,
    constant_ints,
    constant_of,
    has_input,
    input_name,
    integers,
    reject,
    result,
    to_tensor,
)
from mrecg_onnx.converters.ops.elementwise import Elementwise
from mrecg_onnx.converters.registry import converter

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["OnnxPad", "OnnxReshape", "OnnxSlice", "OnnxSplit", "Static", "list_attribute", "static"]


class Static(nn.Module):
    """An operator with integer arguments that are numbers where they are constant and inputs where they are not.

    Subclasses write ``compute(x, *arguments)`` with the arguments as lists of integers, or None where absent.

    Attributes:
        arguments: The lists; None for an absent argument and for one that is an input.
        inputs: Which arguments are inputs, by index.
    """

    def __init__(self, arguments: Sequence[list[int] | None], inputs: Sequence[int] = ()) -> None:
        super().__init__()
        self.arguments, self.inputs = list(arguments), list(inputs)

    def compute(self, x: Tensor, *arguments: list[int] | None) -> Any:
        """Compute the operator."""
        raise NotImplementedError

    def forward(self, x: Tensor, *inputs: Tensor) -> Any:
        """Fill in the arguments that are inputs, and compute."""
        arguments = list(self.arguments)
        for index, value in zip(self.inputs, inputs, strict=True):
            arguments[index] = integers(value)
        return self.compute(x, *arguments)

    def extra_repr(self) -> str:
        """Show the arguments."""
        return f"arguments={self.arguments}, inputs={self.inputs}"


def static(
    kind: type[Static],
    node: OnnxNode,
    graph: OnnxGraph,
    indices: Sequence[int],
    **options: Any,
) -> OperationConverterResult:
    """Make a module of ``kind`` from the node's inputs ``indices``."""
    values = [constant_ints(node, index, graph) for index in indices]
    dynamic = [place for place, index in enumerate(indices) if values[place] is None and has_input(node, index)]
    module = kind(values, dynamic)
    for name, value in options.items():
        setattr(module, name, value)
    return result(module, node, [input_name(node, 0), *(input_name(node, indices[place]) for place in dynamic)])


class OnnxReshape(Static):
    """ONNX Reshape."""

    allowzero = False

    def compute(self, x: Tensor, *arguments: list[int] | None) -> Tensor:
        """Give ``x`` another shape: 0 keeps the size at its place, -1 takes what is left."""
        (shape,) = arguments
        assert shape is not None
        if not self.allowzero:
            shape = [x.shape[place] if size == 0 else size for place, size in enumerate(shape)]
        return x.reshape(shape)


@converter("Reshape", 5)
def _reshape(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return static(OnnxReshape, node, graph, [1], allowzero=bool(node.attributes.get("allowzero", 0)))


@converter("Flatten")
def _flatten(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    axis = node.attributes.get("axis", 1)

    def flatten(x: Tensor) -> Tensor:
        rows = 1
        for size in x.shape[: axis + x.ndim if axis < 0 else axis]:
            rows *= size
        return x.reshape(rows, x.numel() // rows if rows else -1)

    return result(Elementwise(flatten), node)


class OnnxSqueeze(Static):
    """ONNX Squeeze."""

    def compute(self, x: Tensor, *arguments: list[int] | None) -> Tensor:
        """Drop the axes given, or all of length 1."""
        (axes,) = arguments
        if axes is None:
            return x.squeeze()
        return x.squeeze(tuple(axis % x.ndim for axis in axes)) if axes else x


class OnnxUnsqueeze(Static):
    """ONNX Unsqueeze."""

    def compute(self, x: Tensor, *arguments: list[int] | None) -> Tensor:
        """Insert axes of length 1 at the given places of the result."""
        (axes,) = arguments
        assert axes is not None
        rank = x.ndim + len(axes)
        for axis in sorted(axis % rank for axis in axes):
            x = x.unsqueeze(axis)
        return x


def list_attribute(node: OnnxNode, name: str) -> list[int] | None:
    """Return an attribute that is a list; onnx2torch hands an empty one over as the raw attribute."""
    value = node.attributes.get(name)
    return None if value is None else list(value) if isinstance(value, list) else []


@converter("Squeeze", 1, 12)
def _old_squeeze(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    return result(OnnxSqueeze([list_attribute(node, "axes")]), node)


@converter("Squeeze", 13)
def _squeeze(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return static(OnnxSqueeze, node, graph, [1])


@converter("Unsqueeze", 1, 12)
def _old_unsqueeze(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    return result(OnnxUnsqueeze([list_attribute(node, "axes")]), node)


@converter("Unsqueeze", 13)
def _unsqueeze(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return static(OnnxUnsqueeze, node, graph, [1])


@converter("Transpose")
def _transpose(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    perm = list_attribute(node, "perm")
    return result(Elementwise(lambda x: x.permute(perm if perm is not None else list(range(x.ndim))[::-1])), node)


@converter("Concat", 4)
def _concat(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    axis = node.attributes["axis"]
    return result(Elementwise(lambda *inputs: torch.cat(inputs, dim=axis)), node)


class OnnxSlice(Static):
    """ONNX Slice."""

    def compute(self, x: Tensor, *arguments: list[int] | None) -> Tensor:
        """Cut ``x`` along the axes; a negative step walks backwards."""
        starts, ends, axes, steps = arguments
        assert starts is not None
        assert ends is not None
        axes = list(range(len(starts))) if axes is None else axes
        steps = [1] * len(starts) if steps is None else steps
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            size = x.shape[axis]
            if step > 0:
                # Python's own slices clamp as ONNX's do.
                begin, stop, stride = slice(start, end, step).indices(size)
                place = [slice(None)] * (axis % x.ndim) + [slice(begin, max(stop, begin), stride)]
                x = x[tuple(place)]
            else:
                # An end before the first element is written as a number below -size, which Python reads as one from
                # the end; None is what it calls it.
                stop_at = None if end < -size else end
                indices = range(size)[slice(start, stop_at, step)]
                x = x.index_select(axis, torch.tensor(list(indices), dtype=torch.int64, device=x.device))
        return x


@converter("Slice", 1, 9)
def _old_slice(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    values = [list_attribute(node, name) for name in ("starts", "ends", "axes")]
    return result(OnnxSlice([*values, None]), node)


@converter("Slice", 10)
def _slice(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return static(OnnxSlice, node, graph, [1, 2, 3, 4])


@converter("Gather")
def _gather(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    axis = node.attributes.get("axis", 0)

    def gather(x: Tensor, indices: Tensor) -> Tensor:
        places = indices.to(torch.int64)
        size = x.shape[axis]
        flat = torch.where(places < 0, places + size, places).reshape(-1)
        front = axis % x.ndim
        picked = x.index_select(front, flat)
        return picked.reshape((*x.shape[:front], *indices.shape, *x.shape[front + 1 :]))

    return result(Elementwise(gather), node)


class OnnxSplit(Static):
    """ONNX Split.

    Attributes:
        axis: The axis to cut.
        parts: Number of parts where no sizes are given.
    """

    axis = 0
    parts = 1

    def compute(self, x: Tensor, *arguments: list[int] | None) -> tuple[Tensor, ...] | Tensor:
        """Cut ``x`` into pieces of the given sizes, or into equal ones, of which the last may be smaller."""
        (sizes,) = arguments
        if sizes is None:
            each = -(-x.shape[self.axis] // self.parts)
            sizes = [each] * (self.parts - 1)
            sizes.append(x.shape[self.axis] - sum(sizes))
        pieces = tuple(torch.split(x, sizes, dim=self.axis))
        return pieces if len(pieces) > 1 else pieces[0]


@converter("Split", 2, 12)
def _old_split(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    module = OnnxSplit([list_attribute(node, "split")])
    module.axis, module.parts = node.attributes.get("axis", 0), len(node.output_values)
    return result(module, node)


@converter("Split", 13)
def _split(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    parts = node.attributes.get("num_outputs", len(node.output_values))
    return static(OnnxSplit, node, graph, [1], axis=node.attributes.get("axis", 0), parts=parts)


class OnnxExpand(Static):
    """ONNX Expand."""

    def compute(self, x: Tensor, *arguments: list[int] | None) -> Tensor:
        """Broadcast ``x`` against the shape, in both directions."""
        (shape,) = arguments
        assert shape is not None
        longer = max(x.ndim, len(shape))
        sizes = zip((1,) * (longer - x.ndim) + tuple(x.shape), [1] * (longer - len(shape)) + shape, strict=True)
        return x.expand([own if wanted == 1 else wanted for own, wanted in sizes])


@converter("Expand")
def _expand(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return static(OnnxExpand, node, graph, [1])


class OnnxTile(Static):
    """ONNX Tile."""

    def compute(self, x: Tensor, *arguments: list[int] | None) -> Tensor:
        """Repeat ``x`` along its axes."""
        (repeats,) = arguments
        assert repeats is not None
        return x.repeat(repeats)


@converter("Tile", 6)
def _tile(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return static(OnnxTile, node, graph, [1])


class OnnxPad(Static):
    """ONNX Pad.

    Attributes:
        mode: constant, reflect, edge or wrap.
        value: What a constant pad holds.
        takes_value: That is the last argument of ``forward`` instead.
    """

    mode = "constant"
    value = 0.0
    takes_value = False

    def forward(self, x: Tensor, *inputs: Tensor) -> Tensor:
        """Pad ``x``; a value that is computed goes where no element of ``x`` comes to lie."""
        if not self.takes_value:
            return super().forward(x, *inputs)  # type: ignore[no-any-return]
        padded, inside = (
            super(OnnxPad, self).forward(y, *inputs[:-1]) for y in (x, torch.ones_like(x, dtype=torch.uint8))
        )
        return torch.where(inside > 0, padded, inputs[-1].reshape(()))

    def compute(self, x: Tensor, *arguments: list[int] | None) -> Tensor:
        """Add elements at the begins and ends of the axes; a negative number cuts some off."""
        pads, axes = arguments
        assert pads is not None
        axes = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes]
        margins = [(0, 0)] * x.ndim
        for place, axis in enumerate(axes):
            margins[axis] = (pads[place], pads[place + len(axes)])
        if self.mode == "constant":
            return F.pad(x, [margin for pair in reversed(margins) for margin in pair], value=self.value)
        for axis, (begin, end) in enumerate(margins):
            if begin or end:
                x = x.index_select(axis, self._places(x.shape[axis], begin, end).to(x.device))
        return x

    def _places(self, size: int, begin: int, end: int) -> Tensor:
        """Return which elements of an axis a padded one consists of."""
        places = torch.arange(-begin, size + end)
        if self.mode == "edge":
            return places.clamp(0, size - 1)
        if self.mode == "wrap":
            return places % size
        period = max(2 * (size - 1), 1)
        places = places % period
        return torch.where(places < size, places, period - places)


def _pad_mode(node: OnnxNode) -> str:
    mode = str(node.attributes.get("mode", "constant"))
    if mode not in {"constant", "reflect", "edge", "wrap"}:
        raise reject(node, f"mode {mode}")
    return mode


@converter("Pad", 2, 10)
def _old_pad(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    module = OnnxPad([list_attribute(node, "pads"), None])
    module.mode, module.value = _pad_mode(node), node.attributes.get("value", 0.0)
    return result(module, node)


@converter("Pad", 11)
def _pad(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    mode, found = _pad_mode(node), constant_of(node, 2, graph)
    value = 0.0 if found is None else found.reshape(-1)[0].item()
    if found is not None or not has_input(node, 2) or mode != "constant":
        return static(OnnxPad, node, graph, [1, 3], mode=mode, value=value)
    made = static(OnnxPad, node, graph, [1, 3], takes_value=True)
    return result(made.torch_module, node, [*made.onnx_mapping.inputs, input_name(node, 2)])


@converter("Shape")
def _shape(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    start, end = node.attributes.get("start", 0), node.attributes.get("end")
    # On the CPU always: what reads it wants numbers.
    return result(Elementwise(lambda x: torch.tensor(list(x.shape)[start:end], dtype=torch.int64)), node)


@converter("Size")
def _size(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    return result(Elementwise(lambda x: torch.tensor(x.numel(), dtype=torch.int64)), node)


class OnnxConstant(nn.Module):
    """A constant that is made by a node, as where it is a graph output."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self) -> Tensor:
        """Return the constant."""
        return self.value


@converter("Constant")
def _constant(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    attributes = dict(node.attributes)
    if "value" in attributes:
        return result(OnnxConstant(to_tensor(attributes["value"].proto)), node)
    for name, dtype in (("value_float", torch.float32), ("value_int", torch.int64)):
        for key in (name, f"{name}s"):
            if key in attributes:
                value = attributes[key] if key == name else list_attribute(node, key)
                return result(OnnxConstant(torch.tensor(value, dtype=dtype)), node)
    raise reject(node, "a value that is not a plain tensor")


@converter("ConstantOfShape")
def _constant_of_shape(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    value = (
        to_tensor(node.attributes["value"].proto).reshape(-1)[0] if "value" in node.attributes else torch.tensor(0.0)
    )
    return result(Elementwise(lambda shape: value.expand(integers(shape))), node)


@converter("Range", 11)
def _range(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    def count(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
        return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)

    return result(Elementwise(count), node)


@converter("DepthToSpace")
def _depth_to_space(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    block, mode = node.attributes["blocksize"], node.attributes.get("mode", "DCR")

    def spread(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if mode == "CRD":
            y = x.reshape(n, c // block**2, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
        else:
            y = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return y.reshape(n, c // block**2, h * block, w * block)

    return result(Elementwise(spread), node)


@converter("SpaceToDepth")
def _space_to_depth(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    block, mode = node.attributes["blocksize"], node.attributes.get("mode", "DCR")

    def stack(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        y = x.reshape(n, c, h // block, block, w // block, block)
        y = y.permute(0, 1, 3, 5, 2, 4) if mode == "CRD" else y.permute(0, 3, 5, 1, 2, 4)
        return y.reshape(n, c * block**2, h // block, w // block)

    return result(Elementwise(stack), node)
