"""How far the codes of quantizers reach in a graph: which nodes run in integers (rules 2 to 6 of placement)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from mrecg_onnx.converters.passes.gelu import gelu_nodes
from mrecg_onnx.planning.activations import (
    FLOAT_ONLY,
    FLOAT_RESULT,
    FLOATS,
    INTEGER_OPS,
    activation_inputs,
    ahead_of_layers,
    is_activation,
    is_clamp,
    is_preserving,
    is_weighted,
    lacks_kernel,
    only_reader,
    readers,
)
from mrecg_onnx.planning.plan import BYSTANDER_BITS
from mrecg_onnx.targets import Target

__all__ = ["Reach", "absorbed_into", "reach_of_codes"]

#: Value-preserving ops that move nothing.
_VIEWS = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
#: Ops whose results are read as probabilities where a graph ends in them.
_PROBABILITIES = frozenset({"Sigmoid", "Softmax"})


def absorbed_into(value: ir.Value, integer: set[ir.Node]) -> ir.Node | None:
    """The Relu or Clip that alone reads ``value`` and stands in front of a quantizer (rule 4)."""
    if value.is_graph_output() or value.is_graph_input():
        return None
    user = only_reader(value)
    return user if user is not None and is_clamp(user) and user in integer else None


def _before_clamps(model: ir.Model, integer: set[ir.Node]) -> dict[ir.Value, ir.Node | None]:
    """By what nodes make: the node that made it, or that made what the absorbed Relu or Clip in front of it reads."""
    found: dict[ir.Value, ir.Node | None] = {}
    for node in model.graph:
        source = node.inputs[0] if node.inputs else None
        absorbed = source is not None and is_clamp(node) and absorbed_into(source, integer) is node
        found.update(dict.fromkeys(node.outputs, found.get(source) if absorbed and source is not None else node))
    return found


@dataclass(frozen=True)
class Reach:
    """How far codes reach in a graph.

    Attributes:
        wanted: width of what each quantized layer reads, by name.
        excluded: names of nodes that stay in float.
        integer: nodes through which a quantizer can act: computing ones, clamps, and value-preserving ones on the way to those.
        tail: those of them behind the last layers.
        ahead: nodes from which a layer can be reached.
        outputs: what layers make is quantized for its own sake, and outputs of the graph are taken from behind that.
        behind: for what a node makes that node, or the one that made what the absorbed Relu or Clip in front of it reads.
    """

    wanted: dict[str, int]
    excluded: Collection[str]
    integer: set[ir.Node]
    tail: set[ir.Node]
    ahead: set[ir.Node]
    outputs: bool
    behind: Mapping[ir.Value, ir.Node | None]

    def needs_quantizer(self, value: ir.Value) -> bool:
        """True for what a layer, or an op behind the last one, has to make quantized to run in integers, whoever reads it.

        A convolution needs that also when only float ops read it, and so does a Gemm in front of a Relu or Clip, with which the
        runtime would fuse it in float.
        """
        maker, behind = value.producer(), self.behind.get(value)
        if not self.outputs or behind is None or not (readers(value) or value.is_graph_output()):
            return False
        if behind.name not in self.wanted:
            return behind in self.tail and behind.op_type != "MatMul" and not is_clamp(behind)
        if behind.op_type in FLOAT_ONLY:
            return behind in self.ahead
        return not (behind.op_type in FLOAT_RESULT and (behind is maker or _writes_float(behind, value)))

    def handed_out(self, root: ir.Value, parts: list[ir.Value], bits: int) -> list[ir.Value]:
        """Those of a quantizer's ``parts`` that are outputs of the graph and taken from behind it (rule 5)."""
        maker = self.behind.get(root)
        if not self.outputs or bits < BYSTANDER_BITS or maker not in self.integer or maker.op_type in FLOAT_ONLY:  # type: ignore[union-attr]
            return []
        return [value for value in parts if value.is_graph_output()]


def reach_of_codes(model: ir.Model, rules: Target, wanted: dict[str, int], excluded: Collection[str]) -> Reach:
    """How far codes reach in ``model`` under the rules of a target.

    Args:
        model: normalized graph.
        rules: of the target.
        wanted: width of what each quantized layer reads, by name.
        excluded: names of nodes that stay in float.
    """
    ahead, gelus = ahead_of_layers(model), gelu_nodes(model.graph)
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
    integer |= tail
    return Reach(wanted, excluded, integer, tail, ahead, outputs, _before_clamps(model, integer))


def _writes_float(layer: ir.Node, value: ir.Value) -> bool:
    """True if ``layer`` runs in integers and writes floats although a Relu or Clip stands behind it, which makes ``value``.

    ONNX Runtime's MatMul does where its bias is added in between, or the Relu makes an output (measured with 1.31).
    """
    return layer.op_type == "MatMul" and (len(layer.inputs) > 2 or value.is_graph_output())


def _coded_tail(nodes: list[ir.Node], integer: Collection[ir.Node], fits: Callable[[ir.Node], bool]) -> set[ir.Node]:
    """Those of ``nodes``, all behind the last layers, that work on codes as the layers and ops in ``integer`` make them (rule 5).

    A Resize that interpolates has no integer kernel in ONNX Runtime from 1.28 on.
    """
    found: set[ir.Node] = set()
    sources = {value for node in nodes for value in (*node.inputs, *activation_inputs(node)) if value is not None}
    read = {value for value in sources if any(reader in integer for reader in readers(value))}

    def coded(value: ir.Value | None) -> bool:
        """``value`` has a quantizer, or gets one that keeps its maker in integers."""
        maker = value.producer() if value is not None else None
        if maker is not None and (maker in found or (maker in integer and maker.op_type not in FLOAT_RESULT)):
            return True
        return value in read

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
