"""The constants of a written graph: as arrays, and in an order that can be edited."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from mrecg_onnx.converters.passes.values import claim

__all__ = ["Array", "Constants", "along", "array_of", "stored_tensor"]

Array = npt.NDArray[Any]


class Constants:
    """The initializers of a graph in an order that can be edited: new ones stand where the file should have them."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.order = list(self.graph.initializers.values())
        self.taken = {v.name for node in self.graph for v in node.outputs} | set(self.graph.initializers)
        self.taken |= {v.name for v in self.graph.inputs}

    def next_to(self, value: ir.Value | None) -> ir.Value | None:
        """The initializer behind ``value``."""
        here = self._position(value)
        return self.order[here + 1] if here is not None and here + 1 < len(self.order) else None

    def new(self, name: str, array: Array, dtype: ir.DataType, behind: ir.Value | None = None) -> ir.Value:
        """A new initializer behind another one, or at the end."""
        tensor = ir.tensor(array.astype(dtype.numpy()), dtype=dtype, name=name)
        value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(dtype))
        here = self._position(behind)
        self.order.insert(len(self.order) if here is None else here + 1, value)
        return value

    def name(self, wish: str) -> str:
        """A name that nobody has."""
        return claim(wish, self.taken)

    def drop(self, value: ir.Value) -> None:
        """Forget an initializer."""
        self.order = [other for other in self.order if other is not value]

    def write(self) -> None:
        """Give the graph the initializers of :attr:`order`."""
        self.graph.initializers.clear()
        for value in self.order:
            self.graph.register_initializer(value)

    def _position(self, value: ir.Value | None) -> int | None:
        return next((i for i, other in enumerate(self.order) if other is value), None)


def along(values: Array, axis: int, rank: int) -> Array:
    """A vector of one value a channel, shaped to broadcast over a tensor of ``rank`` dimensions; a scalar stays one."""
    return values.reshape([-1 if i == axis else 1 for i in range(rank)]) if values.ndim else values


def stored_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The constant behind a value; one that :class:`Constants` has not written yet counts, too."""
    return value.const_value if value is not None else None


def array_of(value: ir.Value | None) -> Array:
    """The array behind a constant."""
    tensor = stored_tensor(value)
    assert tensor is not None
    return tensor.numpy()
