"""Versions of runtimes that forms of a file need: one table, measured, and how it stands in a file's metadata.

Files of every container and target were run on ONNX Runtime 1.22.1, 1.23.2, 1.24.4, 1.25.1, 1.26 to 1.30, 1.31.1 and 1.32 (CPU,
both levels, ``benchmarks/results/versions.md``); 1.22 is the oldest that this package takes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import uses_external_data

from mrecg_onnx.converters.errors import ModelError
from mrecg_onnx.converters.metadata_keys import REQUIRES_KEY

__all__ = [
    "Requirement",
    "longest_entry",
    "note_requirements",
    "requirements",
    "stored_note",
    "stored_requirements",
    "unmet",
]


#: Rows of an entry, and characters of each text in it, beyond which it was not written here.
_MOST_ROWS, _LONGEST_TEXT = 20, 100
#: Characters of a name: that of a target of the user's is a path.
_LONGEST_PATH = 4096
#: No opset or IR version is as high.
_HIGHEST = 1000
_TWO_BITS = frozenset({TensorProto.UINT2, TensorProto.INT2})
_FOUR_BITS = frozenset({TensorProto.UINT4, TensorProto.INT4})


@dataclass(frozen=True)
class Requirement:
    """The oldest version of a runtime that runs a file as it is meant to.

    Attributes:
        package: the runtime, by its package.
        version: the oldest version that does.
        reason: what in the file needs it.
        otherwise: what older ones do: "wrong values" without an error, "refused", or "slower".
    """

    package: str
    version: str
    reason: str
    otherwise: str

    def note(self) -> str:
        """What the file needs, for people."""
        return f"{self.reason} need {self.package} {self.version} or newer (older: {self.otherwise})"

    def line(self, where: str, installed: str) -> str:
        """One line for people: ``where`` is the file."""
        does = {
            "wrong values": f"{installed} computes wrong values without an error",
            "refused": f"{installed} does not open it",
            "slower": f"{installed} runs it slower",
        }[self.otherwise]
        advice = (
            ""
            if self.otherwise == "slower"
            else ", or make an int8 file of it with mrecg-onnx convert --container int8"
        )
        return (
            f"{where}: {self.reason} need {self.package} {self.version} or newer, {does}: install a newer one{advice}"
        )


def requirements(model: onnx.ModelProto) -> tuple[Requirement, ...]:
    """What ``model`` needs, by its graph."""
    found = tuple(row for row, needs in _TABLE if needs(model.graph))
    return (_POOLS, *found) if _unequal_pads(model) else found


def note_requirements(model: onnx.ModelProto) -> None:
    """Write what ``model`` needs into its metadata, in place; an entry that is there gives way."""
    kept = [entry for entry in model.metadata_props if entry.key != REQUIRES_KEY]
    found = requirements(model)
    if found:
        kept.append(_entry(found))
    del model.metadata_props[:]
    model.metadata_props.extend(kept)


def longest_entry() -> int:
    """Bytes that the metadata of a packed file may take at most for what its weights need."""
    entry = _entry(tuple(row for row, _ in _TABLE if row.otherwise == "refused"))
    return int(onnx.ModelProto(metadata_props=[entry]).ByteSize())


def _entry(rows: tuple[Requirement, ...]) -> onnx.StringStringEntryProto:
    value = json.dumps([asdict(row) for row in rows], separators=(",", ":"))
    return onnx.StringStringEntryProto(key=REQUIRES_KEY, value=value)


def stored_note(metadata: Mapping[str, str], key: str, where: str = "the model") -> dict[str, Any]:
    """The entry ``key`` of a file's ``metadata``: a JSON object with a name, empty where there is none.

    Raises:
        ModelError: it is something else, or its numbers (``opset``, ``ir_version``) are none that a file can have.
    """
    if key not in metadata:
        return {}
    try:
        note = json.loads(metadata[key])
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where}: its metadata entry {key} cannot be read") from error
    name = note.get("name") if isinstance(note, dict) else None
    numbers = [note[part] for part in ("opset", "ir_version") if part in note] if isinstance(name, str) else []
    if (
        not isinstance(name, str)
        or not 0 < len(name) <= _LONGEST_PATH
        or len(numbers) == 1
        or any(type(number) is not int or not 0 < number < _HIGHEST for number in numbers)
    ):
        raise ModelError(f"{where}: its metadata entry {key} cannot be read")
    return dict(note)


def stored_requirements(metadata: Mapping[str, str]) -> tuple[Requirement, ...] | None:
    """What a file's ``metadata`` say that it needs; None where they say nothing, as older versions, or no sense."""
    if REQUIRES_KEY not in metadata:
        return None
    try:
        rows = tuple(Requirement(**row) for row in json.loads(metadata[REQUIRES_KEY]))
    except (TypeError, ValueError, RecursionError):
        return None
    return rows if len(rows) <= _MOST_ROWS and all(map(_is_sane, rows)) else None


