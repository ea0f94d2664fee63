"""What calls return that made a model is taken where a model is."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, TypeVar, overload, runtime_checkable

import onnx

__all__ = ["Made", "holds_model", "model_of"]

T = TypeVar("T")


@runtime_checkable
class Made(Protocol):
    """What ``quantize`` and ``convert`` return."""

    @property
    def model(self) -> onnx.ModelProto:
        """The model that was made."""

    @property
    def output(self) -> Path | None:
        """The file that it was written to, None without one."""


def holds_model(source: object) -> bool:
    """Whether ``source`` is what a call returned that made a model."""
    return isinstance(getattr(source, "model", None), onnx.ModelProto) and hasattr(source, "output")


@overload
def model_of(source: Made) -> onnx.ModelProto | Path: ...
@overload
def model_of(source: T) -> T: ...
def model_of(source: object) -> object:
    """The model that a call returned: its file, or the model where that was not written or is gone; all else as it is."""
    if not holds_model(source):
        return source
    assert isinstance(source, Made)
    return source.output if source.output is not None and source.output.is_file() else source.model
