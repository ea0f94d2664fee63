"""Reconstruction units: the smallest single-entry, single-exit pieces that never split a residual block.

1. Cut the graph wherever a single activation is alive: between two cuts lies one op or one branch structure that
   re-joins (a residual block).
2. A branch structure with weights is a unit, unless it is only a gate (its branches meet in a Mul): a gate belongs to the
   layer in front.
3. Weighted ops outside branch structures form chains of at most three layers; a linear layer (no activation behind it)
   ends a chain, so that an inverted bottleneck without shortcut is one unit.
4. Ops without weights belong to the unit in front of them (those in front of everything to the first unit), and so do layers that
   only scale and shift each channel (a BatchNormalization that could not be folded).
5. A branch structure with more than eight layers (a U-Net, a dense block) is cut inside, where the fewest tensors are
   alive, into units with several inputs and outputs.
6. A node that torch cannot run (:mod:`mrecg_onnx.planning.fallback`) is a unit of its own without layers, wherever it
   stands: nothing is trained through it. Ops without weights between two such nodes, or in front of the first, are with one
   of them.

Reproduces the base partition of the MRECG code base (docs/method.md 3) on ResNet, RegNet and MobileNetV2.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import cached_property

import onnx_ir as ir

from mrecg_onnx.converters.errors import ModelError
from mrecg_onnx.planning.activations import (
    CAPTURES,
    activation_inputs,
    activation_outputs,
    is_activation,
    is_fallback,
    is_layer,
    is_preserving,
    is_weighted,
    readers,
    reads_activations,
)
from mrecg_onnx.planning.granularity import module_capacity
from mrecg_onnx.planning.plan import LayerPlan, Plan, UnitPlan

__all__ = ["WHOLE_BATCH", "join_units", "plan_layer_units", "plan_units"]

#: Key of a value's ``meta``: it belongs to a whole batch and cannot be kept image by image, so that no unit ends there.
WHOLE_BATCH = "mrecg_onnx.whole_batch"

MAX_CHAIN = 3
MAX_PIECE = 8
#: Ops behind whose averages a loss is small whatever came before; a MaxPool keeps single values, and so its loss.
_POOLING = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMax", "ReduceMean"})
#: Ops between a layer and the next one that leave the layer linear.
_LINEAR = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean", "BatchNormalization"})


@dataclass
class _Piece:
    nodes: list[ir.Node]
    layers: list[ir.Node] = field(init=False)

    def __post_init__(self) -> None:
        self.layers = [n for n in self.nodes if is_layer(n)]

    @cached_property
    def branches(self) -> bool:
        return len([n for n in self.nodes if activation_inputs(n)]) > 1

    @cached_property
    def gate(self) -> bool:
        joins = [n for n in self.nodes if len(activation_inputs(n)) > 1]
        # With as many layers as a chain it is a part of something larger, with an activation function that is written out.
        return bool(joins) and all(n.op_type in {"Mul", "Div"} for n in joins) and len(self.layers) < MAX_CHAIN


def _alive_after(nodes: list[ir.Node]) -> list[int]:
    """How many activations are still needed behind each node."""
    position = {node: i for i, node in enumerate(nodes)}
    last_use: dict[ir.Value, int] = {}
    for node in nodes:
        for value in activation_inputs(node):
            last_use[value] = max(last_use.get(value, -1), position[node])
    changes = [0] * len(nodes)
    for value, last in last_use.items():
        maker = value.producer()
        if maker not in position:
            changes[0] += 1
        elif value.name and last > position[maker]:
            changes[position[maker]] += 1
        else:
            continue
        changes[last] -= 1
    return list(itertools.accumulate(changes))


def _pieces(nodes: list[ir.Node]) -> list[_Piece]:
    """Step 1, with step 5 for pieces that are too large."""
    alive = _alive_after(nodes)
    result, start = [], 0
    for i in range(len(nodes)):
        if alive[i] <= 1 or i == len(nodes) - 1:
            result.append(_Piece(nodes[start : i + 1]))
            start = i + 1
    return [part for piece in result for part in (_split(piece) if len(piece.layers) > MAX_PIECE else [piece])]


def _split(piece: _Piece) -> list[_Piece]:
    """Step 5: close a part when it has enough layers and no more tensors are alive than at its start."""
    alive = _alive_after(piece.nodes)
    parts, current, at_start, layers = [], [], 1, 0
    for i, node in enumerate(piece.nodes):
        current.append(node)
        layers += is_layer(node)
        settled = layers >= MAX_CHAIN and alive[i] <= at_start + 1
        if (settled or layers >= MAX_PIECE) and not _is_tail(piece.nodes, alive, i):
            parts.append(_Piece(current))
            current, at_start, layers = [], alive[i], 0
    if current:
        if any(is_layer(n) for n in current) or not parts:
            parts.append(_Piece(current))
        else:
            parts[-1] = _Piece(parts[-1].nodes + current)
    return parts


def _is_tail(nodes: list[ir.Node], alive: list[int], i: int) -> bool:
    """Do not cut between node ``i`` and the next one, which has no weights.

    It only works on what node ``i`` made (its activation, say) and nobody else does, or it joins what is alive, as a residual
    addition does.
    """
    if i + 1 == len(nodes) or is_layer(nodes[i + 1]):
        return False
    if alive[i + 1] < alive[i]:
        return True
    alone = all(reader is nodes[i + 1] for value in nodes[i].outputs for reader in readers(value))
    return alone and len(activation_inputs(nodes[i + 1])) == 1


def _linear_behind(layer: ir.Node) -> bool:
    """True if no activation function follows ``layer`` before the next weighted layer."""
    pending, seen = [layer], {layer}
    while pending:
        for user in (r for v in pending.pop().outputs for r in readers(v)):
            if is_layer(user) or user in seen:
                continue
            if not (user.op_type in _LINEAR or is_weighted(user) or is_preserving(user)):
                return False
            seen.add(user)
            pending.append(user)
    return True


def _chain_groups(chain: list[_Piece]) -> list[list[_Piece]]:
    """Step 3: a chain of pieces with up to one layer each (gates carry more) into groups of at most three layers."""
    segments: list[list[_Piece]] = [[]]
    previous: _Piece | None = None
    for piece in chain:
        if piece.layers and not piece.gate:
            if previous is not None and _linear_behind(previous.layers[-1]):
                segments.append([])
            previous = piece
        segments[-1].append(piece)
    groups: list[list[_Piece]] = []
    for segment in segments:
        count = sum(1 for p in segment if p.layers and not p.gate)
        # The remainder goes first: the stem of a network stays apart from a bottleneck that follows it.
        room = count % MAX_CHAIN or MAX_CHAIN
        groups.append([])
        for piece in segment:
            if piece.layers and not piece.gate:
                if room == 0:
                    groups.append([])
                    room = MAX_CHAIN
                room -= 1
            groups[-1].append(piece)
    return groups


def plan_units(model: ir.Model, layers: tuple[LayerPlan, ...], alpha: float) -> tuple[UnitPlan, ...]:
    """Partition ``model`` into units; every node with activations is in exactly one.

    Args:
        model: normalized graph.
        layers: from :func:`mrecg_onnx.planning.layers.plan_layers`.
        alpha: stride correction of the module capacity (Eq. 3).

    Returns:
        Units in topological order; each holds at least one weighted layer, or is one of step 6.
    """
    by_name = {layer.name: layer for layer in layers}
    groups = [group for part in _parts(model) for group in ([part] if _is_barrier(part) else _blocks(part))]
    return _units(groups, by_name, alpha)


def _parts(model: ir.Model) -> list[list[ir.Node]]:
    """Step 6: the nodes with activations, cut around those that torch cannot run; every part has one or a layer."""
    parts: list[list[ir.Node]] = [[]]
    for node in model.graph:
        if is_fallback(node):
            parts += [[node], []]
        elif reads_activations(node) or activation_outputs(node):  # or a table is looked up by integers
            parts[-1].append(node)
    result: list[list[ir.Node]] = []
    ahead: list[ir.Node] = []
    for part in parts:
        if _is_barrier(part) or any(is_layer(n) for n in part):
            result.append(ahead + part)
            ahead = []
        elif result:
            result[-1] = result[-1] + part
        else:
            ahead = ahead + part
    return result


def _is_barrier(nodes: list[ir.Node]) -> bool:
    return any(is_fallback(n) for n in nodes)


def _blocks(nodes: list[ir.Node]) -> list[list[ir.Node]]:
    """Steps 1 to 5 for nodes that torch runs."""
    blocks: list[list[_Piece]] = []
    chain: list[_Piece] = []

    def flush() -> None:
        nonlocal chain
        if chain:
            blocks.extend(_chain_groups(chain))
        chain = []

    for piece in _pieces(nodes):
        if piece.layers and piece.branches and not piece.gate:
            flush()
            blocks.append([piece])
        elif (piece.layers and not piece.gate) or chain:
            chain.append(piece)
        elif blocks:
            blocks[-1].append(piece)
        else:
            chain.append(piece)
    flush()
    return [[n for piece in block for n in piece.nodes] for block in _join_unweighted(blocks)]


def plan_layer_units(model: ir.Model, layers: tuple[LayerPlan, ...], alpha: float) -> tuple[UnitPlan, ...]:
    """One unit a weighted layer, with the ops behind it up to the next layer (AdaRound's granularity).

    Ops in front of the first layer belong to its unit. Units may have several inputs.
    """
    groups: list[list[ir.Node]] = []
    for part in _parts(model):
        groups.append([])
        for node in part:
            if is_layer(node) and any(is_layer(n) for n in groups[-1]):
                groups.append([])
            groups[-1].append(node)
    return _units(groups, {layer.name: layer for layer in layers}, alpha)


def join_units(model: ir.Model, units: tuple[UnitPlan, ...]) -> tuple[UnitPlan, ...]:
    """Join units between which goes what belongs to a whole batch (:data:`WHOLE_BATCH`).

    Raises:
        ModelError: one of them would have to be trained through a node that runs forward only.
    """
    whole = {v.name for node in model.graph for v in node.outputs if WHOLE_BATCH in v.meta}
    if not whole:
        return units
    groups: list[list[int]] = []
    end = -1
    for i, unit in enumerate(units):
        if i > end:
            groups.append([])
        groups[-1].append(i)
        open_ends = whole & set(unit.outputs)
        end = max([end, *(k for k, later in enumerate(units) if open_ends & set(later.inputs))])
    for group in groups:
        if len(group) > 1 and not all(units[i].layers for i in group):
            name = next(name for i in group for name in units[i].outputs if name in whole)
            raise ModelError(
                f"tensor '{name}' mixes the images of a batch, and a node near it runs forward only: nothing can be learned "
                "there; export the model with batch 1 or a free batch, or use --method nearest"
            )
    return Plan((), (), units, tuple(map(tuple, groups))).merged_units()


def _join_unweighted(blocks: list[list[_Piece]]) -> list[list[_Piece]]:
    """Step 4 for what came before the first weighted layer."""
    result: list[list[_Piece]] = []
    pending: list[_Piece] = []
    for block in blocks:
        if any(p.layers for p in block):
            result.append(pending + block)
            pending = []
        else:
            pending += block
    if pending:
        result[-1] += pending
    return result


def _units(groups: list[list[ir.Node]], layers: dict[str, LayerPlan], alpha: float) -> tuple[UnitPlan, ...]:
    kept = {v for group in groups for v in _entries(group)}
    return tuple(_unit(group, kept, layers, alpha) for group in groups)


def _entries(nodes: list[ir.Node]) -> dict[ir.Value, None]:
    """Activations from elsewhere that ``nodes`` read, in order."""
    inside = set(nodes)
    return dict.fromkeys(v for n in nodes for v in activation_inputs(n) if v.producer() not in inside)


def _sources(nodes: list[ir.Node], kept: set[ir.Value]) -> dict[ir.Value, None]:
    """Values that are ``kept`` or fed, of which the integers, conditions and sizes that ``nodes`` read from elsewhere are made.

    These have no batch to be kept by: they are computed again where they are read.
    """
    inside, found, seen = set(nodes), dict[ir.Value, None](), set[ir.Value]()
    queue = [v for n in nodes for v in _all_inputs(n) if not is_activation(v)]
    while queue:
        value = queue.pop()
        maker = value.producer()
        if value in seen or maker in inside or value.is_initializer():
            continue
        seen.add(value)
        if maker is None or value in kept:
            found[value] = None
        else:
            queue += _all_inputs(maker)
    return found


def _all_inputs(node: ir.Node) -> list[ir.Value]:
    return [v for v in (*node.inputs, *node.meta.get(CAPTURES, ())) if v is not None]


def _unit(nodes: list[ir.Node], kept: set[ir.Value], layers: dict[str, LayerPlan], alpha: float) -> UnitPlan:
    inside = set(nodes)
    inputs = dict.fromkeys(v.name or "" for v in (*_entries(nodes), *_sources(nodes, kept)))
    outputs = [
        v.name or ""
        for n in nodes
        for v in activation_outputs(n)
        if v.is_graph_output() or any(r not in inside and reads_activations(r) for r in readers(v))
    ]
    own = [layers[n.name or ""] for n in nodes if is_weighted(n)]
    names = [n.name or "" for n in nodes if is_layer(n)] or [n.name or "" for n in nodes if is_fallback(n)]
    name = names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]}"
    return UnitPlan(
        name,
        tuple(n.name or "" for n in nodes),
        tuple(layer.name for layer in own),
        tuple(inputs),
        tuple(outputs),
        module_capacity(own, alpha),
        _pools(nodes),
    )


def _pools(nodes: list[ir.Node]) -> bool:
    """True if an averaging or global pooling comes behind the last weighted layer."""
    last = max((i for i, n in enumerate(nodes) if is_layer(n)), default=len(nodes))
    return any(n.op_type in _POOLING for n in nodes[last:])
