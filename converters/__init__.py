"""The ground floor: ONNX in, ONNX out, and the bridge between ONNX and torch; it knows no quantization method.

Names are resolved on first use, so that ``mrecg_onnx.converters.errors`` can be imported without torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrecg_onnx.converters.bridge import fallback_nodes, to_torch
    from mrecg_onnx.converters.calls import takes
    from mrecg_onnx.converters.files import check_writable, claimed
    from mrecg_onnx.converters.load import load_model
    from mrecg_onnx.converters.normalize import normalize
    from mrecg_onnx.converters.parity import check_parity
    from mrecg_onnx.converters.save import save_model

__all__ = [
    "check_parity",
    "check_writable",
    "claimed",
    "fallback_nodes",
    "load_model",
    "normalize",
    "save_model",
    "takes",
    "to_torch",
]

_HOME = {
    "check_parity": "parity",
    "check_writable": "files",
    "claimed": "files",
    "fallback_nodes": "bridge",
    "load_model": "load",
    "normalize": "normalize",
    "save_model": "save",
    "takes": "calls",
    "to_torch": "bridge",
}


def __getattr__(name: str) -> Any:
    """Import the module that holds ``name`` when it is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """A package whose public functions win over submodules of the same name (``normalize``)."""

    def __setattr__(self, name: str, value: object) -> None:
        """Bind ``name``; the import system does this with each submodule it has loaded."""
        if isinstance(value, ModuleType) and _HOME.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
