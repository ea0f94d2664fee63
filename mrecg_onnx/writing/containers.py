"""How the codes of a quantized file are stored: forms of one graph, each made from ``int8`` and brought back to it.

``int8`` is what :mod:`mrecg_onnx.writing.qdq` writes: every code in an 8-bit tensor. The others start from it.
``packed`` (:mod:`mrecg_onnx.writing.packed`) and ``typed`` (:mod:`mrecg_onnx.writing.typed`) hold low-bit codes in low-bit types,
``qonnx`` (:mod:`mrecg_onnx.writing.quant_nodes`) has a node of qonnx's for each quantizer.

The first three compute the same, bit for bit, on a runtime that runs the graph as it is written; the last one no runtime of
ONNX runs: what is read back from it is run in its place (:func:`runnable`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from mrecg_onnx.converters.errors import ExportError, ModelError, SettingsError
from mrecg_onnx.converters.metadata_keys import CONTAINER_KEY, VERSION_KEY, not_ours
from mrecg_onnx.converters.passes.opset import raise_opset, require_raisable
from mrecg_onnx.targets import CONTAINER_NAMES, note_requirements, requirements, stored_note
from mrecg_onnx.writing.opsets import FOUR_BITS, TWO_BITS, Limits
from mrecg_onnx.writing.packed import pack, unpack
from mrecg_onnx.writing.quant_nodes import from_quant, to_quant
from mrecg_onnx.writing.typed import read_typed, write_typed

__all__ = ["CONTAINERS", "Contained", "Container", "contained", "container_of", "runnable"]


@dataclass(frozen=True)
class Container:
    """One row.

    Attributes:
        summary: what it is, for help pages.
        write: changes a graph in ``int8`` form in place within limits; returns what was left as it is and why,
            one line each.
        read: changes a graph of this form back to ``int8`` in place.
        typed: it needs types of newer opsets.
        runs: ONNX Runtime runs it.
    """

    summary: str
    write: Callable[[ir.Model, Limits], list[str]]
    read: Callable[[ir.Model], None]
    typed: bool = True
    runs: bool = True


@dataclass(frozen=True)
class Contained:
    """A converted model.

    Attributes:
        model: the file's content.
        notes: what the container could not hold in low-bit types, one line each.
    """

    model: onnx.ModelProto
    notes: tuple[str, ...] = ()


def container_of(model: onnx.ModelProto, where: str = "the model") -> str:
    """The container of a file of :func:`mrecg_onnx.quantize`.

    Raises:
        ModelError: another tool made the file, or a newer version of this one.
    """
    entries = {entry.key: entry.value for entry in model.metadata_props}
    if VERSION_KEY not in entries:
        raise ModelError(not_ours(where))
    name = str(stored_note(entries, CONTAINER_KEY, where).get("name", "int8"))
    if name not in CONTAINERS:
        raise ModelError(f"{where}: its container '{name}' is unknown to this version of mrecg-onnx")
    return name


def contained(
    model: onnx.ModelProto, name: str, where: str = "the model", highest: int = TWO_BITS, *, zero_points: bool = True
) -> Contained:
    """``model`` in the container ``name`` with types up to those of opset ``highest``; ``model`` is not changed.

    Without ``zero_points`` weights in 4-bit types of ``typed`` have the zero point 0, and those that need others stay in int8.

    Raises:
        SettingsError: ``name`` is unknown.
        ModelError: another tool made the file.
        ExportError: an operator of the graph does not exist in the opset that the container needs.
    """
    if name not in CONTAINERS:
        raise SettingsError.among(f"container is '{name}'", CONTAINERS, name)
    before = container_of(model, where)
    if before == name:
        return Contained(model)
    graph = ir.from_proto(model)
    if before != "int8":
        CONTAINERS[before].read(graph)
        noted = stored_note(graph.metadata_props, CONTAINER_KEY, where)
        del graph.metadata_props[CONTAINER_KEY]
        if "opset" in noted:
            graph.opset_imports[""], graph.ir_version = noted["opset"], noted["ir_version"]
    notes: list[str] = []
    if name != "int8":
        notes = CONTAINERS[name].write(graph, Limits(_reachable(graph, highest), zero_points))
        note: dict[str, object] = {"name": name}
        opset, version, nodes = graph.opset_imports[""], graph.ir_version, _node_bytes(graph)
        try:
            if CONTAINERS[name].typed:
                raise_opset(graph, TWO_BITS if _has_two_bits(graph) else FOUR_BITS)
        except ModelError as error:
            raise ExportError(f"{where}: container {name}: {error}") from error
        if _node_bytes(graph) == nodes:
            note |= {
                "opset": opset,
                "ir_version": version,
            }  # nothing but these numbers is to be changed on the way back
        graph.metadata_props[CONTAINER_KEY] = json.dumps(note, separators=(",", ":"))
    proto = ir.to_proto(graph)
    if name == "packed":
        kept = [entry for entry in proto.graph.value_info if entry.name not in graph.graph.initializers]
        del proto.graph.value_info[:]
        proto.graph.value_info.extend(kept)
    note_requirements(proto)
    notes += [row.note() for row in requirements(proto) if row.otherwise != "slower"]
    return Contained(proto, tuple(notes))


def runnable(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model``, or what ONNX Runtime runs in its place: the ``int8`` form of a container that it does not run."""
    entry = next((e.value for e in model.metadata_props if e.key == CONTAINER_KEY), None)
    if entry is None or CONTAINERS[container_of(model)].runs:
        return model
    return contained(model, "int8").model


def _reachable(model: ir.Model, highest: int) -> int:
    """``highest``, or a lower opset where the graph's operators have no form in the one of 2-bit types."""
    try:
        require_raisable(model, min(highest, TWO_BITS))
    except ModelError:
        return min(highest, FOUR_BITS)
    return highest


def _node_bytes(model: ir.Model) -> list[bytes]:
    return [ir.to_proto(node).SerializeToString(deterministic=True) for node in model.graph]


def _has_two_bits(model: ir.Model) -> bool:
    return any(value.dtype in {ir.DataType.UINT2, ir.DataType.INT2} for value in model.graph.initializers.values())


def _as_it_is(_model: ir.Model, _limits: Limits) -> list[str]:
    return []


def _nothing(_model: ir.Model) -> None:
    return


_READ_BACK = (
    "container qonnx: ONNX Runtime has no Quant nodes; what was run is what is read back from them as QuantizeLinear, Clip and "
    "DequantizeLinear"
)


def _quant_nodes(model: ir.Model, _limits: Limits) -> list[str]:
    to_quant(model)
    return [_READ_BACK]


CONTAINERS: dict[str, Container] = {
    "int8": Container("every code in an 8-bit tensor", _as_it_is, _nothing),
    "packed": Container("weights in 4- or 2-bit types, unpacked when the file is loaded", pack, unpack),
    "typed": Container("4-bit codes in true INT4 and UINT4 Q/DQ", write_typed, read_typed),
    "qonnx": Container("Quant nodes of qonnx's domain", _quant_nodes, from_quant, typed=False, runs=False),
}
assert tuple(CONTAINERS) == CONTAINER_NAMES
