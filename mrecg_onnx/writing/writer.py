"""An editor of one graph, whose new nodes and tensors have names that nobody has."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from mrecg_onnx.converters.passes.values import claim
from mrecg_onnx.quantizers import Grid

__all__ = ["Writer", "scale_array"]


class Writer:
    """Edits one graph; names it makes are unique."""

    def __init__(self, model: ir.Model) -> None:
        self.model, self.graph = model, model.graph
        self.taken = {v.name for n in self.graph for v in n.outputs} | set(self.graph.initializers)
        self.taken |= {v.name for v in self.graph.inputs}
        self.nodes_taken = {n.name for n in self.graph}
        self.codes: dict[ir.Value, ir.Value] = {}  # dequantized value -> its codes

    def name(self, wish: str) -> str:
        """A tensor name that nobody has."""
        return claim(wish, self.taken)

    def node_name(self, wish: str) -> str:
        """A node name that nobody has."""
        return claim(wish, self.nodes_taken)

    def constant(self, wish: str, array: np.ndarray) -> ir.Value:
        """A new initializer."""
        name = self.name(wish)
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
        self.graph.register_initializer(value)
        return value

    def node(
        self,
        op: str,
        name: str,
        inputs: list[ir.Value | None],
        output: str,
        attributes: Mapping[str, int] | None = None,
    ) -> ir.Node:
        """A new node with one output, not yet in the graph."""
        return ir.node(
            op, inputs, dict(attributes or {}), name=self.node_name(name), outputs=[ir.Value(name=self.name(output))]
        )

    def hand_out(self, name: str, value: ir.Value, behind: ir.Value) -> None:
        """Let ``behind`` be the graph's output ``name`` that ``value`` was."""
        for i, output in enumerate(self.graph.outputs):
            if output is value:
                self.graph.outputs[i] = behind
        if value.name == name:
            value.name = self.name(f"{name}_float")
        behind.name, behind.shape, behind.dtype = name, value.shape, ir.DataType.FLOAT
        behind.doc_string, value.doc_string = value.doc_string, None

    def feed_codes(
        self, node: ir.Node, index: int, name: str, codes: np.ndarray, scale: np.ndarray, axis: int | None
    ) -> None:
        """Let input ``index`` of ``node`` be integer ``codes`` behind a DequantizeLinear with zero point 0 of their type."""
        parts = {"quantized": codes, "scale": scale, "zero_point": np.zeros(scale.shape, codes.dtype)}
        inputs: list[ir.Value | None] = [self.constant(f"{name}_{part}", array) for part, array in parts.items()]
        dequantize = self.node(
            "DequantizeLinear",
            f"{name}_DequantizeLinear",
            inputs,
            f"{name}_dequantized",
            {"axis": axis} if axis is not None else {},
        )
        self.graph.insert_before(node, dequantize)
        node.replace_input_with(index, dequantize.outputs[0])


def scale_array(grid: Grid) -> np.ndarray:
    """A grid's scale as the file holds it, float32 of shape () or (C,)."""
    return grid.scale.detach().cpu().numpy().astype(np.float32)
