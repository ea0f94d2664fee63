"""Bit allocation by integer programming: every layer its own widths at a fixed average (AdaQuant, Hubara et al. 2021, eq. 6).

1. Each layer's weights, and each tensor that layers read, is quantized alone, to every width on offer; what that does to the
   network's output (:mod:`mrecg_onnx.task_loss`) is its cost.
2. One width each is chosen so that the sum of costs is least and the average width, weighted by the number of weights, plain
   for tensors, is at most what was asked for. Weights and activations do not meet in a constraint: two small problems.

First and last layers have widths of their own and do not count, as in the usual W4A4. What ``--bits`` fixes counts.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor

from mrecg_onnx.calibration import SYMMETRIC_FROM, proposed_grids, sample_activations
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.grids import fake_quantize, search_range
from mrecg_onnx.network import Network, Step, WeightHook
from mrecg_onnx.plan import FLOAT_BITS, ActivationPlan, LayerPlan, Plan
from mrecg_onnx.ranges import chosen_ranges
from mrecg_onnx.settings import BitRule, Settings
from mrecg_onnx.simulation import forward_batches
from mrecg_onnx.task_loss import task_loss

__all__ = ["WIDTHS", "allocate", "choose_widths"]

logger = logging.getLogger(__name__)

#: Widths on offer.
WIDTHS = (2, 3, 4, 5, 6, 8)
#: Images on which the loss is measured.
IMAGES = 32


@dataclass(frozen=True)
class _Item:
    """What gets one width: ``size`` is its weight in the average, ``bits`` the width it has now, ``free`` that it may change."""

    name: str
    size: int
    bits: int
    free: bool
    layers: tuple[str, ...]


def allocate(network: Network, plan: Plan, data: Mapping[str, Tensor], settings: Settings) -> tuple[BitRule, ...]:
    """Rules that give each layer the widths of least total output error within the averages of ``settings``.

    Args:
        network: the float network.
        plan: with uniform widths.
        data: calibration inputs by name, [N, ...]; the first images are used.
        settings: averages (``wbits``, ``abits``) and widths fixed by ``bits``.

    Raises:
        SettingsError: what ``bits`` fixes leaves too little for the rest.
    """
    weights, tensors = _weights(plan, settings), _tensors(plan, settings)
    by_name = {layer.name: layer for layer in plan.layers}
    quantizers = {a.name: a for a in plan.activations}
    costs = _costs(
        network,
        {w.name: by_name[w.name] for w in weights if w.free},
        [quantizers[t.name] for t in tensors if t.free],
        data,
        settings,
    )
    chosen: dict[str, list[int | None]] = {}
    for column, (items, average, option) in enumerate(
        ((weights, settings.wbits, "wbits"), (tensors, settings.abits, "abits"))
    ):
        free, fixed = [i for i in items if i.free], [i for i in items if not i.free]
        total = average * sum(i.size for i in items) - sum(i.bits * i.size for i in fixed)
        try:
            widths = choose_widths([costs[column][i.name] for i in free], [i.size for i in free], total)
        except ValueError as error:
            kind, left = "weights" if column == 0 else "activations", max(0.0, total / sum(i.size for i in free))
            raise SettingsError(
                f"--allocate milp: widths fixed by --bits leave {left:.2f} bits on average for the other {kind}, which need "
                f"{WIDTHS[0]}: raise --{option} or fix less"
            ) from error
        for item, width in zip(free, widths, strict=True):
            for layer in item.layers:
                chosen.setdefault(layer, [None, None])[column] = width
    rules = tuple(BitRule(f"^{re.escape(name)}$", *found) for name, found in chosen.items())
    logger.info("allocated widths: %s", ", ".join(f"{n}=W{w}A{a}" for n, (w, a) in chosen.items()))
    return rules


def choose_widths(costs: Sequence[Sequence[float]], sizes: Sequence[int], total: int) -> list[int]:
    """One of :data:`WIDTHS` for each item: least sum of costs with ``sum(size * width) <= total``, exactly.

    Args:
        costs: of every item at every width, in the order of the widths.
        sizes: of the items, positive integers.
        total: bits to spend, an integer.

    Returns:
        Widths, one an item.

    Raises:
        ValueError: the narrowest widths are too many bits already.
    """
    if not sizes:
        return []
    if WIDTHS[0] * sum(sizes) > total:
        raise ValueError(f"{total} bits are less than {WIDTHS[0]} for each of {sum(sizes)}")
    count, kinds = len(sizes), len(WIDTHS)
    table = np.asarray(costs, np.float64)
    # The solver's tolerances are absolute: bring costs to a scale where they are small, and sizes to their smallest integers.
    table = table / max(float(np.abs(table).max()), 1e-30) * 1e4
    unit = math.gcd(*sizes)
    spent = np.outer(np.asarray(sizes) // unit, WIDTHS)
    one_each = np.kron(np.eye(count), np.ones(kinds))
    # All sums are integers, so half of one more excludes nothing and leaves room for rounding.
    room = LinearConstraint(spent.reshape(1, -1).astype(np.float64), ub=total // unit + 0.5)
    result = milp(
        table.reshape(-1),
        integrality=np.ones(count * kinds),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, lb=1, ub=1), room],
        options={"mip_rel_gap": 0.0},
    )
    assert result.x is not None, result.message
    picks = result.x.reshape(count, kinds).argmax(1)
    assert int(spent[np.arange(count), picks].sum()) * unit <= total
    return [WIDTHS[k] for k in picks]


def _fixed(layer: LayerPlan, settings: Settings, kind: str) -> bool:
    return any(getattr(r, kind) is not None and re.search(r.pattern, layer.name) for r in settings.bits)


def _weights(plan: Plan, settings: Settings) -> list[_Item]:
    """Weights that count for the average."""
    return [
        _Item(x.name, x.params, x.wbits, not _fixed(x, settings, "wbits"), (x.name,))
        for x in plan.quantized_layers
        if not (x.first or x.last)
    ]


def _tensors(plan: Plan, settings: Settings) -> list[_Item]:
    """Tensors that layers read and that count for the average; those that the first or the last layer reads do not."""
    found = []
    for quantizer in plan.activations:
        readers = [x for x in plan.quantized_layers if x.input in quantizer.members and x.abits != FLOAT_BITS]
        if not readers or any(x.first or x.last for x in readers):
            continue
        free = not any(_fixed(x, settings, "abits") for x in readers)
        found.append(_Item(quantizer.name, 1, quantizer.bits, free, tuple(x.name for x in readers)))
    return found


def _costs(
    network: Network,
    layers: Mapping[str, LayerPlan],
    quantizers: Sequence[ActivationPlan],
    data: Mapping[str, Tensor],
    settings: Settings,
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Task loss with one layer's weights, or one tensor, at each of :data:`WIDTHS` and all else float; by name.

    The network is walked once; from each point on the rest of it is run for every width.
    """
    batch = next(forward_batches(data, IMAGES, network.device))
    samplers = sample_activations(network, quantizers, data, images=settings.range_samples)
    estimators = chosen_ranges(settings).proposals
    of_weights: dict[str, list[float]] = {}
    of_tensors: dict[str, list[float]] = {}
    wanted = {q.name: q for q in quantizers}
    with torch.no_grad():
        reference = network.run(batch)
        live: dict[str, Tensor] = dict(batch)
        for i, step in enumerate(network.steps):
            rest = network.steps[i:]
            if step.node in layers:
                of_weights[step.node] = [
                    float(task_loss(network.run(live, rest, weight=_only(step, layers[step.node], width)), reference))
                    for width in WIDTHS
                ]
            live.update(network.run(live, [step], keep=step.outputs))
            needed = {n for later in rest[1:] for n in later.arguments if n is not None} | set(network.outputs)
            live = {n: v for n, v in live.items() if n in needed}
            for name in (n for n in step.outputs if n in wanted and n in live):
                of_tensors[name] = [
                    min(
                        float(task_loss(network.run({**live, name: fake_quantize(live[name], g)}, rest[1:]), reference))
                        for g in proposed_grids(samplers[name], width, estimators)
                    )
                    for width in WIDTHS
                ]
    return of_weights, of_tensors


def _only(step: Step, layer: LayerPlan, width: int) -> WeightHook:
    """Weight hook that quantizes one layer."""
    own: Tensor = step.module.weight.detach()  # type: ignore[assignment, operator]
    weight = fake_quantize(own, search_range(own, width, axis=layer.axis, symmetric=width >= SYMMETRIC_FROM))

    def hook(other: Step) -> tuple[Tensor, Tensor | None]:
        return (weight if other is step else other.module.weight), other.module.bias  # type: ignore[return-value]

    return hook
