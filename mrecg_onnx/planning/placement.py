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

import difflib
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from mrecg_onnx.converters.errors import ModelError, SettingsError
from mrecg_onnx.converters.passes.gelu import gelu_nodes
from mrecg_onnx.planning.activations import (
    FLOAT_ONLY,
    FLOAT_RESULT,
    FLOATS,
    INTEGER_OPS,
    activation_inputs,
    activation_outputs,
    channel_ceilings,
    clamp_bounds,
    constant,
    is_activation,
    is_bridge,
    is_clamp,
    is_fallback,
    is_layer,
    is_preserving,
    is_weighted,
    lacks_kernel,
    readers,
    weight_index,
)
from mrecg_onnx.planning.plan import BYSTANDER_BITS, FLOAT_BITS, WIDE_BITS, ActivationPlan, LayerPlan
from mrecg_onnx.settings import Settings
from mrecg_onnx.targets import Target, load_target

__all__ = ["place", "plan_layers"]

#: Value-preserving ops that move nothing.
_VIEWS = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
#: Ops whose results are read as probabilities where a graph ends in them.
_PROBABILITIES = frozenset({"Sigmoid", "Softmax"})


def _matching(patterns: Iterable[str], names: list[str], option: str) -> dict[str, set[str]]:
    """Names that each pattern finds.

    Raises:
        SettingsError: a pattern finds nothing; the nearest names are suggested.
    """
    found = {pattern: {name for name in names if re.search(pattern, name)} for pattern in patterns}
    for pattern, hits in found.items():
        if not hits:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
            raise SettingsError(f"{option} '{pattern}' matches no node; names look like {', '.join(near)}")
    return found


def _reaches_weighted(model: ir.Model) -> set[ir.Node]:
    """Nodes from which a weighted layer can be reached (the layer itself not counted)."""
    result: set[ir.Node] = set()
    for node in reversed(list(model.graph)):
        for output in node.outputs:
            if any(reader in result or is_layer(reader) for reader in readers(output)):
                result.add(node)
    return result


def _behind_weighted(model: ir.Model) -> set[ir.Node]:
    """Nodes that a weighted layer reaches (the layer itself not counted)."""
    result: set[ir.Node] = set()
    for node in model.graph:
        makers = [v.producer() for v in node.inputs if v is not None]
        if any(maker is not None and (maker in result or is_layer(maker)) for maker in makers):
            result.add(node)
    return result


def _macs(node: ir.Node, weight_shape: tuple[int, ...], spatial_of: ir.Value) -> int | None:
    """Multiply-accumulates an image: weights times the positions they are used at."""
    shape = spatial_of.shape
    if node.op_type == "Gemm":
        return math.prod(weight_shape)
    if shape is None:
        return None
    positions = list(shape)[2:] if node.op_type != "MatMul" else list(shape)[1:-1]
    if not all(isinstance(d, int) for d in positions):
        return None
    return math.prod(weight_shape) * math.prod(int(d) for d in positions if isinstance(d, int))


