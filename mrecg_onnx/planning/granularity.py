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

import json
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.planning.plan import LayerPlan, UnitPlan

__all__ = [
    "MAX_GROUP",
    "default_merges",
    "groups_from_mask",
    "module_capacity",
    "read_scheme",
    "select_eq4",
    "select_peaks",
]

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


def _from_counts(entries: list[Any], total: int, where: str) -> tuple[tuple[int, ...], ...]:
    groups, position = [], 0
    for entry in entries:
        if entry == []:
            raise SettingsError(f"{where}: an empty list joins nothing; write a number for a unit of its own")
        size = len(entry) if isinstance(entry, list) else 1
        groups.append(tuple(range(position, position + size)))
        position += size
    if position != total:
        raise SettingsError(f"{where}: the scheme covers {position} units, the model has {total}")
    return tuple(groups)


def _without_borders(
    groups: tuple[tuple[int, ...], ...], units: Sequence[UnitPlan], where: str
) -> tuple[tuple[int, ...], ...]:
    for group in groups:
        border = next((units[i].name for i in group if not units[i].layers), None)
        if border is not None and len(group) > 1:
            raise SettingsError(f"{where}: nothing can be joined with '{border}', which torch cannot run")
    return groups


def _from_names(entries: list[Any], units: Sequence[UnitPlan], where: str) -> tuple[tuple[int, ...], ...]:
    owner = {name: i for i, unit in enumerate(units) for name in unit.layers}
    groups: list[tuple[int, ...]] = []
    for entry in entries:
        if not entry:
            raise SettingsError(f"{where}: a unit is empty")
        unknown = [name for name in entry if not isinstance(name, str) or name not in owner]
        if unknown:
            near = get_close_matches(str(unknown[0]), owner, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "mrecg-onnx inspect lists them"
            raise SettingsError(f"{where}: '{unknown[0]}' is not a weighted layer of the model; {hint}")
        indices = tuple(sorted({owner[name] for name in entry}))
        missing = {name for i in indices for name in units[i].layers} - set(entry)
        if missing:
            raise SettingsError(f"{where}: a unit lists part of a block; '{min(missing)}' belongs to it as well")
        groups.append(indices)
    for border in (i for i, unit in enumerate(units) if not unit.layers):
        place = next((p for p, group in enumerate(groups) if group[0] > border), len(groups))
        groups.insert(place, (border,))
    flat = [i for group in groups for i in group]
    if flat != list(range(len(units))):
        raise SettingsError(f"{where}: units must cover all layers once, in the model's order")
    return tuple(groups)


def read_scheme(path: str | Path, units: Sequence[UnitPlan]) -> tuple[tuple[int, ...], ...]:
    """Read a scheme file.

    Two forms: ``{"scheme": [1, 2, [3, 3], 4]}`` is the notation of the MRECG configurations (a number is a unit of its
    own, a list of n entries joins n units; the numbers are labels), ``{"units": [["conv1"], ["layer1.0.conv1", ...]]}``
    names the weighted layers of each unit.

    Raises:
        SettingsError: the file is not such JSON, or does not fit the model's units.
    """
    where = f"scheme '{path}'"
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{where} cannot be read as JSON: {error}") from error
    if isinstance(data, list):
        data = {"scheme": data}
    if isinstance(data, dict) and isinstance(data.get("scheme"), list):
        return _without_borders(_from_counts(data["scheme"], len(units), where), units, where)
    if (
        isinstance(data, dict)
        and isinstance(data.get("units"), list)
        and all(isinstance(u, list) for u in data["units"])
    ):
        return _from_names(data["units"], units, where)
    raise SettingsError(f'{where}: expected {{"scheme": [1, [2, 2], ...]}} or {{"units": [["layer", ...], ...]}}')
