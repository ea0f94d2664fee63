"""Opsets and IR versions that are newer than the installed ONNX Runtime: stamped down where the nodes mean the same there."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import onnx
import onnxruntime
from onnx import TensorProto, helper

from mrecg_onnx.converters.errors import ModelError
from mrecg_onnx.converters.protos import graphs

if TYPE_CHECKING:
    from collections.abc import Iterator, Set

__all__ = ["LAST_VERIFIED", "is_older", "require_known_versions", "restamped", "runtime_versions"]

LAST_VERIFIED = 28
"""The newest opset whose operators were compared with those before (ONNX's Changelog.md) when their converters were written."""

# What ONNX Runtime 1.22 knows, the oldest one that is supported.
_OLDEST_KNOWN = 23, 10


@cache
def runtime_versions() -> tuple[int, int]:
    """Return the newest opset and the newest IR version that the installed ONNX Runtime opens; it tells neither itself."""
    opset, ir_version = onnx.defs.onnx_opset_version(), onnx.IR_VERSION
    while opset > _OLDEST_KNOWN[0] and not _opens(opset, _OLDEST_KNOWN[1]):
        opset -= 1
    while ir_version > _OLDEST_KNOWN[1] and not _opens(_OLDEST_KNOWN[0], ir_version):
        ir_version -= 1
    return opset, int(ir_version)


def restamped(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` with versions that ONNX Runtime opens.

    Newer opsets mostly widen the types that an operator takes; a node that uses nothing new is the older operator.

    Returns:
        ``model`` itself where ONNX Runtime knows its versions or a node is really new, else a copy.
    """
    opset, ir_version = runtime_versions()
    ahead = any(entry.version > opset for entry in _standard_imports(model))
    if model.ir_version <= ir_version and (not ahead or _news(model, opset) is not None):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = min(model.ir_version, ir_version)
    if ahead and _news(model, opset) is None:
        for entry in _standard_imports(copy):
            entry.version = min(entry.version, opset)
    return copy


def require_known_versions(model: onnx.ModelProto) -> None:
    """Refuse a model that ONNX Runtime cannot open because of its opset, with the node that needs it.

    Raises:
        ModelError: An operator of ``model`` is newer than ONNX Runtime.
    """
    opset, _ = runtime_versions()
    news = _news(model, opset) if any(entry.version > opset for entry in _standard_imports(model)) else None
    if news is not None:
        raise ModelError(
            f"node '{news.name or news.op_type}' ({news.op_type}) is newer than opset {opset}, the newest that "
            f"ONNX Runtime {onnxruntime.__version__} opens; export with opset {opset} or older, or upgrade onnxruntime"
        )


def _news(model: onnx.ModelProto, opset: int) -> onnx.NodeProto | None:
    """Return the first node that is not the same in ``opset``, None if all are."""
    version = max(entry.version for entry in _standard_imports(model))
    nodes = (node for graph in graphs(model) for node in graph.node if node.domain in {"", "ai.onnx"})
    return next((node for node in nodes if not _is_same(node, version, opset)), None)


def _is_same(node: onnx.NodeProto, version: int, opset: int) -> bool:
    """Tell whether ``node`` of opset ``version`` is in the form that its operator has in the older ``opset``."""
    attributes = {attribute.name for attribute in node.attribute}
    return is_older(node.op_type, attributes, len(node.input), len(node.output), version, opset)


def is_older(op_type: str, attributes: Set[str], inputs: int, outputs: int, version: int, opset: int) -> bool:
    """Tell whether a node of the standard domain and opset ``version`` means the same in the older ``opset``.

    Args:
        op_type: its operator.
        attributes: names of those it has.
        inputs: how many it has.
        outputs: likewise.
        version: the opset it is of.
        opset: the older one.
    """
    if not onnx.defs.has(op_type, opset):
        return False
    new, old = (onnx.defs.get_schema(op_type, number) for number in (version, opset))
    if new.since_version == old.since_version:
        return True
    return (
        version <= LAST_VERIFIED
        and attributes <= set(old.attributes)
        and old.min_input <= inputs <= old.max_input
        and old.min_output <= outputs <= old.max_output
    )


def _standard_imports(model: onnx.ModelProto) -> Iterator[onnx.OperatorSetIdProto]:
    for owner in (model, *model.functions):
        yield from (entry for entry in owner.opset_import if entry.domain in {"", "ai.onnx"})


def _opens(opset: int, ir_version: int) -> bool:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "probe", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # nothing on stderr: a refusal is the answer
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # noqa: BLE001 - its exceptions share no base
        return False
    return True
