"""Which activation quantizers hurt most: each one alone, forward only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mrecg_onnx.measures import output_error, with_float_outputs
from mrecg_onnx.network import Simulation, forward_batches
from mrecg_onnx.progress import told

__all__ = ["Sensitivity", "measure_sensitivity"]

#: Images for one measurement; the order of the worst tensors is stable from a few dozen on.
IMAGES = 32


@dataclass(frozen=True)
class Sensitivity:
    """Relative error of the outputs (:mod:`mrecg_onnx.measures.output_errors`) with only quantizer ``name`` on, at ``bits``."""

    name: str
    bits: int
    error: float


def measure_sensitivity(simulation: Simulation, data: Mapping[str, Tensor]) -> list[Sensitivity]:
    """Measure every activation quantizer of ``simulation`` alone; the worst first.

    Args:
        simulation: with activation grids; weights are not quantized here.
        data: inputs, [N, ...] by name; the first images are used.
    """
    network = simulation.network
    batch = next(forward_batches(data, IMAGES, network.device))
    result = []
    with torch.no_grad():
        reference = network.run(batch)
        for name in told(list(simulation.activations), "tensors"):
            hook = simulation.activation_hook({name})
            inputs = {n: hook(n, v) for n, v in batch.items()}
            # What is in front of the quantizer is as in the float network: so is an output that is taken from there.
            floats = {name: reference[name]} if name in simulation.float_outputs else {}
            outputs = with_float_outputs(network.run(inputs, activation=hook), floats)
            result.append(Sensitivity(name, simulation.activations[name].bits, output_error(outputs, reference)))
    return sorted(result, key=lambda s: s.error, reverse=True)
