"""One unit of a small network, with what it is learned from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from helpers.architectures import Graph, conv_relu
from helpers.stages import Stage, simulated, tensors

from mrecg_onnx.learning import UnitData
from mrecg_onnx.machine import Store

if TYPE_CHECKING:
    import onnx

    from mrecg_onnx.planning import UnitPlan

__all__ = ["data_of", "single", "stage_of"]

LOW = {"wbits": 2, "abits": 2, "first_last_bits": 2}


def single() -> onnx.ModelProto:
    """One convolution and its Relu."""
    g = Graph()
    g.relu(g.conv(g.input(), 8, 8), output="output")
    return g.model()


def stage_of(build: Any = conv_relu, count: int = 6, **settings: Any) -> Stage:
    """A calibrated network at two bits."""
    return simulated(build(), tensors(build(), count), **(LOW | settings))


def _store(x: torch.Tensor) -> Store:
    """Halves are kept as they are: half precision has eleven bits."""
    return Store.of((x * 64).round() / 64)


def data_of(stage: Stage, unit: UnitPlan, **more: Any) -> UnitData:
    """Inputs and targets of ``unit``, the first one of its network: quantized and float inputs differ."""
    floating = {n: _store(stage.data[n].clamp(-4, 4)) for n in unit.inputs}
    quantized = {n: Store.of(s.read(0, 99), stage.simulation.activations.get(n)) for n, s in floating.items()}
    values = {n: s.read(0, 99) for n, s in floating.items()}
    made = stage.network.run(values, stage.network.part(unit.nodes), keep=unit.outputs)
    count = len(next(iter(values.values())))
    chosen = {
        "quantized": quantized,
        "floating": floating,
        "targets": {n: Store.of(made[n]) for n in unit.outputs},
        "training": torch.arange(count - 2),
        "held_out": torch.arange(count - 2, count),
    }
    return UnitData(**(chosen | more))
