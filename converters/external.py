"""Tensors that a model keeps in files of their own: beside it, and nowhere else."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto, external_data_helper

from mrecg_onnx.converters.errors import ModelError
from mrecg_onnx.converters.files import irregular
from mrecg_onnx.converters.protos import tensors
from mrecg_onnx.converters.text import bounded, printable, quoted
from mrecg_onnx.converters.wellformed import bytes_of

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["external_files", "external_tensors", "load_external", "require_external"]

# Longer numbers are none: no file has so many bytes.
_MOST_DIGITS = 18


@dataclass(frozen=True)
class _Place:
    """Where a tensor's data lie; bytes. Without a length they go on to the end of the file."""

    location: str
    offset: int
    length: int | None


def require_external(outside: Iterable[TensorProto], folder: Path, where: str) -> None:
    """Check that the data of tensors that are kept outside the file are in its folder and as long as they should be.

    Args:
        outside: tensors with external data.
        folder: the folder of the model.
        where: the model, for messages.

    Raises:
        ModelError: the entry of one is damaged or leads out of the folder, or its file is missing, no file or too short.
    """
    for tensor in outside:
        what = f"{where}: external data of tensor {quoted(tensor.name)}"
        place = _place(tensor, what)
        path = _path(place.location, folder, what)
        if not path.is_file():
            kind = "a folder" if path.is_dir() else irregular(path)
            shown = bounded(str(path), 100)
            raise ModelError(
                f"{what} is missing: no file {shown}; put it beside the model"
                if kind is None
                else f"{what}: {shown} is {kind}, no file; export the model again"
            )
        has, needed = path.stat().st_size, bytes_of(tensor)
        length = max(0, has - place.offset) if place.length is None else place.length
        if has < place.offset + max(length, needed):
            raise ModelError(
                f"{what} is truncated: {bounded(str(path), 100)} has {has} bytes, {place.offset + max(length, needed)} are needed"
            )
        if length != needed:
            raise ModelError(f"{what}: its shape takes {needed} bytes, the file says {length}; export the model again")


def external_tensors(model: ModelProto) -> list[TensorProto]:
    """Tensors of ``model`` that are kept outside the file."""
    return [tensor for _, tensor in tensors(model) if external_data_helper.uses_external_data(tensor)]


def external_files(path: Path) -> list[Path]:
    """Files in which the model at ``path`` says that its tensors lie; none where it is no model that can be read."""
    try:
        if not path.is_file():
            return []
        outside = external_tensors(ModelProto.FromString(path.read_bytes()))
    except (OSError, DecodeError):  # who reads it for its own sake says so
        return []
    found = {entry.value for tensor in outside for entry in tensor.external_data if entry.key == "location"}
    return [path.parent / location for location in sorted(found) if "\0" not in location]


def load_external(model: ModelProto, folder: Path, where: str) -> None:
    """Read tensors that lie beside the file, in place.

    Raises:
        ModelError: an entry is damaged, or a file is missing, too short or cannot be read.
    """
    outside = external_tensors(model)
    require_external(outside, folder, where)
    for tensor in outside:
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        except OSError as error:
            raise ModelError(
                f"{where}: external data of tensor {quoted(tensor.name)} cannot be read: {error.strerror or error}"
            ) from error
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


def _place(tensor: TensorProto, what: str) -> _Place:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    numbers = {}
    for key in ("offset", "length"):
        text = entries.get(key)
        if text is not None and not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS):
            raise ModelError(f"{what}: its {key} is {quoted(text, 40)}, not a number of bytes; export the model again")
        numbers[key] = None if text is None else int(text)
    return _Place(entries.get("location", ""), numbers["offset"] or 0, numbers["length"])


def _path(location: str, folder: Path, what: str) -> Path:
    """The file at ``location``, which is in ``folder`` whatever that says."""
    shown = quoted(location, 60)
    if not location or "\0" in location:
        raise ModelError(f"{what}: {shown} is not the name of a file; export the model again")
    # Both ways of writing paths, wherever the model was made.
    inside = os.path.normpath(location.replace("\\", "/"))
    if Path(inside).is_absolute() or inside.split("/")[0] == ".." or ":" in inside.split("/")[0]:
        raise ModelError(
            f"{what}: {shown} is outside the folder of the model; export the model with its data beside it"
        )
    path = folder / location
    try:
        if path.is_symlink() or not path.resolve().is_relative_to(folder.resolve()):
            raise ModelError(f"{what}: {shown} is a link; put the file itself beside the model")
    except (OSError, RuntimeError) as error:  # a loop of links, a name that is too long
        raise ModelError(f"{what}: {shown} cannot be found: {printable(str(error))}") from error
    return path
