"""Bit allocation by integer programming: every layer its own widths within a budget (AdaQuant, Hubara et al. 2021, eq. 6).

1. Each layer's weights, and each tensor that layers read, is quantized alone, to every width on offer; what that does to the
   network's output is its cost (:mod:`mrecg_onnx.widths.costs`).
2. One width each is chosen so that the sum of costs is least and what the widths spend stays within the budget. Weights and
   activations do not meet in a constraint: two small problems.

A budget says what an item spends at each width: the average (its number of weights times bits; a tensor counts once), or the
packed file (:mod:`mrecg_onnx.widths.packed_size`). First and last layers have widths of their own and do not count for an
average, as in the usual W4A4; they take part under a size, which their weights may be half of. What ``--bits`` fixes counts.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.machine import byte_size, silent
from mrecg_onnx.methods import METHODS
from mrecg_onnx.planning import BitRule, BitSettings, LayerPlan, Plan
from mrecg_onnx.settings import Settings
from mrecg_onnx.targets import load_target
from mrecg_onnx.widths.costs import WIDTHS, Costs
from mrecg_onnx.widths.packed_size import STORED, PackedSize
from mrecg_onnx.writing import TWO_BITS

__all__ = [
    "Allocation",
    "Budget",
    "allocate",
    "average_budget",
    "budgets_of",
    "choose_widths",
    "counting_layers",
    "size_budget",
    "tensor_budget",
    "with_rules",
]

logger = logging.getLogger(__name__)

S = TypeVar("S", bound=BitSettings)


@dataclass(frozen=True)
class Budget:
    """What the widths of weights, or of tensors, may spend together.

    Attributes:
        option: how the user said it.
        kind: "weights" or "tensors".
        limit: units to spend, free and fixed items together.
        fixed: units that are spent whatever is chosen.
        spent: units by name of each free item and width on offer.
        layers: names of the layers that get an item's width.
        show: units in the user's terms, such as "3.50 bits on average".
        counts: there is something that spends it, free or fixed.
        least: :attr:`smallest` as it is shown, where that is rounded up; "" where it is as all others are.
    """

    option: str
    kind: str
    limit: int
    fixed: int
    spent: Mapping[str, Mapping[int, int]]
    layers: Mapping[str, tuple[str, ...]]
    show: Callable[[int], str]
    counts: bool = True
    least: str = ""

    @property
    def smallest(self) -> int:
        """Least that can be spent."""
        return self.fixed + sum(min(row.values()) for row in self.spent.values())

    def used(self, widths: Mapping[str, int]) -> int:
        """What ``widths`` of the free items spend, with what is fixed."""
        return self.fixed + sum(self.spent[name][width] for name, width in widths.items())

    def check(self) -> None:
        """Refuse a budget that no widths keep.

        Raises:
            SettingsError: it says the smallest possible.
        """
        if self.smallest > self.limit:
            least = self.least or self.show(self.smallest)
            raise SettingsError(
                f"{self.option} is too little for the {'activations' if self.kind == 'tensors' else self.kind}: the smallest "
                f"possible is {least}, with the fewest bits everywhere that --bits and --method allow"
            )


@dataclass(frozen=True)
class Allocation:
    """Widths that were chosen.

    Attributes:
        widths: of each free item by name: layers of weights budgets, quantizers of tensor budgets.
        rules: the same as rules of ``--bits``.
        costs: measured losses behind the choice.
        spent: for each budget its option, what is spent, and the limit, in the user's terms; "" where nothing counts.
    """

    widths: Mapping[str, int]
    rules: tuple[BitRule, ...]
    costs: Costs
    spent: tuple[Mapping[str, str], ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary."""
        return {
            "widths": dict(self.widths),
            "weights": {n: {str(w): c for w, c in row.items()} for n, row in self.costs.weights.items()},
            "tensors": {n: {str(w): c for w, c in row.items()} for n, row in self.costs.tensors.items()},
            "budgets": [dict(s) for s in self.spent],
        }


