"""Weights rounded to nearest, each output channel on a grid of its own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mrecg_onnx.network import Network, QuantizedWeight
from mrecg_onnx.planning import LayerPlan
from mrecg_onnx.quantizers import P_NORM, quantize_codes, search_weight_range

__all__ = ["nearest_weights"]


def nearest_weights(
    network: Network,
    layers: Sequence[LayerPlan],
    *,
    min_max: bool = False,
    p: float = P_NORM,
    factor: Tensor | float = 1.0,
) -> dict[str, QuantizedWeight]:
    """Per-channel grids and codes rounded to nearest, for every quantized layer, by layer name.

    Grids are those of least mean |w - Q(w)|^p; with ``min_max`` they cover the whole channel.
    ``factor`` multiplies the weights first and broadcasts over them.
    """
    result = {}
    for layer in layers:
        if layer.excluded:
            continue
        weight: Tensor = network.step(layer.name).module.weight.detach() * factor  # type: ignore[assignment, operator]
        grid = search_weight_range(
            weight,
            layer.wbits,
            axis=layer.axis,
            symmetric=layer.symmetric,
            p=p,
            candidates=1 if min_max else None,
        )
        result[layer.name] = QuantizedWeight(quantize_codes(weight, grid), grid)
    return result
