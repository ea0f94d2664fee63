"""Placement: which weights and tensors are quantized, and to how many bits.

The rules (measured on ONNX Runtime's CPU provider; rule 8 is for targets that ask for it):

1. The input of every weighted layer gets the layer's activation width; the first and last layers have their own. Layers that only
   scale and shift each channel have 8 bits, and are never first or last.
2. A tensor has one quantizer whoever reads it. Value-preserving ops pass their input's quantizer on, so such tensors form
   one group, and the narrowest width asked for by a reader in the group wins.
3. Tensors that only other integer ops read (residual branches, pool inputs) get 8 bits. With activations of 16 bits they, and
   what the first and last layers read, get 16: ops of one type throughout.
4. A Relu or Clip in front of a quantizer is part of it: its bounds become bounds of the codes, and the tensor before it
   has no quantizer of its own.
5. Ops behind the last weighted layer run in integers as far as the codes of a layer reach them. What a convolution, pool, sum or
   Concat makes there has 8 bits, and so has an output of the graph, which is taken from behind its quantizer, unless a narrower
   layer reads it, too. A Gemm or MatMul writes floats itself, and what follows it there stays float. So do Sigmoid and Softmax
   that make an output (8 bits would cut small probabilities to 0), and excluded nodes.
6. Ops that read float constants (a bias that no layer takes, a mask), Softmax behind such an op, a pool that its integer kernel
   gets wrong, and a GELU that is written out stay in float: ONNX Runtime has no integer kernels for them, and quantizers would
   hide the GELU from it.
7. What a node reads and makes that torch cannot run gets 8 bits, if any: no range before or behind it is learned.
8. Targets with ``add_operands = "residual"`` have no quantizer on what an Add alone reads of a weighted layer, nor, with
   ``layer_outputs = "float"``, on what only float ops read of one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

from mrecg_onnx.planning.activations import (
    activation_outputs,
    channel_ceilings,
    clamp_bounds,
    is_activation,
    is_clamp,
    is_fallback,
    is_preserving,
    is_weighted,
    only_reader,
    readers,
)
from mrecg_onnx.planning.layers import excluded_nodes
from mrecg_onnx.planning.plan import BYSTANDER_BITS, FLOAT_BITS, ActivationPlan, LayerPlan
from mrecg_onnx.planning.reach import Reach, absorbed_into, reach_of_codes
from mrecg_onnx.planning.settings import BitSettings
from mrecg_onnx.targets import load_target

__all__ = ["place"]


def _fused_operands(model: ir.Model) -> set[ir.Value]:
    """Operands that a weighted layer hands to one Add alone, at most one of each Add (rule 8).

    Of two the one with more weighted layers in front of it: the other is a shortcut.
    """
    depth: dict[ir.Value, int] = {}
    found = set()
    for node in model.graph:
        before = max((depth.get(value, 0) for value in node.inputs if value is not None), default=0)
        depth.update(dict.fromkeys(node.outputs, before + is_weighted(node)))
        if node.op_type != "Add":
            continue
        alone = [v for v in dict.fromkeys(node.inputs) if v is not None and _is_for_one(v)]
        if alone and all(is_activation(v) for v in node.inputs):
            found.add(max(alone, key=lambda v: depth[v]))
    return found


def _is_for_one(value: ir.Value) -> bool:
    """True for what a weighted layer makes for a single use."""
    maker = value.producer()
    return maker is not None and is_weighted(maker) and len(list(value.uses())) == 1 and not value.is_graph_output()


def place(
    model: ir.Model, layers: tuple[LayerPlan, ...], settings: BitSettings, protected: frozenset[str] = frozenset()
) -> tuple[ActivationPlan, ...]:
    """Decide the activation quantizers of ``model``.

    Args:
        model: normalized graph.
        layers: from :func:`mrecg_onnx.planning.layers.plan_layers`.
        settings: patterns for nodes that stay in float.
        protected: names of quantizers raised to 8 bits.

    Returns:
        Quantizers in topological order; none when activations stay in float.
    """
    if settings.abits == FLOAT_BITS:
        return ()
    excluded = excluded_nodes(model, settings.exclude)
    rules = load_target(settings.target)
    wanted = {layer.name: layer.abits for layer in layers if not layer.excluded}
    reach = reach_of_codes(model, rules, wanted, excluded)
    fused = _fused_operands(model) if rules.add_operands == "residual" else set()

    group: dict[ir.Value, ir.Value] = {}  # member -> root
    members: dict[ir.Value, list[ir.Value]] = {}
    values = [v for v in model.graph.inputs if is_activation(v)]
    values += [v for node in model.graph for v in activation_outputs(node)]
    for value in values:
        users = [r for r in readers(value) if r in reach.integer and (not is_weighted(r) or _reads_as_input(r, value))]
        maker = value.producer()
        if value in fused or (not users and not reach.needs_quantizer(value)):
            continue
        if absorbed_into(value, reach.integer) is not None:
            continue
        if maker is not None and is_preserving(maker) and maker.name not in excluded and maker.inputs[0] in group:
            root = group[maker.inputs[0]]  # type: ignore[index]
        else:
            root = value
        group[value] = root
        members.setdefault(root, []).append(value)
    return tuple(_quantizer(root, parts, group, reach, settings, protected) for root, parts in members.items())


def _quantizer(
    root: ir.Value,
    parts: list[ir.Value],
    group: Mapping[ir.Value, ir.Value],
    reach: Reach,
    settings: BitSettings,
    protected: Collection[str],
) -> ActivationPlan:
    """The quantizer behind ``root`` whose scale ``parts`` share; ``group`` has the root of every quantized tensor."""
    integer, name = reach.integer, root.name or ""
    computing = [
        (v, r)
        for v in parts
        for r in readers(v)
        if not (is_preserving(r) and r in integer and any(o in group for o in r.outputs))
    ]
    wanted = min(
        (reach.wanted[r.name or ""] for v, r in computing if r.name in reach.wanted and _reads_as_input(r, v)),
        default=max(BYSTANDER_BITS, settings.abits),
    )
    bits = max(wanted, BYSTANDER_BITS) if name in protected or _touches_fallback(parts) else wanted
    outputs = reach.handed_out(root, parts, bits)
    maker, behind = root.producer(), reach.behind.get(root)
    clamps = maker is not None and maker.name not in reach.excluded and is_clamp(maker) and _only_reader(maker)
    absorbs = maker if clamps and (root in outputs or not root.is_graph_output()) else None
    bounds = clamp_bounds(absorbs) if absorbs is not None else None
    return ActivationPlan(
        name=name,
        members=tuple(v.name or "" for v in parts),
        # Who takes an output sees all of it, not only the part that a pool or a Slice behind it keeps.
        reads=tuple(dict.fromkeys(v.name or "" for v in (*outputs, *(v for v, _ in computing)))) or (name,),
        bits=bits,
        absorbs=absorbs.name if absorbs is not None else None,
        low=bounds[0] if bounds is not None else None,
        high=bounds[1] if bounds is not None else None,
        protected=name in protected and wanted < BYSTANDER_BITS,
        ceilings=channel_ceilings(absorbs) if absorbs is not None else None,
        joins=_joined(behind, group),
        copies=_joined(behind, group, alone=True),
        spare=not any(r in integer for _, r in computing),
        outputs=tuple(v.name or "" for v in outputs),
    )


def _touches_fallback(parts: list[ir.Value]) -> bool:
    """True if ONNX Runtime makes or reads one of ``parts`` inside the torch module (rule 7)."""
    nodes = [node for value in parts for node in (*readers(value), value.producer())]
    return any(node is not None and is_fallback(node) for node in nodes)


def _joined(maker: ir.Node | None, group: Mapping[ir.Value, ir.Value], *, alone: bool = False) -> tuple[str, ...]:
    """Quantizers of what ``maker`` joins, of all or, with ``alone``, of what nobody else reads; () where it is no Concat."""
    if maker is None or maker.op_type != "Concat":
        return ()
    inputs = [v for v in maker.inputs if v is not None and v in group]
    if alone:
        inputs = [v for v in inputs if group[v] is v and only_reader(v) is maker and not v.is_graph_output()]
    return tuple(dict.fromkeys(group[v].name or "" for v in inputs))


def _reads_as_input(node: ir.Node, value: ir.Value) -> bool:
    """True if ``value`` is the data a weighted ``node`` multiplies (and not, say, its computed bias)."""
    return value in node.inputs[:2] and is_activation(value)


def _only_reader(clamp: ir.Node) -> bool:
    """True if nobody else reads what the clamp reads, so that the clamp can move into the codes."""
    source = clamp.inputs[0]
    return source is not None and only_reader(source) is clamp and not source.is_graph_output()