def budgets_of(plan: Plan, settings: Settings, sizes: Callable[[], PackedSize]) -> tuple[Budget, ...]:
    """The budgets that ``settings`` ask for, none where widths are given.

    Args:
        plan: with uniform widths.
        settings: what was asked for; ``max_drop`` brings no budget of its own, it is searched for.
        sizes: makes the sizes of the packed file; called only under ``size_budget``.
    """
    joint = settings.allocate == "milp"
    found = []
    if settings.size_budget is not None:
        found.append(size_budget(plan, settings, sizes(), settings.size_budget))
    elif settings.avg_wbits is not None:
        found.append(average_budget(plan, settings, settings.avg_wbits, f"--avg-wbits {settings.avg_wbits:g}"))
    elif joint and settings.max_drop is None:
        found.append(average_budget(plan, settings, settings.wbits, f"--allocate milp with --wbits {settings.wbits}"))
    if joint and plan.activations:
        found.append(tensor_budget(plan, settings))
    return tuple(found)


def counting_layers(plan: Plan) -> list[LayerPlan]:
    """Layers that count for an average: between the first and the last."""
    return [x for x in plan.quantized_layers if not (x.first or x.last or x.bridge)]


def average_budget(plan: Plan, settings: Settings, bits: float, option: str) -> Budget:
    """``bits`` a weight on average, layers weighted by their number of weights; without the first and the last layer."""
    inner = counting_layers(plan)
    count = sum(x.params for x in inner)
    offered = _widths(settings, WIDTHS)
    free = {x.name: {w: w * x.params for w in offered} for x in inner if not _fixed(x, settings, "w")}
    fixed = sum(x.wbits * x.params for x in inner if x.name not in free)
    limit = math.floor(bits * count + 1e-6)
    return Budget(
        option,
        "weights",
        limit,
        fixed,
        free,
        {n: (n,) for n in free},
        _mean_bits(count, "no layer lies between the first and the last"),
        bool(count),
    )


def size_budget(plan: Plan, settings: Settings, sizes: PackedSize, limit: int) -> Budget:
    """``limit`` bytes of packed file."""
    # A width between two types is stored as the wider one: it would only lose accuracy.
    least = 2 if load_target(settings.target).opset[1] >= TWO_BITS else 4
    offered = [w for w in _widths(settings, STORED) if w >= least]
    layers = plan.quantized_layers
    free = {x.name: {w: sizes.layers[x.name][w] for w in offered} for x in layers if not _fixed(x, settings, "w")}
    fixed = sizes.total({x.name: max(x.wbits, least) for x in layers if x.name not in free})
    # The limit stands among the settings in the file: one that is too little has fewer digits than the least that works.
    fixed += max(0, len(str(fixed)) + 1 - len(str(limit)))
    least_bytes = fixed + sum(min(row.values()) for row in free.values())
    # A limit and the least that works, which is more, must not look the same.
    option = f"--size-budget {_apart(limit, least_bytes, up=False)}"
    return Budget(
        option,
        "weights",
        limit,
        fixed,
        free,
        {n: (n,) for n in free},
        byte_size,
        least=_apart(least_bytes, limit, up=True),
    )


def tensor_budget(plan: Plan, settings: Settings) -> Budget:
    """``abits`` on average for the tensors that layers read, without those of the first or the last layer."""
    free: dict[str, dict[int, int]] = {}
    layers: dict[str, tuple[str, ...]] = {}
    low, high = load_target(settings.target).abits
    fixed = count = 0
    for quantizer in plan.activations:
        readers = plan.readers(quantizer)
        if all(x.bridge for x in readers) or any(x.first or x.last for x in readers):
            continue
        count += 1
        if any(_fixed(x, settings, "a") for x in readers):
            fixed += quantizer.bits
        else:
            free[quantizer.name] = {w: w for w in WIDTHS if low <= w <= high}
            layers[quantizer.name] = tuple(x.name for x in readers)
    option = f"--allocate milp with --abits {settings.abits}"
    return Budget(
        option, "tensors", settings.abits * count, fixed, free, layers,
        _mean_bits(count, "no layer between the first and the last reads a tensor of its own"), bool(count),
    )  # fmt: skip


def _mean_bits(count: int, nothing: str) -> Callable[[int], str]:
    """Shows units as bits on average over ``count`` numbers or tensors, and says ``nothing`` where there are none."""
    if not count:
        return lambda _: f"nothing to choose, {nothing}"
    return lambda used: f"{used / count:.2f} bits on average"


