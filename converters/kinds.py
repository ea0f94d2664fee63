"""Kinds of files: what their names end in, and what they begin with. Nothing takes the place of a file of another kind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mrecg_onnx.converters.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ARRAY_SUFFIXES", "IMAGE_SUFFIXES", "KINDS", "is_file", "require_kind"]

#: Files that a folder of data is searched for; images are decoded by Pillow.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
ARRAY_SUFFIXES = (".npy", ".npz")
#: Files of models, of several tools, and of their tensors.
MODEL_SUFFIXES = (".onnx", ".ort", ".tflite", ".pt", ".pth", ".data", ".bin", ".safetensors")


def require_kind(path: str | os.PathLike[str], kind: str, option: str = "") -> None:
    """Refuse to write over what is of another kind, by what it begins with: a script, a table, an array. Nobody asks for that.

    Args:
        path: what will be written; where nothing is, or an empty file, nothing is lost.
        kind: what will be written, of :data:`KINDS`.
        option: what names it, for messages.

    Raises:
        SettingsError: a file of another kind is there, or the name is one of another kind.
    """
    called = f"{option} {os.fspath(path)}".lstrip()
    suffix = Path(path).suffix.lower()
    if suffix in KINDS[kind].others:
        hint = "; `mrecg-onnx convert FILE --to tflite` makes those" if suffix == ".tflite" else ""
        raise SettingsError(
            f"{called} is no name of {KINDS[kind].what}: call it {Path(path).stem}{KINDS[kind].suffix}{hint}"
        )
    if not is_file(path):
        return
    try:
        with Path(path).open("rb") as file:
            head = file.read(_HEAD)
    except OSError:  # who writes there says so
        return
    if head and not KINDS[kind].begins(head):
        raise SettingsError(f"{called} is there and is not {KINDS[kind].what}: choose another file")


def _is_text(head: bytes) -> bool:
    """Whether a file that begins so is one for people: an ONNX file has a number in its second byte."""
    return not any(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in head)


def _is_model(head: bytes) -> bool:
    # Arrays, archives (PyTorch's, too) and pictures say what they are.
    return not (
        _is_text(head) or head.startswith((b"\x93NUMPY", b"PK\x03\x04", b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF"))
    )


class Kind(NamedTuple):
    """What is written.

    Attributes:
        what: how messages call it.
        suffix: how its names end.
        begins: whether a file that begins so is one.
        others: endings of names that are no names of it.
    """

    what: str
    suffix: str
    begins: Callable[[bytes], bool]
    others: tuple[str, ...]


#: Bytes that are looked at.
_HEAD = 256
_TABLES = (".py", ".toml", ".csv", ".ipynb")
_NO_MODELS = (*ARRAY_SUFFIXES, *IMAGE_SUFFIXES, *_TABLES, ".html", ".json")
KINDS = {
    "page": Kind(
        "a page", ".html", lambda head: head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"),
        (*MODEL_SUFFIXES, *ARRAY_SUFFIXES, *IMAGE_SUFFIXES, *_TABLES, ".json"),
    ),
    "JSON": Kind(
        "JSON", ".json", lambda head: head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"[")),
        (*MODEL_SUFFIXES, *ARRAY_SUFFIXES, *IMAGE_SUFFIXES, *_TABLES, ".html"),
    ),
    "picture": Kind(
        "a picture", ".png", lambda head: head.startswith(b"\x89PNG"),
        (*MODEL_SUFFIXES, *ARRAY_SUFFIXES, *_TABLES, ".html", ".json"),
    ),
    "model": Kind("a model", ".onnx", _is_model, (*_NO_MODELS, ".tflite")),
    "tflite": Kind("a TFLite model", ".tflite", _is_model, (*_NO_MODELS, ".onnx")),
}  # fmt: skip
"""What commands and calls write, by kind."""


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file is there."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # who writes there says so
        return False
