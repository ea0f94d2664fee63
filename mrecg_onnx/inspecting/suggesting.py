"""Options of ``quantize`` that bring back what a layer or a tensor loses, and the network under them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mrecg_onnx.calibrating import nearest_weights
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.network import Simulation
from mrecg_onnx.planning import BitRule, is_clamp, make_plan, readers
from mrecg_onnx.preparation import search_grids

if TYPE_CHECKING:
    from mrecg_onnx.planning import Plan
    from mrecg_onnx.preparation import Prepared
    from mrecg_onnx.settings import Settings

__all__ = ["possible", "suggested", "under", "variant"]

#: Most bits that an option gives.
MOST = 8
#: A layer whose loss at 8 bits is more than this share of what it is now has to stay in float to come back.
FLOAT_FROM = 0.5


def suggested(
    ready: Prepared, name: str, kind: str, layers: Sequence[str], losses: Mapping[int, float], bits: int
) -> list[tuple[str, str]]:
    """The option that gives an entry of the ranking more bits, or leaves it in float where 8 are too few; none where none does.

    Args:
        ready: the prepared model.
        name: of the layer or the tensor.
        kind: "weights" or "activations".
        layers: the layer, or those that read the tensor.
        losses: by width.
        bits: the width it has.
    """
    if not layers:
        nodes = _left_in_float(ready, name)
        return [("--exclude", _pattern(nodes))] if nodes else []
    if bits >= MOST or losses[MOST] > FLOAT_FROM * losses[bits]:
        left = ("--exclude", _pattern(layers))
        return [left] if possible(ready, [left]) is not None else []
    return [("--bits", f"{_pattern(layers)}={'W' if kind == 'weights' else 'A'}{MOST}")]


def _pattern(nodes: Sequence[str]) -> str:
    names = [re.escape(n) for n in nodes]
    return f"^{names[0]}$" if len(names) == 1 else f"^({'|'.join(names)})$"


def _left_in_float(ready: Prepared, name: str) -> tuple[str, ...]:
    """The nodes without which a tensor that no layer reads has no quantizer: what makes it, what reads it, or both.

    A quantizer is there so that what makes the tensor (the last convolution in front of an output) or what reads it (a sum) runs
    in integers.
    """
    value = next((v for node in ready.graph.graph for v in node.outputs if v.name == name), None)
    maker = value.producer() if value is not None else None
    if value is None or maker is None:
        return ()
    makers = [maker]
    source = maker.inputs[0] if is_clamp(maker) else None
    if source is not None and source.producer() is not None:
        makers.insert(0, source.producer())  # type: ignore[arg-type]
    read = readers(value)
    for nodes in (*((m,) for m in makers), read, [*makers, *read]):
        names = tuple(dict.fromkeys(node.name or "" for node in nodes))
        plan = possible(ready, [("--exclude", _pattern(names))]) if names and all(names) else None
        if plan is not None and all(a.name != name for a in plan.activations):
            return names
    return ()


def possible(ready: Prepared, options: Sequence[tuple[str, str]]) -> Plan | None:
    """The plan under further options; None where they would leave no layer to quantize."""
    try:
        return make_plan(ready.graph, under(ready.settings, options))
    except SettingsError:
        return None


def under(settings: Settings, options: Sequence[tuple[str, str]]) -> Settings:
    """The settings with further options."""
    return dataclasses.replace(
        settings,
        bits=(*settings.bits, *(BitRule.parse(v) for o, v in options if o == "--bits")),
        exclude=(*settings.exclude, *(v for o, v in options if o == "--exclude")),
    )


def variant(ready: Prepared, simulation: Simulation, options: Sequence[tuple[str, str]]) -> Simulation:
    """``simulation`` under further options; what they do not touch keeps its grids and codes."""
    settings = under(ready.settings, options)
    plan = make_plan(ready.graph, settings)
    known = {a.name: a for a in ready.plan.activations}
    changed = [a.name for a in plan.activations if a.name not in known or known[a.name].bits != a.bits]
    grids = search_grids(ready.network, plan, ready.data, settings, changed, ready.ranging) if changed else {}
    names = {a.name for a in plan.activations}
    activations = {n: grid for n, grid in (simulation.activations | grids).items() if n in names}
    layers = plan.quantized_layers
    again = [x for x in layers if x.wbits != ready.plan.layer(x.name).wbits]
    weights = {x.name: simulation.weights[x.name] for x in layers} | nearest_weights(ready.network, again)
    return Simulation(ready.network, plan, activations, weights)