def _is_sane(row: Requirement) -> bool:
    """Whether a row of a file is text of the right form and of a length to be shown."""
    texts = asdict(row).values()
    return (
        all(isinstance(text, str) and len(text) <= _LONGEST_TEXT for text in texts)
        and row.otherwise in {"wrong values", "refused", "slower"}
        and bool(re.fullmatch(r"[0-9]+(\.[0-9]+)*", row.version))
    )


def unmet(rows: tuple[Requirement, ...], package: str, installed: str) -> tuple[Requirement, ...]:
    """Those of ``rows`` that version ``installed`` of ``package`` is too old for."""
    return tuple(row for row in rows if row.package == package and _numbers(installed) < _numbers(row.version))


def _numbers(version: str) -> tuple[int, ...]:
    """Major and minor version."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _kinds(graph: onnx.GraphProto) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in graph.initializer}


def _narrow_activations(graph: onnx.GraphProto) -> bool:
    kinds = _kinds(graph)
    return any(
        kinds.get(n.input[2]) in _FOUR_BITS for n in graph.node if n.op_type == "QuantizeLinear" and len(n.input) > 2
    )


def _two_bit_codes(graph: onnx.GraphProto) -> bool:
    return not _TWO_BITS.isdisjoint(_kinds(graph).values())


def _cast_codes(graph: onnx.GraphProto) -> bool:
    kinds = _kinds(graph)
    return any(kinds.get(name) in _FOUR_BITS for n in graph.node if n.op_type == "Cast" for name in n.input)


def _full_clips(graph: onnx.GraphProto) -> bool:
    """A Clip of values to all that the quantizer behind it can write."""
    makers = {name: node for node in graph.node for name in node.output}
    # Single numbers lie in the file.
    held = {tensor.name: tensor for tensor in graph.initializer if not uses_external_data(tensor)}
    for node in graph.node:
        maker = makers.get(node.input[0]) if node.op_type == "QuantizeLinear" and len(node.input) > 2 else None
        if maker is None or maker.op_type != "Clip" or len(maker.input) < 3:
            continue
        if not {*node.input[1:3], *maker.input[1:3]} <= set(held):
            continue
        scale, zero, low, high = (numpy_helper.to_array(held[name]) for name in (*node.input[1:3], *maker.input[1:3]))
        if low.size != 1 or high.size != 1:
            continue
        ends = np.array([low.item(), high.item()], np.float64).reshape(2, -1) / scale + zero.astype(np.float64)
        limits = np.iinfo(zero.dtype) if zero.dtype.kind in "iu" else None
        if limits is not None and np.allclose(ends[:, :1].ravel(), (limits.min, limits.max), atol=1e-2):
            return True
    return False


#: Measured with 1.22.1 to 1.25.1, one to three axes, opset 11 to 22: wrong from opset 19 on, with two axes or more.
_POOLS = Requirement("onnxruntime", "1.25", "average pools that count unequal pads", "wrong values")


def _unequal_pads(model: onnx.ModelProto) -> bool:
    """An AveragePool of two axes or more that counts its pads, which are not the same on all sides."""
    opset = max((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), default=0)
    for node in model.graph.node if opset >= 19 else ():
        if node.op_type != "AveragePool":
            continue
        said = {entry.name: entry for entry in node.attribute}
        pads = list(said["pads"].ints) if "pads" in said else []
        if len(pads) >= 4 and len(set(pads)) > 1 and "count_include_pad" in said and said["count_include_pad"].i:
            return True
    return False


_TABLE: tuple[tuple[Requirement, Callable[[onnx.GraphProto], bool]], ...] = (
    (Requirement("onnxruntime", "1.31", "activations in 4-bit types", "wrong values"), _narrow_activations),
    (Requirement("onnxruntime", "1.24", "weights in 2-bit types", "refused"), _two_bit_codes),
    (Requirement("onnxruntime", "1.23", "packed weights in 4-bit types", "refused"), _cast_codes),
    (Requirement("onnxruntime", "1.23", "Clips at the ends of 8 bits", "slower"), _full_clips),
)
