"""Write an ONNX file so that there is a whole one or none."""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import re
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from mrecg_onnx.converters.errors import ExportError
from mrecg_onnx.converters.files import check_writable, followed, temporary_folder, writing_whole, written_now
from mrecg_onnx.converters.protos import graphs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["EXTERNAL_DATA_BYTES", "digest", "openable", "save_model"]

logger = logging.getLogger(__name__)

EXTERNAL_DATA_BYTES = int(1.9e9)
"""Models whose tensors are larger keep them in a second file: protobuf ends at 2 GB."""

# Smaller tensors stay in the model file even then (onnx's own default).
_INLINE_BYTES = 1024
# Digits of its content in the name of a second file, and bytes that the rest of the name may have.
_DIGITS, _NAME = 12, 220


@contextmanager
def openable(model: onnx.ModelProto) -> Iterator[bytes | str]:
    """Yield ``model`` as what a runtime or a checker takes: its bytes, or the path of a file where it is too large for them.

    The file is there as long as the context is.
    """
    if model.ByteSize() <= EXTERNAL_DATA_BYTES:
        yield model.SerializeToString()
        return
    with temporary_folder() as folder:
        path = folder / "model.onnx"
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

    Tensors of more than :data:`EXTERNAL_DATA_BYTES` in all go to a second file beside it, named by its content: it is there
    before a model reads it, and an older model keeps its own until it is replaced. Then the older one's is removed, where no
    other model beside it reads that. ``model`` is not changed.

    Raises:
        ExportError: The file cannot be written; then an existing one is still there as it was.
    """
    check_writable(path)
    given, path = Path(path), followed(path)
    # from_proto shares the tensors' memory and gives a graph of our own; an ir.Model is put back by ir.save itself.
    graph = ir.from_proto(model) if isinstance(model, onnx.ModelProto) else model
    size = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value is not None)
    before = [file for file in _data_files(path) if _mentions(path, file.name)]
    try:
        with writing_whole(path) as temporary:
            if size > EXTERNAL_DATA_BYTES:
                _write_two(graph, temporary)
            else:
                proto = model if isinstance(model, onnx.ModelProto) else ir.to_proto(model)
                temporary.write_bytes(proto.SerializeToString())
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error.strerror or error}") from error
    _remove_unread(path, before)
    if size > EXTERNAL_DATA_BYTES and path != given:
        logger.warning("%s is a link: open %s, beside which its tensors lie", given, path)
    logger.info("wrote %s", path)


# --- the second file --------------------------------------------------------------------------------------------------


def _write_two(graph: ir.Model, path: Path) -> None:
    """Write ``graph`` to ``path`` and its tensors beside it, in a file named by what is in it."""
    written = path.parent / "data"
    ir.save(graph, path, external_data=written.name, size_threshold_bytes=_INLINE_BYTES)
    named = f"{_prefix(path)}{_content_digest(written)}.data"
    written.rename(path.parent / named)
    proto = onnx.load(path, load_external_data=False)
    for part in graphs(proto):
        for tensor in part.initializer if isinstance(part, onnx.GraphProto) else ():
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = named
    path.write_bytes(proto.SerializeToString())


def _prefix(path: Path) -> str:
    """Beginning of the names of files with the tensors of the model at ``path``."""
    return os.fsencode(path.name)[:_NAME].decode(errors="ignore") + "-"


def _content_digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()[:_DIGITS]


def _data_files(path: Path) -> list[Path]:
    """Files beside ``path`` that have the name of one with its tensors."""
    pattern = re.compile(re.escape(_prefix(path)) + rf"[0-9a-f]{{{_DIGITS}}}\.data")
    with suppress(OSError):
        return sorted(
            f for f in path.parent.iterdir() if pattern.fullmatch(f.name) and not f.is_symlink() and f.is_file()
        )
    return []


def _remove_unread(path: Path, before: Sequence[Path]) -> None:
    """Remove tensors that the model which was at ``path`` read (``before``), or that were written for one that never came.

    Whatever else has such a name stays: what is in it does not give its digest. The order matters: of a model that another
    process writes now, the tensors may be there, and it is not; it says that it writes until the model is.
    """
    files = _data_files(path)
    if not files or written_now(path):
        return
    others = (file for file in path.parent.iterdir() if ".onnx" in file.name.lower() and file not in files)
    models = [path, *others]
    for file in files:
        if any(_mentions(model, file.name) for model in models):
            continue
        with suppress(OSError):
            if file in before or _content_digest(file) == file.stem[-_DIGITS:]:
                file.unlink()


def _mentions(model: Path, name: str) -> bool:
    """Whether the file at ``model`` may be a model that reads the file ``name``; what cannot be read may be one."""
    try:
        if not model.is_file() or model.stat().st_size == 0:
            return False
        with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(name.encode()) >= 0
    except OSError:
        return True
