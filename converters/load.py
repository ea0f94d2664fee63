"""Read an ONNX file and say in one line what is wrong with it, if anything is."""

from __future__ import annotations

import graphlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import numpy_helper

from mrecg_onnx.converters.errors import ModelError
from mrecg_onnx.converters.external import external_tensors, load_external, require_external
from mrecg_onnx.converters.files import require_model
from mrecg_onnx.converters.made import holds_model
from mrecg_onnx.converters.names import unique_nodes
from mrecg_onnx.converters.passes.functions import align_functions, are_aligned, require_bounded
from mrecg_onnx.converters.protos import editable, graphs, tensors
from mrecg_onnx.converters.save import openable
from mrecg_onnx.converters.text import quoted
from mrecg_onnx.converters.versions import restamped
from mrecg_onnx.converters.wellformed import DEEPEST, label, nesting, require_wellformed

if TYPE_CHECKING:
    pass

__all__ = ["MIN_OPSET", "RUNTIME_DOMAINS", "load_model", "model_path", "read_model", "standard_opset"]

logger = logging.getLogger(__name__)

MIN_OPSET = 7
"""The oldest opset of the standard domain that is read."""

_STANDARD_DOMAINS = ("", "ai.onnx")

RUNTIME_DOMAINS = frozenset({"", "ai.onnx.ml", "ai.onnx.preview", "ai.onnx.preview.training", "com.microsoft"})
"""The domains whose operators ONNX Runtime's CPU provider may know."""

# So many renamed nodes are named.
_NAMED_AT_MOST = 5

# A serialized ModelProto starts with ir_version: field 1, varint, hence this tag byte.
_FIRST_BYTE = 0x08

# Bytes that other files have at a place: what such a file is, and what to do.
_EXPORT = "export it by torch.onnx.export"
_OTHERS = (
    (b"PK\x03\x04", 0, f"a zip, as torch.save and torch.export write it: load that in torch and {_EXPORT}"),
    (b"\x80", 0, f"a pickle, as torch.save wrote it: load that in torch and {_EXPORT}"),
    (b"TFL3", 4, "a TFLite model: export the network that it was made from"),
    (b"ORTM", 4, "ONNX Runtime's own format: give the ONNX model that it was made from"),
    (b"\x89HDF\r\n", 0, "HDF5, as Keras writes it: convert that model to ONNX first (tf2onnx)"),
    (b"\x1f\x8b", 0, "a gzip: unpack it first"),
    (b"\x89PNG", 0, "an image: the model comes first, images follow behind --calib or --data"),
    (b"\xff\xd8\xff", 0, "an image: the model comes first, images follow behind --calib or --data"),
    (b"\x93NUMPY", 0, "an array: the model comes first, arrays follow behind --calib or --data"),
)

_FLOAT_TYPES = frozenset(
    {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.DOUBLE,
        onnx.TensorProto.BFLOAT16,
    }
)

# Ops in which an infinite constant is ordinary: an open bound, a padding value, an attention mask.
_INFINITY_IS_ORDINARY = frozenset(
    {"Add", "Attention", "Clip", "Concat", "Expand", "Gather", "Max", "Min", "Pad", "Slice", "Where"}
)


def load_model(source: onnx.ModelProto | str | Path) -> onnx.ModelProto:
    """Read, complete and check an ONNX model.

    Args:
        source: A path, whose external data is read too, or a model in memory, which is checked and returned as it is.

    Returns:
        The model with all of its tensors in memory. Nothing is changed in ``source``; a copy with opset and IR version
        lowered comes back where ONNX Runtime does not know them and no node needs them, and likewise one where nodes share
        a name (the later ones are renamed, with a warning) or functions import other operator sets than the model.

    Raises:
        ModelError: The file is missing, is not ONNX, is truncated, lacks external data, fails ``onnx.checker``, has an
            opset below 7 or unknown, or holds NaN or Inf in its weights.
    """
    if isinstance(source, onnx.ModelProto):
        model, where = source, "the model"
        _require(model, where)
        for tensor in external_tensors(model):
            raise ModelError(
                f"{where}: tensor {quoted(tensor.name)} keeps its data in a file of its own; "
                "give the path of the model instead, or load it with its external data"
            )
        _check_opset(model, where)
        model = _plain(model, where)
        _check(model, where, model)
        return restamped(model)
    path = model_path(source)
    where = str(path)
    model = read_model(path)
    external = external_tensors(model)
    require_external(external, path.parent, where)
    if not are_aligned(model):
        load_external(model, path.parent, where)  # what is checked is no longer the file
        external = []
    _check_opset(model, where)
    model = _plain(model, where)
    _check(model, where, path if external else model)
    model = restamped(model)
    load_external(model, path.parent, where)
    _check_finite(model, where)
    return model


