"""Calibration: weight grids from the weights, activation grids from what the float network computes on images."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.grids import Grid, quantize_codes, search_range
from mrecg_onnx.network import Network
from mrecg_onnx.plan import ActivationPlan, LayerPlan
from mrecg_onnx.simulation import QuantizedWeight, forward_batches

__all__ = ["activation_grids", "nearest_weights", "sample_activations"]

#: Values kept of each tensor for the range search; the true minimum and maximum are kept beside them.
SAMPLED_VALUES = 1 << 17
#: From this width on weights are symmetric: the shifted asymmetric codes would not fit int8 (deployment measurements).
SYMMETRIC_FROM = 8


def nearest_weights(network: Network, layers: Sequence[LayerPlan]) -> dict[str, QuantizedWeight]:
    """Per-channel grids by range search and codes rounded to nearest, for every quantized layer, by layer name."""
    result = {}
    for layer in layers:
        if layer.excluded:
            continue
        weight: Tensor = network.step(layer.name).module.weight.detach()  # type: ignore[assignment, operator]
        grid = search_range(weight, layer.wbits, axis=layer.axis, symmetric=layer.wbits >= SYMMETRIC_FROM)
        result[layer.name] = QuantizedWeight(quantize_codes(weight, grid), grid)
    return result


class _Sampler:
    """Keeps an evenly spread sample of a tensor's values over batches, and its true range."""

    def __init__(self, per_batch: int) -> None:
        self.per_batch = per_batch
        self.parts: list[Tensor] = []
        self.low, self.high = torch.tensor(float("inf")), torch.tensor(float("-inf"))

    def add(self, name: str, value: Tensor) -> None:
        flat = value.detach().reshape(-1)
        low, high = flat.amin(), flat.amax()
        if not bool(torch.isfinite(low + high)):
            raise DataError(
                f"tensor '{name}' holds NaN or Inf on the calibration images: the float model is broken there"
            )
        self.low, self.high = torch.minimum(self.low.to(low), low), torch.maximum(self.high.to(high), high)
        # An odd stride walks through all channels and positions.
        stride = max(1, flat.numel() // self.per_batch) | 1
        self.parts.append(flat[::stride].float().clone())


def sample_activations(
    network: Network,
    quantizers: Sequence[ActivationPlan],
    data: Mapping[str, Tensor],
    *,
    images: int,
    batch_size: int = 16,
) -> dict[str, _Sampler]:
    """Values of each quantizer's tensors (``reads``) on the first ``images`` samples of the float network.

    Raises:
        DataError: a tensor holds NaN or Inf; it is named.
    """
    owner = {name: plan.name for plan in quantizers for name in plan.reads}
    count = min(images, len(next(iter(data.values()))))
    per_batch = max(64, SAMPLED_VALUES * batch_size // max(1, count))
    samplers = {plan.name: _Sampler(per_batch) for plan in quantizers}

    def look(name: str, value: Tensor) -> Tensor:
        if name in owner:
            samplers[owner[name]].add(name, value)
        return value

    with torch.no_grad():
        for batch in forward_batches(data, batch_size, network.device, count):
            for name, value in batch.items():
                look(name, value)
            network.run(batch, activation=look)
    return samplers


def activation_grids(
    network: Network,
    quantizers: Sequence[ActivationPlan],
    data: Mapping[str, Tensor],
    *,
    images: int,
    only: Collection[str] | None = None,
) -> dict[str, Grid]:
    """Per-tensor grid of every quantizer by range search on the float network (method.md 3.6), by quantizer name."""
    chosen = [plan for plan in quantizers if only is None or plan.name in only]
    samplers = sample_activations(network, chosen, data, images=images)
    grids = {}
    for plan in chosen:
        sampler = samplers[plan.name]
        grids[plan.name] = search_range(torch.cat(sampler.parts), plan.bits, low=sampler.low, high=sampler.high)
    return grids
