"""The layers: all with constant weights, what they cost, and to how many bits they are quantized (rule 1 of placement)."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

import onnx_ir as ir

from mrecg_onnx.converters.errors import ModelError, SettingsError
from mrecg_onnx.converters.module_names import module_of, names_meant
from mrecg_onnx.planning.activations import (
    ahead_of_layers,
    behind_layers,
    constant,
    is_bridge,
    is_layer,
    is_weighted,
    weight_index,
)
from mrecg_onnx.planning.plan import BYSTANDER_BITS, FLOAT_BITS, WIDE_BITS, LayerPlan
from mrecg_onnx.planning.settings import BitSettings
from mrecg_onnx.planning.tails import told_cut

__all__ = ["excluded_nodes", "plan_layers"]

#: Operators that a pattern most likely means.
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def _matching(patterns: Iterable[str], nodes: list[ir.Node], option: str, cut: str = "") -> dict[str, set[str]]:
    """Names of nodes that each pattern finds; where it finds none, those whose module of torch it finds.

    ``cut`` says where a model ends that goes on: what lies behind has names, too, that no pattern reaches.

    Raises:
        SettingsError: a pattern finds nothing; the nearest names are suggested.
    """
    known = {node.name or "": _module(node) for node in nodes}
    found = {}
    for pattern in patterns:
        found[pattern] = set(names_meant(pattern, known, known))
        if not found[pattern]:
            words = {word: name for name, module in known.items() for word in (name, module) if word}
            # Names that exporters made up are near to anything: where none is meant, layers are.
            layers = [node.name or "" for node in nodes if node.op_type in _LAYERS]
            near = difflib.get_close_matches(pattern, words, n=3, cutoff=0.5) or (layers or list(known))[:3]
            shown = dict.fromkeys(words.get(word, word) for word in near)
            said = ", ".join(f"{name} ({known[name]})" if known[name] else name for name in shown)
            behind = f" (the model is cut {cut})" if cut else ""
            raise SettingsError(f"{option} '{pattern}' matches no node; names look like {said}{behind}")
    return found


def _module(node: ir.Node) -> str:
    """The module of torch that a name made up by an exporter stands for."""
    second = node.inputs[1] if len(node.inputs) > 1 else None
    module = module_of(second.name or "" if second is not None else "", node.metadata_props)
    return "" if module in (node.name or "") else module


def excluded_nodes(model: ir.Model, patterns: Iterable[str]) -> set[str]:
    """Names of the nodes that stay in float.

    Raises:
        SettingsError: a pattern finds nothing.
    """
    found = _matching(patterns, list(model.graph), "--exclude", told_cut(model.metadata_props))
    return set().union(*found.values())


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


def plan_layers(model: ir.Model, settings: BitSettings) -> tuple[LayerPlan, ...]:
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
    excluded = excluded_nodes(model, settings.exclude)
    rules = _matching([r.pattern for r in settings.bits], weighted, "--bits", told_cut(model.metadata_props))
    ahead, behind = ahead_of_layers(model), behind_layers(model)
    symmetric = settings.weights_symmetric
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
                symmetric=symmetric,
            )
        )
    if all(layer.excluded for layer in layers):
        raise SettingsError("--exclude leaves no layer to quantize")
    return tuple(layers)