def model_path(source: object) -> Path:
    """The path that ``source`` is.

    Raises:
        ModelError: It is none, such as a network of torch's.
    """
    if isinstance(source, str | os.PathLike):
        return Path(source)
    what = f"a model is the path of an ONNX file or an onnx.ModelProto, not {type(source).__name__}"
    if holds_model(source):
        raise ModelError(
            f"the model in {type(source).__name__} is quantized already: give the float model it was made from"
        )
    if hasattr(source, "model_proto"):  # torch.onnx.ONNXProgram
        raise ModelError(f"{what}: give its .model_proto")
    if callable(getattr(source, "forward", None)):  # torch.nn.Module
        raise ModelError(f"{what}: export it first: torch.onnx.export(model, example, 'model.onnx')")
    raise ModelError(what)


def read_model(source: bytes | str | Path) -> onnx.ModelProto:
    """Read a file, or its bytes, of any tool: well-formed, whatever is in it; what lies beside it is not looked at.

    Raises:
        ModelError: It is missing, is not ONNX, or is damaged.
    """
    where = "the model" if isinstance(source, bytes) else str(model_path(source))
    model = _parse(source if isinstance(source, bytes) else _read(Path(source)), where)
    _require(model, where)
    return model


def _require(model: onnx.ModelProto, where: str) -> None:
    try:
        require_wellformed(model)
        require_bounded(model)
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error


