"""From a quantized file to a flatbuffer of LiteRT, node by node."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from mrecg_onnx.converters import check_writable, load_model
from mrecg_onnx.converters.calls import takes
from mrecg_onnx.converters.errors import ExportError, ModelError, SettingsError
from mrecg_onnx.converters.files import followed, write_whole
from mrecg_onnx.converters.kinds import require_kind
from mrecg_onnx.converters.made import Made, model_of
from mrecg_onnx.converters.metadata_keys import CONTAINER_KEY, REQUIRES_KEY
from mrecg_onnx.data import Data, open_arrays
from mrecg_onnx.litert.flatbuffer import Array, Held, channels_last, plain_order
from mrecg_onnx.litert.opening import open_litert
from mrecg_onnx.litert.operators import OPERATORS
from mrecg_onnx.litert.reading import codes_of, constant_of, refused, sizes_of
from mrecg_onnx.litert.writer import Constant, Out, Writer
from mrecg_onnx.running import Opened, describe, fixed_batch, input_specs, noise, open_session, specs_of
from mrecg_onnx.writing import as_written, contained, target_of

__all__ = ["LiteRTFile", "to_litert", "write_litert"]

#: What a file says of its form in ONNX.
_OF_ONNX = frozenset({CONTAINER_KEY, REQUIRES_KEY})
#: How filters are stored.
CONTAINERS = ("int8", "packed")
#: Items of noise on which LiteRT and ONNX Runtime are compared.
_ROWS = 4
_CHANNELS = (0, 3, 1, 2)


@dataclass(frozen=True)
class LiteRTFile:
    """A flatbuffer.

    Attributes:
        content: the file.
        output: where it was written, None if it was not.
        size_before: bytes of the source.
        operators: how many there are of each, with what they compute in.
        layouts: for each in- and output which of ONNX's axes each of the flatbuffer's is; maps have their channels last.
        opened: what LiteRT made of it.
        notes: what else is to be said.
    """

    content: bytes
    output: Path | None
    size_before: int
    operators: dict[str, int]
    layouts: dict[str, tuple[int, ...]]
    opened: Opened
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary without the file itself."""
        return {
            "output": str(self.output) if self.output else None,
            "before": {"size_bytes": self.size_before},
            "after": {"size_bytes": len(self.content)},
            "operators": self.operators,
            "layouts": self.layouts,
            "opened": self.opened.to_json(),
            "notes": list(self.notes),
        }


@takes()
def to_litert(
    model: onnx.ModelProto | str | Path | Made,
    container: str = "int8",
    *,
    output: str | Path | None = None,
    data: Data | None = None,
) -> LiteRTFile:
    """Write a result of :func:`mrecg_onnx.quantize` for LiteRT: integer kernels with the codes and scales that were learned.

    Args:
        model: the quantized model, or what :func:`mrecg_onnx.quantize` returned, for target ``ort`` in any container; not
            changed.
        container: "int8", or "packed": filters of convolutions in int4 where all codes of a layer fit that.
        output: where to write the flatbuffer; it appears there whole or not at all.
        data: ready inputs on which LiteRT is compared with ONNX Runtime: arrays by input name, ``[N, ...]``, or whatever else
            hands out arrays (docs/data.md); normal noise by default.

    Returns:
        The flatbuffer, opened by LiteRT.

    Raises:
        SettingsError: ai-edge-litert is not installed, there is no such ``container``, or ``output`` is what is read.
        ModelError: ``model`` cannot be read, was not written by :func:`mrecg_onnx.quantize`, or is for another target.
        ExportError: an operator has no form there, ``output`` cannot be written, or LiteRT refuses the file.
    """
    if container not in CONTAINERS:
        raise SettingsError.among(f"files for LiteRT have no container '{container}'", CONTAINERS, container)
    model = model_of(model)
    where = describe(model)
    source = load_model(model)
    if output is not None:
        require_kind(output, "tflite", "output")
        check_writable(output)
    target = target_of(source, where)
    if target != "ort":
        raise ModelError(
            f"{where}: was written for target {target}; LiteRT's files are made from one for ort: give that one"
        )
    try:
        with as_written(where):
            plain = contained(source, "int8", where).model
            made, layouts, w = _written(plain, four_bits=container == "packed")
    except ExportError as error:
        raise ExportError(f"{where}: {error}") from error
    feeds = _noise(plain) if data is None else open_arrays(data, specs_of(plain, where)).load()
    opened = open_litert(made, plain, feeds, layouts, w.flat.counts)
    if output is not None:
        write_whole(followed(output), made)
    return LiteRTFile(
        made,
        Path(output) if output is not None else None,
        source.ByteSize(),
        w.flat.counts,
        layouts,
        opened,
        _notes(w.wide),
    )