def plan_layers(model: ir.Model, settings: Settings) -> tuple[LayerPlan, ...]:
    """Describe every weighted layer and give it its widths.

    Raises:
        ModelError: the graph has no weighted layer, or is quantized already.
        SettingsError: an ``exclude`` or ``bits`` pattern matches nothing.
    """
    weighted = [node for node in model.graph if is_weighted(node)]
    if not any(map(is_layer, weighted)):
        if any(node.op_type in {"DequantizeLinear", "QLinearConv", "QLinearMatMul"} for node in model.graph):
            raise ModelError("the model is quantized already: give the float model it was made from")
        raise ModelError(
            "the model has no Conv, ConvTranspose, Gemm or MatMul with constant weights: nothing to quantize"
        )
    names = [node.name or "" for node in model.graph]
    excluded = set().union(*_matching(settings.exclude, names, "--exclude").values()) if settings.exclude else set()
    rules = _matching([r.pattern for r in settings.bits], [n.name or "" for n in weighted], "--bits")
    ahead, behind = _reaches_weighted(model), _behind_weighted(model)
    layers = []
    for node in weighted:
        position = weight_index(node)
        assert position is not None
        weight, data = node.inputs[position], node.inputs[1 - position]
        assert weight is not None
        assert data is not None
        tensor = constant(weight)
        assert tensor is not None
        shape = tuple(tensor.numpy().shape)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        bridge = is_bridge(node)
        first, last = not bridge and node not in behind, not bridge and node not in ahead
        wbits, abits = settings.wbits, settings.abits
        if bridge:
            # A value a channel is exact, and takes no room, at any width; what it reads is a stream, not its own input.
            wbits, abits = BYSTANDER_BITS, max(BYSTANDER_BITS, abits)
        if first or last:
            # The image keeps 8 bits whatever low width is asked for: pixels are 8-bit data.
            wbits = settings.first_last_bits
            if abits < WIDE_BITS:
                abits = BYSTANDER_BITS if first else settings.first_last_bits
        for rule in settings.bits:
            if node.name in rules[rule.pattern]:
                wbits = rule.wbits or wbits
                abits = (rule.abits or abits) if abits != FLOAT_BITS else FLOAT_BITS
        out = node.name in excluded
        transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
        axis: int | None
        if node.op_type == "Conv" or transposed:
            axis = 0
        elif node.op_type == "MatMul" and len(shape) > 2:
            axis = None
        elif node.op_type == "MatMul":
            axis = len(shape) - 1 if position == 1 else len(shape) - 2
        else:
            axis = 1
        layers.append(
            LayerPlan(
                name=node.name or "",
                op=node.op_type,
                weight=weight.name or "",
                bias=bias.name if bias is not None else None,
                shape=shape,
                axis=axis,
                stride=tuple(node.attributes.get_ints("strides", [1] * (len(shape) - 2)))
                if "Conv" in node.op_type
                else (),
                groups=node.attributes.get_int("group", 1),
                params=math.prod(shape),
                macs=_macs(node, shape, data if node.op_type == "ConvTranspose" else node.outputs[0]),
                wbits=FLOAT_BITS if out else wbits,
                input=data.name or "",
                output=node.outputs[0].name or "",
                abits=FLOAT_BITS if out else abits,
                first=first,
                last=last,
                excluded=out,
            )
        )
    if all(layer.excluded for layer in layers):
        raise SettingsError("--exclude leaves no layer to quantize")
    return tuple(layers)


def _absorbed_into(value: ir.Value, integer: set[ir.Node]) -> ir.Node | None:
    """The Relu or Clip that alone reads ``value`` and stands in front of a quantizer (rule 4)."""
    if value.is_graph_output() or value.is_graph_input():
        return None
    users = readers(value)
    if len(users) != 1 or not is_clamp(users[0]) or users[0] not in integer:
        return None
    return users[0]


def _before_clamps(value: ir.Value, integer: set[ir.Node]) -> ir.Node | None:
    """The node that made ``value``, or that made what the absorbed Relu or Clip in front of it reads."""
    maker = value.producer()
    while maker is not None and maker.inputs and maker.inputs[0] is not None:
        if _absorbed_into(maker.inputs[0], integer) is not maker:
            break
        maker = maker.inputs[0].producer()
    return maker


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
    model: ir.Model, layers: tuple[LayerPlan, ...], settings: Settings, protected: frozenset[str] = frozenset()
) -> tuple[ActivationPlan, ...]:
    """Decide the activation quantizers of ``model``.

    Args:
        model: normalized graph.
        layers: from :func:`plan_layers`.
        settings: patterns for nodes that stay in float.
        protected: names of quantizers raised to 8 bits.

    Returns:
        Quantizers in topological order; none when activations stay in float.
    """
    if settings.abits == FLOAT_BITS:
        return ()
    names = [node.name or "" for node in model.graph]
    excluded = set().union(*_matching(settings.exclude, names, "--exclude").values()) if settings.exclude else set()
    rules = load_target(settings.target)
    wanted = {layer.name: layer.abits for layer in layers if not layer.excluded}
    reach = _reach(model, rules, wanted, excluded)
    fused = _fused_operands(model) if rules.add_operands == "residual" else set()

    group: dict[ir.Value, ir.Value] = {}  # member -> root
    members: dict[ir.Value, list[ir.Value]] = {}
    values = [v for v in model.graph.inputs if is_activation(v)]
    values += [v for node in model.graph for v in activation_outputs(node)]
    for value in values:
        users = [r for r in readers(value) if r in reach.integer and (_reads_as_input(r, value) or not is_weighted(r))]
        maker = value.producer()
        if value in fused or (not users and not reach.needs_quantizer(value)):
            continue
        if _absorbed_into(value, reach.integer) is not None:
            continue
        if maker is not None and is_preserving(maker) and maker.name not in excluded and maker.inputs[0] in group:
            root = group[maker.inputs[0]]  # type: ignore[index]
        else:
            root = value
        group[value] = root
        members.setdefault(root, []).append(value)
    return tuple(_quantizer(root, parts, group, reach, settings, protected) for root, parts in members.items())