def _plain(model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """``model``, or a copy, with node names given once and functions that import what the model does."""
    model, renamed = unique_nodes(model)
    if renamed:
        few = ", ".join(f"'{old}' -> '{new}'" for new, old in list(renamed.items())[:_NAMED_AT_MOST])
        more = f" and {len(renamed) - _NAMED_AT_MOST} more" if len(renamed) > _NAMED_AT_MOST else ""
        logger.warning("%s: nodes share a name, the later ones are renamed: %s%s", where, few, more)
    if are_aligned(model):
        return model
    try:
        aligned: onnx.ModelProto = ir.to_proto(align_functions(editable(model)))
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error
    return aligned


def standard_opset(model: onnx.ModelProto | onnx.FunctionProto) -> int | None:
    """Return the version of the standard domain that ``model``, or a function, imports, None when it imports none."""
    versions = [entry.version for entry in model.opset_import if entry.domain in _STANDARD_DOMAINS]
    return max(versions) if versions else None


def _read(path: Path) -> bytes:
    require_model(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error


def _parse(content: bytes, where: str) -> onnx.ModelProto:
    """Decode ``content``; a file that only happens to decode (text, an empty file) is refused as well."""
    if content.startswith(b"version https://git-lfs"):
        raise ModelError(f"{where}: is a Git LFS pointer, not the model itself; run 'git lfs pull' first")
    looks_like_onnx = bool(content) and content[0] == _FIRST_BYTE
    try:
        model = onnx.ModelProto.FromString(content)
    except DecodeError as error:
        if nesting(content) > DEEPEST:
            raise ModelError(
                f"{where}: graphs lie in branches of each other, {nesting(content)} deep; {DEEPEST} is the most that can be "
                "read: export it with fewer"
            ) from error
        if looks_like_onnx:
            raise ModelError(f"{where}: the ONNX file is truncated or damaged; copy or export it again") from error
        raise ModelError(f"{where}: {_other(content)}") from error
    if not model.ir_version or not model.HasField("graph"):
        if looks_like_onnx and model.ir_version:
            raise ModelError(f"{where}: the ONNX file is truncated, it has no graph; copy or export it again")
        raise ModelError(f"{where}: {_other(content)}")
    if not model.opset_import:
        raise ModelError(f"{where}: names no opset version; the file is truncated or was not written by an exporter")
    return model


def _other(content: bytes) -> str:
    """What is said of bytes that are no ONNX model: what they are, where that is told by their first ones, and what to do."""
    if not content:
        return "is not an ONNX file: it is empty; copy or export it again"
    for begin, at, named in _OTHERS:
        if content[at : at + len(begin)] == begin:
            return f"is not an ONNX file but {named}"
    return "is not an ONNX file: give what torch.onnx.export or another exporter wrote"


def _check_opset(model: onnx.ModelProto, where: str) -> None:
    opset = standard_opset(model)
    newest = onnx.defs.onnx_opset_version()
    latest = max((standard_opset(owner) or 0 for owner in (model, *model.functions)), default=0)
    if opset is None and not any(entry.domain in RUNTIME_DOMAINS for entry in model.opset_import):
        raise ModelError(f"{where}: imports no opset of the standard ONNX domain; only custom operators are in it")
    if opset is not None and opset < MIN_OPSET:
        raise ModelError(f"{where}: opset {opset} is too old; export it again with opset {MIN_OPSET} or newer")
    if latest > newest:
        raise ModelError(
            f"{where}: opset {latest} is unknown to onnx {onnx.__version__}, which knows up to {newest}; upgrade onnx"
        )


def _check(model: onnx.ModelProto, where: str, subject: onnx.ModelProto | Path) -> None:
    """Run ``onnx.checker`` on ``subject`` (the path when tensors are still outside)."""
    try:
        if isinstance(subject, Path):
            onnx.checker.check_model(str(subject))
        else:
            with openable(subject) as source:
                onnx.checker.check_model(source)
    except (onnx.checker.ValidationError, ValueError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = (_disorder(model.graph) if "topologically sorted" in lines[0] else None) or lines[0]
        raise ModelError(f"{where}: is not valid ONNX: {reason}") from error
    if isinstance(subject, onnx.ModelProto):
        _check_finite(model, where)


def _disorder(graph: onnx.GraphProto) -> str | None:
    """Return what is wrong with the order of the nodes of ``graph``, None if nothing is: the checker does not name them."""
    given = {value.name for value in (*graph.input, *graph.initializer)}
    given |= {tensor.values.name for tensor in graph.sparse_initializer}
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    sources: dict[int, set[int]] = {}
    early = ""
    for index, node in enumerate(graph.node):
        sources[index] = set()
        for name in node.input:
            if not name or name in given:
                continue
            if name not in makers:
                return (
                    f"{label(node)} reads {quoted(name)}, which no node makes and nobody feeds; export the model again"
                )
            sources[index].add(makers[name])
            if makers[name] >= index and not early:
                maker = graph.node[makers[name]]
                early = f"{label(node)} stands before {label(maker)}, whose {quoted(name)} it reads; sort the nodes"
    try:
        graphlib.TopologicalSorter(sources).prepare()
    except graphlib.CycleError as error:
        cycle = ", ".join(label(graph.node[index]) for index in error.args[1])
        return f"its nodes form a cycle: {cycle}; export the model again"
    return early or None


def _check_finite(model: onnx.ModelProto, where: str) -> None:
    readers: dict[str, set[str]] = {}
    for graph in graphs(model):
        for node in graph.node:
            for name in node.input:
                readers.setdefault(name, set()).add(node.op_type)
    for name, tensor in tensors(model):
        if tensor.data_type not in _FLOAT_TYPES:
            continue
        # Not a scalar of NumPy: each call of its methods leaves a name in Python's cache of attributes.
        values = numpy_helper.to_array(tensor).reshape(-1)
        if tensor.data_type == onnx.TensorProto.BFLOAT16:
            values = values.astype(np.float32)
        if np.isfinite(values).all():
            continue
        if np.isnan(values).any():
            raise ModelError(f"{where}: tensor {quoted(name)} holds NaN; the model cannot be used")
        # A single number is no weight but a bound or a mask's value, which may also pass a Cast first.
        if values.size > 1 and not readers.get(name, set()) <= _INFINITY_IS_ORDINARY:
            raise ModelError(f"{where}: tensor {quoted(name)} holds Inf; the model cannot be used")
