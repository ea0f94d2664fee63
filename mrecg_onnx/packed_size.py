"""How large a file of packed codes becomes, known before it is written: what a size budget counts.

A weight's codes take the smallest type of ONNX that holds them: UINT2, UINT4 or INT8, so 3 bits cost as much as 4, and 5 to 7 as
much as 8. Packed ones are followed by Cast and Sub (docs/method.md 15); scales, biases, activations and the graph are the same
at every width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import TensorProto, helper, numpy_helper

from mrecg_onnx.export import export
from mrecg_onnx.grids import Grid
from mrecg_onnx.network import Network
from mrecg_onnx.plan import LayerPlan, Plan
from mrecg_onnx.simulation import QuantizedWeight, Simulation

__all__ = ["STORED", "PackedSize", "stored_bits"]

#: Bits of the types that codes are stored in.
STORED = (2, 4, 8)


def stored_bits(width: int) -> int:
    """Bits that a code of ``width`` bits (2..8) takes in the file."""
    return next(bits for bits in STORED if bits >= width)


@dataclass(frozen=True)
class PackedSize:
    """Bytes of a packed file.

    Attributes:
        rest: of everything but the weights of ``layers``.
        layers: of each layer's weights, by name and width stored (:data:`STORED`).
    """

    rest: int
    layers: Mapping[str, Mapping[int, int]]

    @classmethod
    def of(cls, model: onnx.ModelProto, layers: Sequence[LayerPlan]) -> PackedSize:
        """Sizes for a quantized model in the 8-bit container.

        Args:
            model: as :func:`mrecg_onnx.export.export` writes it.
            layers: its quantized layers.
        """
        found = {layer.name: {bits: _bytes(layer, bits) for bits in STORED} for layer in layers}
        return cls(model.ByteSize() - sum(sizes[8] for sizes in found.values()), found)

    @classmethod
    def planned(
        cls, graph: ir.Model, network: Network, plan: Plan, metadata: Mapping[str, str] | None = None
    ) -> PackedSize:
        """Sizes for a model that is not quantized yet; codes and scales of no meaning stand in for those to come."""
        one, nought = torch.ones(()), torch.zeros(())
        activations = {a.name: Grid(one, nought, a.bits) for a in plan.activations}
        weights = {}
        for layer in plan.quantized_layers:
            channels = layer.shape[layer.axis]
            grid = Grid(torch.ones(channels), torch.zeros(channels), layer.wbits, layer.axis)
            weights[layer.name] = QuantizedWeight(torch.zeros(layer.shape), grid)
        exported = export(graph, Simulation(network, plan, activations, weights), metadata or {})
        return cls.of(exported.model, plan.quantized_layers)

    def total(self, widths: Mapping[str, int]) -> int:
        """Bytes of the file with ``widths`` by layer."""
        return self.rest + sum(self.layers[name][stored_bits(width)] for name, width in widths.items())


def _bytes(layer: LayerPlan, bits: int) -> int:
    """Bytes of a layer's codes stored with ``bits`` bits, and of what unpacks them."""
    codes = math.ceil(layer.params * bits / 8)
    if bits == 8:
        return codes
    name = layer.weight
    zero_points = numpy_helper.from_array(np.zeros(layer.shape[layer.axis], np.int8), f"{name}_zero_points")
    unpacking = (
        helper.make_node("Cast", [f"{name}_packed"], [f"{name}_cast"], f"{name}_Cast", to=TensorProto.INT8),
        helper.make_node("Sub", [f"{name}_cast", zero_points.name], [f"{name}_quantized"], f"{name}_Sub"),
    )
    # Two shapes beside the tensors: zero points broadcast over the weight's dimensions.
    unpacking_bytes: int = zero_points.ByteSize() + sum(node.ByteSize() for node in unpacking)
    return codes + unpacking_bytes + 4 * len(layer.shape)