@dataclass(frozen=True)
class _Reach:
    """How far codes reach in a graph.

    Attributes:
        wanted: width of what each quantized layer reads, by name.
        excluded: names of nodes that stay in float.
        integer: nodes through which a quantizer can act: computing ones, clamps, and value-preserving ones on the way to those.
        tail: those of them behind the last layers.
        ahead: nodes from which a layer can be reached.
        outputs: what layers make is quantized for its own sake, and outputs of the graph are taken from behind that.
    """

    wanted: dict[str, int]
    excluded: Collection[str]
    integer: set[ir.Node]
    tail: set[ir.Node]
    ahead: set[ir.Node]
    outputs: bool

    def needs_quantizer(self, value: ir.Value) -> bool:
        """True for what a layer, or an op behind the last one, has to make quantized to run in integers, whoever reads it.

        A convolution needs that also when only float ops read it, and so does a Gemm in front of a Relu or Clip, with which the
        runtime would fuse it in float.
        """
        maker, behind = value.producer(), _before_clamps(value, self.integer)
        if not self.outputs or behind is None or not (readers(value) or value.is_graph_output()):
            return False
        if behind.name not in self.wanted:
            return behind in self.tail and behind.op_type != "MatMul" and not is_clamp(behind)
        if behind.op_type in FLOAT_ONLY:
            return behind in self.ahead
        return not (behind.op_type in FLOAT_RESULT and (behind is maker or _writes_float(behind, value)))

    def handed_out(self, root: ir.Value, parts: list[ir.Value], bits: int) -> list[ir.Value]:
        """Those of a quantizer's ``parts`` that are outputs of the graph and taken from behind it (rule 5)."""
        maker = _before_clamps(root, self.integer)
        if not self.outputs or bits < BYSTANDER_BITS or maker not in self.integer or maker.op_type in FLOAT_ONLY:  # type: ignore[union-attr]
            return []
        return [value for value in parts if value.is_graph_output()]


def _reach(model: ir.Model, rules: Target, wanted: dict[str, int], excluded: Collection[str]) -> _Reach:
    ahead, gelus = _reaches_weighted(model), gelu_nodes(model.graph)
    integer_ops = INTEGER_OPS & set(rules.integer_ops)

    def fits(node: ir.Node) -> bool:
        """There is an integer kernel for an op without weights."""
        if node.op_type not in integer_ops or is_weighted(node) or node in gelus or node.name in excluded:
            return False
        if node.op_type == "Softmax":
            maker = _maker(node.inputs[0])
            return maker is not None and computes(maker)
        return not _has_float_constant(node) and lacks_kernel(node) is None

    def computes(node: ir.Node) -> bool:
        """The node runs on an integer kernel and therefore wants its inputs quantized."""
        return node.name in wanted or (node in ahead and fits(node))

    integer: set[ir.Node] = set()
    for node in reversed(list(model.graph)):
        if node.name in excluded:
            continue
        passes_on = is_preserving(node) and any(r in integer for o in node.outputs for r in readers(o))
        clamps = is_clamp(node) and node in ahead
        if computes(node) or passes_on or clamps:
            integer.add(node)
    outputs, tail = rules.layer_outputs == "quantized", set[ir.Node]()
    if outputs:
        behind = [n for n in model.graph if n not in ahead and not is_weighted(n) and n.name not in excluded]
        tail = _coded_tail(behind, {n for n in integer if n.op_type not in FLOAT_ONLY}, fits)
    return _Reach(wanted, excluded, integer | tail, tail, ahead, outputs)


