"""The whole plan of a graph in one call, and the merges of its units."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from mrecg_onnx.methods import METHODS
from mrecg_onnx.planning.granularity import default_merges, groups_from_mask, select_eq4, select_peaks
from mrecg_onnx.planning.layers import plan_layers
from mrecg_onnx.planning.placement import place
from mrecg_onnx.planning.plan import Plan
from mrecg_onnx.planning.schemes import read_scheme
from mrecg_onnx.planning.settings import MergeSettings, PlanSettings
from mrecg_onnx.planning.units import join_units, plan_layer_units, plan_units

__all__ = ["make_plan", "merge_by"]


def make_plan(model: ir.Model, settings: PlanSettings) -> Plan:
    """Plan everything that needs no data; merges of the scheme "loss" come after the probing run.

    Raises:
        ModelError: nothing to quantize.
        SettingsError: a pattern or the scheme file does not fit the model.
    """
    layers = plan_layers(model, settings)
    activations = place(model, layers, settings)
    method = METHODS[settings.method]
    if method.granularity == "layer":
        units = plan_layer_units(model, layers, settings.alpha)
    else:
        units = plan_units(model, layers, settings.alpha)
    units = join_units(model, units)
    plan = Plan(layers, activations, units, tuple((i,) for i in range(len(units))))
    if not method.merge or settings.scheme in {"none", "loss"}:
        return plan
    if settings.scheme == "modcap":
        return merge_by(plan, settings, [u.capacity for u in units], "modcap")
    return dataclasses.replace(plan, merges=read_scheme(settings.scheme, units), scheme=settings.scheme)


def merge_by(plan: Plan, settings: MergeSettings, capacities: list[float], scheme: str) -> Plan:
    """Choose merges from capacities: module capacities or losses (Eq. 3 and 4)."""
    k, rising = settings.merges, scheme == "modcap"
    if k is None and (rising or settings.selection != "peak"):
        k = default_merges(len(capacities))
    # Counts of parameters do not fall behind a pooling.
    units = [dataclasses.replace(u, pools=False) for u in plan.units] if rising else list(plan.units)
    if settings.selection != "peak":
        relative = settings.selection == "relative"
        mask = select_eq4(capacities, k or 0, settings.penalty, relative=relative, units=units)
    else:
        mask = select_peaks(capacities, k, rising=rising, units=units)
    losses = tuple(capacities) if scheme == "loss" else None
    return dataclasses.replace(plan, merges=groups_from_mask(mask), scheme=scheme, losses=losses)
