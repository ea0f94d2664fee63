"""Write an ONNX file so that there is a whole one or none."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from mrecg_onnx.converters.errors import ExportError
from mrecg_onnx.converters.files import check_writable, writing_whole

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["EXTERNAL_DATA_BYTES", "digest", "openable", "save_model"]

logger = logging.getLogger(__name__)

EXTERNAL_DATA_BYTES = int(1.9e9)
"""Models whose tensors are larger keep them in a second file: protobuf ends at 2 GiB."""

# Smaller tensors stay in the model file even then (onnx's own default).
_INLINE_BYTES = 1024


@contextmanager
def openable(model: onnx.ModelProto) -> Iterator[bytes | str]:
    """Yield ``model`` as what a runtime or a checker takes: its bytes, or the path of a file where it is too large for them.

    The file is there as long as the context is.
    """
    if model.ByteSize() <= EXTERNAL_DATA_BYTES:
        yield model.SerializeToString()
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_model(model, path)
        yield str(path)


def digest(model: onnx.ModelProto) -> str:
    """Return a hexadecimal SHA-256 of what ``model`` computes and how it calls it, however large it is."""
    graph = model.graph
    found = hashlib.sha256()
    for parts in (model.opset_import, model.functions, graph.input, graph.output, graph.node, graph.initializer):
        for part in parts:
            found.update(hashlib.sha256(part.SerializeToString(deterministic=True)).digest())
        found.update(b"/")
    return found.hexdigest()


def save_model(model: onnx.ModelProto | ir.Model, path: str | Path) -> None:
    """Write ``model`` to ``path``: first to a temporary file beside it, which then takes its place.

    Tensors of more than :data:`EXTERNAL_DATA_BYTES` in all go to ``<name>.data`` beside it. ``model`` is not changed.

    Raises:
        ExportError: The file cannot be written; then an existing one is still there as it was.
    """
    path = Path(path)
    check_writable(path)
    # from_proto shares the tensors' memory and gives a graph of our own; an ir.Model is put back by ir.save itself.
    graph = ir.from_proto(model) if isinstance(model, onnx.ModelProto) else model
    size = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value is not None)
    try:
        with writing_whole(path) as temporary:
            if size > EXTERNAL_DATA_BYTES:
                ir.save(graph, temporary, external_data=f"{path.name}.data", size_threshold_bytes=_INLINE_BYTES)
            else:
                proto = model if isinstance(model, onnx.ModelProto) else ir.to_proto(model)
                temporary.write_bytes(proto.SerializeToString())
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error.strerror or error}") from error
    logger.info("wrote %s", path)