def _quantizer(
    root: ir.Value,
    parts: list[ir.Value],
    group: Mapping[ir.Value, ir.Value],
    reach: _Reach,
    settings: Settings,
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
    maker, behind = root.producer(), _before_clamps(root, integer)
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


def _writes_float(layer: ir.Node, value: ir.Value) -> bool:
    """True if ``layer`` runs in integers and writes floats although a Relu or Clip stands behind it, which makes ``value``.

    ONNX Runtime's MatMul does where its bias is added in between, or the Relu makes an output (measured with 1.31).
    """
    return layer.op_type == "MatMul" and (len(layer.inputs) > 2 or value.is_graph_output())


def _touches_fallback(parts: list[ir.Value]) -> bool:
    """True if ONNX Runtime makes or reads one of ``parts`` inside the torch module (rule 7)."""
    nodes = [node for value in parts for node in (*readers(value), value.producer())]
    return any(node is not None and is_fallback(node) for node in nodes)


def _coded_tail(nodes: list[ir.Node], integer: Collection[ir.Node], fits: Callable[[ir.Node], bool]) -> set[ir.Node]:
    """Those of ``nodes``, all behind the last layers, that work on codes as the layers and ops in ``integer`` make them (rule 5).

    A Resize that interpolates has no integer kernel in ONNX Runtime from 1.28 on.
    """
    found: set[ir.Node] = set()

    def coded(value: ir.Value | None) -> bool:
        """``value`` has a quantizer, or gets one that keeps its maker in integers."""
        maker = value.producer() if value is not None else None
        if maker is not None and (maker in found or (maker in integer and maker.op_type not in FLOAT_RESULT)):
            return True
        return value is not None and any(reader in integer for reader in readers(value))

    def fused_in_float(clamp: ir.Node) -> bool:
        """The runtime would make one float op of ``clamp`` and the Gemm in front, as it does where others read what it makes."""
        maker = clamp.inputs[0].producer() if clamp.inputs[0] is not None else None
        return maker in integer and maker.op_type == "Gemm" and bool(readers(clamp.outputs[0]))  # type: ignore[union-attr]

    for node in nodes:
        if is_clamp(node) or is_preserving(node):
            works = coded(node.inputs[0]) or (is_clamp(node) and fused_in_float(node))
        else:
            works = fits(node) and node.op_type != "Resize" and all(map(coded, activation_inputs(node)))
        if works:
            found.add(node)
    for node in reversed(nodes):
        # Views cost nothing on floats; probabilities would lose their small ones.
        if node.op_type in (*_VIEWS, *_PROBABILITIES) and not any(r in found for v in node.outputs for r in readers(v)):
            found.discard(node)
    return found


def _joined(maker: ir.Node | None, group: Mapping[ir.Value, ir.Value], *, alone: bool = False) -> tuple[str, ...]:
    """Quantizers of what ``maker`` joins, of all or, with ``alone``, of what nobody else reads; () where it is no Concat."""
    if maker is None or maker.op_type != "Concat":
        return ()
    inputs = [v for v in maker.inputs if v is not None and v in group]
    if alone:
        inputs = [v for v in inputs if group[v] is v and readers(v) == [maker] and not v.is_graph_output()]
    return tuple(dict.fromkeys(group[v].name or "" for v in inputs))


def _has_float_constant(node: ir.Node) -> bool:
    """True if ``node`` reads floats that are no activation: they have no quantizer, and so the node stays in float."""
    data = node.inputs[:1] if node.op_type == "Resize" else node.inputs
    return any(v is not None and v.dtype in FLOATS and not is_activation(v) for v in data)


def _maker(value: ir.Value | None) -> ir.Node | None:
    """The node that computes what ``value`` holds, seen through value-preserving ones."""
    maker = value.producer() if value is not None else None
    while maker is not None and is_preserving(maker):
        maker = maker.inputs[0].producer()  # type: ignore[union-attr]
    return maker


def _reads_as_input(node: ir.Node, value: ir.Value) -> bool:
    """True if ``value`` is the data a weighted ``node`` multiplies (and not, say, its computed bias)."""
    return value in activation_inputs(node) and value in node.inputs[:2]


def _only_reader(clamp: ir.Node) -> bool:
    """True if nobody else reads what the clamp reads, so that the clamp can move into the codes."""
    source = clamp.inputs[0]
    return source is not None and len(readers(source)) == 1 and not source.is_graph_output()