def write_litert(model: onnx.ModelProto) -> bytes:
    """The flatbuffer of ``model``, a file for ONNX Runtime in the ``int8`` container.

    Raises:
        ExportError: an operator has no form there.
    """
    return _written(model)[0]


def _written(model: onnx.ModelProto, *, four_bits: bool = False) -> tuple[bytes, dict[str, tuple[int, ...]], Writer]:
    graph = ir.from_proto(model).graph
    w = Writer(sizes_of(model), frozenset(value.name or "" for value in graph.outputs), four_bits)
    inputs = {}
    for value in graph.inputs:
        name = value.name or ""
        if value.dtype != ir.DataType.FLOAT or name not in w.sizes:
            raise ExportError(f"input '{name}' is no float tensor: LiteRT's file cannot be written")
        sizes = w.sizes[name]
        order = _order_of(value, len(sizes.shape))
        inputs[name] = w.floats[name] = w.flat.tensor(name, Held(-1, "FLOAT32", sizes.shape, sizes.free, order))
    for node in graph:
        if node not in w.done:
            _step(w, node)
    outputs = {}
    for value in graph.outputs:
        maker = value.producer()
        if maker is None:
            raise ExportError(f"output '{value.name}' is an input or a constant")
        held = w.float(value, maker)
        outputs[value.name or ""] = held
    layouts = {name: held.order for name, held in (inputs | outputs).items()}
    stored = {entry.key: entry.value.encode() for entry in model.metadata_props if entry.key not in _OF_ONNX}
    return w.flat.packed(inputs, outputs, stored), layouts, w


def _order_of(value: ir.Value, rank: int) -> tuple[int, ...]:
    """How an input lies: maps with their channels last, unless the model has them so itself and brings them to the front."""
    if rank != 4:
        return plain_order(rank)
    behind = [value]
    for _ in range(2):  # through its quantizer
        behind = [
            out for v in behind for node, _ in v.uses() if node.op_type.endswith("Linear") for out in node.outputs
        ] or behind
    users = [node for v in (value, *behind) for node, _ in v.uses() if not node.op_type.endswith("Linear")]
    moved = bool(users) and all(
        n.op_type == "Transpose" and tuple(n.attributes.get_ints("perm", [])) == _CHANNELS for n in users
    )
    return plain_order(4) if moved else channels_last(4)


def _step(w: Writer, node: ir.Node) -> None:
    """Write one node."""
    if node.op_type == "QuantizeLinear":
        _quantize(w, node)
    elif node.op_type == "DequantizeLinear":
        _dequantize(w, node)
    elif node.op_type == "Constant":
        pass  # an initializer of another kind; read where it is used
    elif node.domain or node.op_type not in OPERATORS:
        raise refused(node, "the operator is not among those that this conversion writes")
    else:
        OPERATORS[node.op_type](w, node)


def _dequantize(w: Writer, node: ir.Node) -> None:
    source, made = node.inputs[0], node.outputs[0].name or ""
    assert source is not None
    scale = constant_of(node.inputs[1])
    zero = constant_of(node.inputs[2] if len(node.inputs) > 2 else None)
    stored = constant_of(source)
    if scale is None:
        raise refused(node, "its scale is no constant")
    if stored is not None:
        if zero is not None and zero.any():
            raise refused(node, "stored codes have a zero point that is not 0")
        w.constants[made] = Constant(stored, scale.astype(np.float32), node.attributes.get_int("axis", 1))
        return
    held = w.codes.get(source.name or "")
    if held is None or held.scales is None or not (scale == held.scales.scale).all():
        raise refused(node, "its scale is not that of the codes it reads")
    w.codes[made] = held
    w.values.add(made)


def _quantize(w: Writer, node: ir.Node) -> None:
    """A quantizer that no kernel in front of it has taken along: of codes on another grid, or of floats."""
    value = node.inputs[0]
    assert value is not None
    codes = codes_of(node)
    taken = [node]
    for name in codes.names[1:]:
        taken.append(next(n for n in node.graph if any(v.name == name for v in n.outputs)))  # type: ignore[union-attr]
    out = Out(value, w.size(value, node), codes, None, tuple(taken))
    held = w.ints(value)
    if held is not None:
        w.requantize(out, held)
        return
    x = w.float(value, node)
    w.write_codes(out, x.order, lambda to, _relu: w.flat.operator("QUANTIZE", [x], to), fuses=False)


def _notes(wide: list[str], most: int = 4) -> tuple[str, ...]:
    """What ``packed`` left in int8."""
    more = f" and {len(wide) - most} more" if len(wide) > most else ""
    return (f"weights with codes beyond -8 to 7 stay in int8: {', '.join(wide[:most])}{more}",) if wide else ()


def _noise(model: onnx.ModelProto) -> dict[str, Array]:
    session = open_session(model, level="off")
    return noise(input_specs(session), fixed_batch(session) or _ROWS)