def allocate(budgets: Sequence[Budget], costs: Costs) -> Allocation:
    """Widths of least total cost within each of ``budgets``.

    Args:
        budgets: of weights, of tensors, or of both.
        costs: of every free item at every width on offer.

    Raises:
        SettingsError: a budget is too small.
    """
    chosen: dict[str, int] = {}
    rules: dict[str, dict[str, int]] = {}
    spent = []
    for budget in budgets:
        budget.check()
        table = costs.weights if budget.kind == "weights" else costs.tensors
        names = list(budget.spent)
        offers = [budget.spent[n] for n in names]
        widths = choose_widths([table[n] for n in names], offers, budget.limit - budget.fixed)
        found = dict(zip(names, widths, strict=True))
        chosen |= found
        for name, width in found.items():
            for layer in budget.layers[name]:
                rules.setdefault(layer, {})["wbits" if budget.kind == "weights" else "abits"] = width
        spent.append({
            "option": budget.option, "kind": budget.kind, "used": budget.show(budget.used(found)),
            "limit": budget.show(budget.limit) if budget.counts else "", "smallest": budget.least or budget.show(budget.smallest),
        })  # fmt: skip
    logger.info("allocated widths: %s", ", ".join(f"{name} {width}" for name, width in chosen.items()))
    written = tuple(BitRule(f"^{re.escape(n)}$", r.get("wbits"), r.get("abits")) for n, r in rules.items())
    return Allocation(chosen, written, costs, tuple(spent))


def choose_widths(costs: Sequence[Mapping[int, float]], spent: Sequence[Mapping[int, int]], total: int) -> list[int]:
    """A width for each item: least sum of costs with the sum of what is spent at most ``total``, exactly.

    Args:
        costs: of every item by width.
        spent: of every item by width on offer, positive integers.
        total: to spend, an integer.

    Returns:
        Widths, one an item.

    Raises:
        ValueError: the least there is to spend is more already.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # noqa: PLC0415 - a quarter of a second, where widths are chosen

    if not spent:
        return []
    least = sum(min(row.values()) for row in spent)
    if least > total:
        raise ValueError(f"{total} is less than the smallest possible, {least}")
    options = [(i, width) for i, row in enumerate(spent) for width in row]
    # The solver's tolerances are absolute: bring costs to a scale where they are small, and sizes to their smallest integers.
    table = np.asarray([costs[i][width] for i, width in options], np.float64)
    table = table / max(float(np.abs(table).max()), 1e-30) * 1e4
    units = [spent[i][width] for i, width in options]
    unit = math.gcd(*units)
    use = np.asarray(units) // unit
    one_each = np.asarray([[float(i == item) for i, _ in options] for item in range(len(spent))])
    # All sums are integers, so half of one more excludes nothing and leaves room for rounding.
    room = LinearConstraint(use.reshape(1, -1).astype(np.float64), ub=total // unit + 0.5)
    # HiGHS 1.12 prints lines of its own debugging whatever it is told (its issue 2783); stdout is for results.
    with silent(1):
        result = milp(
            table,
            integrality=np.ones(len(options)),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(one_each, lb=1, ub=1), room],
            options={"mip_rel_gap": 0.0},
        )
    assert result.x is not None, result.message
    picks = [
        max((k for k, (i, _) in enumerate(options) if i == item), key=result.x.__getitem__)
        for item in range(len(spent))
    ]
    assert sum(units[k] for k in picks) <= total
    return [options[k][1] for k in picks]


def with_rules(settings: S, allocation: Allocation) -> S:
    """``settings`` with the allocated widths behind what the user fixed."""
    return dataclasses.replace(settings, bits=(*settings.bits, *allocation.rules))


def _widths(settings: Settings, offered: Sequence[int]) -> tuple[int, ...]:
    """Those of ``offered`` that the method can do and the target takes."""
    low, high = load_target(settings.target).wbits
    return tuple(w for w in offered if max(low, METHODS[settings.method].least_wbits) <= w <= high)


def _fixed(layer: LayerPlan, settings: BitSettings, kind: str) -> bool:
    return layer.bridge or any(
        (rule.wbits if kind == "w" else rule.abits) is not None and re.search(rule.pattern, layer.name)
        for rule in settings.bits
    )


def _apart(size: int, beside: int, *, up: bool) -> str:
    """A size with as many digits as tell it from ``beside``; rounded ``up`` where a budget of what is shown has to be enough."""
    digits = 3
    while size != beside and byte_size(size, digits, up=up) == byte_size(beside, digits, up=not up):
        digits += 1
    return byte_size(size, digits, up=up)
