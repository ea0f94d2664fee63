"""Mixed reconstruction granularity: capacities, and which neighbouring units are optimized together (Ma et al. 2023).

Capacity, Eq. 3:  ModCap = sum over conv layers of params * bits * a,  a = 1 at stride 1 and alpha at stride 2.
Choice, Eq. 4:    max over m in {0,1}^(L-1) of  sum m_i (C_i - C_{i+1})^2 - lambda (sum m_i - k)^2.

Three selections are offered (docs/method.md 4): ``eq4`` is the formula, solved exactly; ``relative`` the same on differences
relative to the larger of the two, because capacities and losses grow with depth and the last pairs would win by their size;
``peak`` is the signed rule that reproduces the authors' own choices: a unit whose loss is higher than that of the next one is
joined with it, because the peak disappears when the error is measured behind it.

The number of merges k, when not given, is a quarter of the adjacent pairs (rounded): the published schemes have 2 of 9
(ResNet-18), 4 of 17 (ResNet-50, RegNetX-600M) and 7 of 17 (MobileNetV2).
"""

from __future__ import annotations

from collections.abc import Sequence

from mrecg_onnx.planning.plan import LayerPlan, UnitPlan

__all__ = ["MAX_GROUP", "default_merges", "groups_from_mask", "module_capacity", "select_eq4", "select_peaks"]

#: No published scheme joins more than three units.
MAX_GROUP = 3
#: A drop smaller than this share of the loss is not an oscillation but noise of the probing run.
MIN_DROP = 0.05


def module_capacity(layers: Sequence[LayerPlan], alpha: float) -> float:
    """ModCap of a unit (Eq. 3), in bits; layers that are not convolutions count without stride correction."""
    total = 0.0
    for layer in layers:
        correction = alpha if layer.stride and max(layer.stride) > 1 else 1.0
        total += layer.params * layer.wbits * correction
    return total


def default_merges(units: int) -> int:
    """K when it is not given: a quarter of the adjacent pairs, at least one when there are three units or more."""
    return max(1, round((units - 1) / 4)) if units >= 3 else 0


def _eligible(units: Sequence[UnitPlan] | int) -> list[bool]:
    """Pairs (i, i+1) that may be joined: neither the stem's unit nor the classifier's takes part, nor one that ends in a pooling.

    Units without layers are borders: nothing is trained through them.

    Behind an averaging pooling the loss is that of averages and always falls: no peak. On ResNet-20 the signed rule
    joined nothing but that pair, and the networks came out worse (no published scheme joins the last block of a ResNet).
    """
    count = units if isinstance(units, int) else len(units)
    pairs = [0 < i < count - 2 for i in range(count - 1)]
    if not isinstance(units, int):
        # Only a single-entry, single-exit neighbour can be joined: the later unit must read the earlier one's output.
        for i in range(count - 1):
            pairs[i] = pairs[i] and not units[i + 1].pools and bool(set(units[i].outputs) & set(units[i + 1].inputs))
            pairs[i] = pairs[i] and bool(units[i].layers) and bool(units[i + 1].layers)
    return pairs


def select_eq4(
    capacities: Sequence[float],
    k: int,
    penalty: float | None,
    *,
    relative: bool = False,
    units: Sequence[UnitPlan] | None = None,
) -> list[bool]:
    """Solve Eq. 4 exactly under the rules of :data:`MAX_GROUP` and :func:`_eligible`.

    Dynamic programming over pairs with the number of merges so far and the length of the running group as state.

    Args:
        capacities: C_i of each unit (module capacity or reconstruction loss).
        k: wanted number of merges.
        penalty: lambda; None stands for infinity, that is, exactly k merges where the rules allow as many.
        relative: differences count in shares of the larger capacity of the pair, 0 to 1.
        units: for the rule of who may be joined; without, only stem and classifier are kept apart.

    Returns:
        The mask m, one entry a pair.
    """
    allowed = _eligible(units if units is not None else len(capacities))
    pairs = list(zip(capacities, capacities[1:], strict=False))
    if relative:
        pairs = [(a / size, b / size) if (size := max(abs(a), abs(b))) else (0.0, 0.0) for a, b in pairs]
    gains = [(a - b) ** 2 for a, b in pairs]
    # state: (merges so far, pairs in the running group) -> (gain, mask)
    states: dict[tuple[int, int], tuple[float, tuple[bool, ...]]] = {(0, 0): (0.0, ())}
    for gain, may in zip(gains, allowed, strict=True):
        following: dict[tuple[int, int], tuple[float, tuple[bool, ...]]] = {}
        for (count, run), (total, mask) in states.items():
            options = [((count, 0), total, (*mask, False))]
            if may and run < MAX_GROUP - 1:
                options.append(((count + 1, run + 1), total + gain, (*mask, True)))
            for key, value, chosen in options:
                if key not in following or value > following[key][0]:
                    following[key] = (value, chosen)
        states = following
    best: dict[int, tuple[float, tuple[bool, ...]]] = {}
    for (count, _), entry in states.items():
        if count not in best or entry[0] > best[count][0]:
            best[count] = entry
    if penalty is None:
        return list(best[min(k, max(best))][1])
    count = max(best, key=lambda c: best[c][0] - penalty * (c - k) ** 2)
    return list(best[count][1])


def select_peaks(
    losses: Sequence[float], k: int | None, *, rising: bool = False, units: Sequence[UnitPlan] | None = None
) -> list[bool]:
    """The signed rule: join a peak of the loss with the unit behind it, the deepest relative drops first.

    With more merges wanted than there are drops, peaks are also joined with the unit in front, the largest rises first.

    Args:
        losses: one value a unit.
        k: number of merges, None for every drop of at least :data:`MIN_DROP`.
        rising: values are capacities, whose rise makes the loss fall: join where they rise.
        units: for the rule of who may be joined.

    Returns:
        The mask m, one entry a pair.
    """
    values = [-x for x in losses] if rising else list(losses)
    allowed = _eligible(units if units is not None else len(losses))

    def relative(i: int) -> float:
        largest = max(abs(values[i]), abs(values[i + 1]))
        return (values[i] - values[i + 1]) / largest if largest else 0.0

    mask = [False] * len(allowed)

    def fits(i: int) -> bool:
        trial = mask.copy()
        trial[i] = True
        return allowed[i] and all(len(g) <= MAX_GROUP for g in groups_from_mask(trial))

    drops = sorted((i for i in range(len(mask)) if relative(i) >= MIN_DROP), key=relative, reverse=True)
    limit = len(drops) if k is None else k
    for i in drops:
        if sum(mask) < limit and fits(i):
            mask[i] = True
    if k is not None:
        rises = sorted((i for i in range(len(mask)) if i + 1 < len(mask) and mask[i + 1] and not mask[i]), key=relative)
        for i in rises:
            if sum(mask) < k and fits(i):
                mask[i] = True
    return mask


def groups_from_mask(mask: Sequence[bool]) -> tuple[tuple[int, ...], ...]:
    """Unit indices by group: a run of True joins neighbours."""
    groups: list[list[int]] = [[0]]
    for i, joined in enumerate(mask, start=1):
        if joined:
            groups[-1].append(i)
        else:
            groups.append([i])
    return tuple(tuple(g) for g in groups)
