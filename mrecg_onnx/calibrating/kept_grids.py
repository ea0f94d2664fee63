"""Ranges found by an earlier run: those of each tensor hold for themselves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch

from mrecg_onnx.calibrating.nearest_rounding import nearest_weights
from mrecg_onnx.machine import Kept, short_digest
from mrecg_onnx.network import Network, QuantizedWeight
from mrecg_onnx.planning import ActivationPlan, LayerPlan
from mrecg_onnx.progress import told
from mrecg_onnx.quantizers import Grid, plain_grid, quantize_codes, restored_grid, weight_codes

__all__ = ["recalled_activation_grids", "recalled_nearest_weights"]


def recalled_activation_grids(
    kept: Kept,
    quantizers: Sequence[ActivationPlan],
    device: torch.device,
    search: Callable[[Collection[str]], Mapping[str, Grid]],
) -> dict[str, Grid]:
    """The grid of every quantizer, kept ones where they hold.

    A grid depends on the float network, the images and the estimators (``kept`` knows them), on where the tensor is read, its
    width, and whether it is handed out quantized.

    Args:
        kept: grids of earlier runs.
        quantizers: who gets a grid.
        device: where grids are wanted.
        search: finds the grids of the quantizers named.
    """
    plans = {plan.name: plan for plan in quantizers}
    handed_out = {name for plan in quantizers for name in plan.outputs}
    wanted = {
        name: {"bits": plan.bits, "reads": list(plan.reads), "handed out": name in handed_out}
        for name, plan in plans.items()
    }

    def restored(name: str, plain: Any) -> Grid:
        return restored_grid(plain, bits=plans[name].bits, device=device)

    return kept.recall("activation ranges", wanted, search, plain=plain_grid, restored=restored)


def _each(network: Network, layers: Sequence[LayerPlan], *, min_max: bool) -> dict[str, QuantizedWeight]:
    """:func:`~mrecg_onnx.calibrating.nearest_weights`, saying after each layer how many are done."""
    found: dict[str, QuantizedWeight] = {}
    for layer in told(layers, "layers"):
        found |= nearest_weights(network, [layer], min_max=min_max)
    return found


def recalled_nearest_weights(
    kept: Kept, network: Network, layers: Sequence[LayerPlan], *, min_max: bool = False
) -> dict[str, QuantizedWeight]:
    """:func:`~mrecg_onnx.calibrating.nearest_weights` of ``layers``, on kept grids where those hold.

    A grid depends on the weight's values, its width, its channel axis and its kind of codes, and not on images.
    """
    if kept.folder is None:
        return _each(network, layers, min_max=min_max)
    known = {layer.name: layer for layer in layers if not layer.excluded}
    weights = {name: network.step(name).module.weight.detach() for name in known}  # type: ignore[operator, union-attr]

    def restored(name: str, plain: Any) -> Grid:
        layer, weight = known[name], weights[name]
        channels = None if layer.axis is None else weight.shape[layer.axis]
        grid = restored_grid(plain, bits=layer.wbits, axis=layer.axis, channels=channels, device=weight.device)
        if (grid.symmetric, grid.full) != weight_codes(layer.wbits, symmetric=layer.symmetric):
            raise ValueError("the grid of another weight")
        return grid

    def search(names: Collection[str]) -> dict[str, Grid]:
        made = _each(network, [known[name] for name in names], min_max=min_max)
        return {name: weight.grid for name, weight in made.items()}

    wanted = {
        name: {
            "bits": layer.wbits,
            "axis": layer.axis,
            "symmetric": layer.symmetric,
            "whole range": min_max,
            "weight": short_digest(
                [str(tuple(weights[name].shape)), weights[name].cpu().contiguous().numpy().tobytes()]
            ),
        }
        for name, layer in known.items()
    }
    grids = kept.recall("weight ranges", wanted, search, plain=plain_grid, restored=restored, anywhere=True)
    return {name: QuantizedWeight(quantize_codes(weights[name], grids[name]), grids[name]) for name in known}
