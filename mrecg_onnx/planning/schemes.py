"""Scheme files: which neighbouring units are optimized together, as a user says it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrecg_onnx.converters.errors import SettingsError, first_line
from mrecg_onnx.converters.files import read_small
from mrecg_onnx.converters.text import did_you_mean
from mrecg_onnx.planning.plan import UnitPlan

__all__ = ["read_scheme"]


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
            hint = did_you_mean(unknown[0], owner) or "; mrecg-onnx inspect lists them"
            raise SettingsError(f"{where}: '{unknown[0]}' is not a weighted layer of the model{hint}")
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
        data = json.loads(read_small(Path(path)))
    except OSError as error:
        raise SettingsError(f"{where} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a number without end, nested without end
        raise SettingsError(f"{where} cannot be read as JSON: {first_line(error)}") from error
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
