"""Bias correction: every layer's bias is shifted by the mean error of its output (Nagel et al. 2019, section 4.2).

Rounding leaves the outputs of a channel wrong on average, by what the errors of its weights make of the inputs' means; a bias
takes that part away at no cost in the file. Layers are corrected one after the other, each behind those already corrected.

Where a Relu or Clip follows (behind an addition, perhaps), the mean is that of the error behind it, over the values that it
lets pass: the Gauss-Newton step of the squared error there. The paper's mean in front of it counts what is cut off anyway; it
helps little or harms (ResNet-20 W2A4 rounded to nearest: .215 to .158, here to .662).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mrecg_onnx.learning.prefix import Prefix
from mrecg_onnx.machine import ALONE, Workers
from mrecg_onnx.network import Step
from mrecg_onnx.planning import UnitPlan
from mrecg_onnx.progress import told

__all__ = ["correct_biases"]

#: Channels of which the activation function lets fewer values pass keep their bias: too few to tell.
LEAST_SHARE = 1e-3
_CLAMPS = frozenset({"Relu", "Clip"})


def correct_biases(prefix: Prefix, workers: Workers = ALONE) -> dict[str, float]:
    """Shift the biases of all quantized layers that have one, and write them into the prefix's simulation.

    Args:
        prefix: at its start; it ends behind the last unit.
        workers: processes that each hold a share of the samples.

    Returns:
        Largest shift of each layer's bias, in units of the layer's output.
    """
    simulation, found = prefix.simulation, {}
    for unit in told(prefix.units, "units"):
        targets = prefix.targets(unit)
        for layer in unit.layers:
            bias = simulation.bias(simulation.network.step(layer)) if layer in simulation.weights else None
            if bias is not None:
                shift = _mean_error(prefix, unit, layer, workers)
                simulation.biases[layer] = bias.detach() + shift.to(bias)
                found[layer] = float(shift.abs().max())
        prefix.advance(unit, targets)
    return found


def _clamp_behind(prefix: Prefix, layer: Step, steps: list[Step]) -> Step | None:
    """The Relu or Clip among ``steps`` that alone reads what ``layer`` makes, or what an addition makes of it."""
    network, name = prefix.simulation.network, layer.outputs[0]
    while True:
        readers = [step for step in network.steps if name in step.arguments]
        if len(readers) != 1 or readers[0] not in steps or name in network.outputs:
            return None
        if readers[0].op in _CLAMPS:
            return readers[0] if readers[0].arguments[0] == name else None
        if readers[0].op != "Add":
            return None
        name = readers[0].outputs[0]


def _mean_error(prefix: Prefix, unit: UnitPlan, layer: str, workers: Workers) -> Tensor:
    """Mean of float minus quantized output for each channel of ``layer``, over values that reach the output; shape (C,)."""
    simulation, network = prefix.simulation, prefix.simulation.network
    steps = prefix.steps(unit)
    own = network.step(layer)
    clamp = _clamp_behind(prefix, own, steps)
    last = clamp or own
    steps = steps[: steps.index(last) + 1]
    name, inner = last.outputs[0], last.arguments[0] if clamp is not None else None
    axis = -1 if own.op == "MatMul" else 1
    error, passed, values = torch.zeros(()), torch.zeros(()), 0.0
    with torch.no_grad():
        for floating, quantized in prefix.batches(unit):
            wanted = network.run(floating, steps, keep=[name])[name]
            keep = [name] if inner is None else [name, inner]
            made = simulation.run(quantized, steps, keep=keep, quantize_activations=prefix.quantize_activations)
            passes = torch.ones_like(wanted)
            if clamp is not None and inner is not None:
                # A clamp gives back what it lets pass.
                passes = (network.run({inner: made[inner]}, [clamp], keep=[name])[name] == made[inner]).to(wanted.dtype)
            over = [d for d in range(wanted.dim()) if d != axis % wanted.dim()]
            error = error + ((wanted - made[name]) * passes).sum(over, dtype=torch.float64).cpu()
            passed = passed + passes.sum(over, dtype=torch.float64).cpu()
            values += wanted.numel() / wanted.shape[axis]
    channels = len(error)
    *sums, values = workers.total([*error.tolist(), *passed.tolist(), values])
    error, passed = torch.tensor(sums[:channels]), torch.tensor(sums[channels:])
    return torch.where(passed > LEAST_SHARE * values, error / passed.clamp(min=1.0), torch.zeros(()))
