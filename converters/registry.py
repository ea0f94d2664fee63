"""onnx2torch's table of converters, its import made safe, and the converters added to it here."""

from __future__ import annotations

import importlib
import logging
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

import onnx

from mrecg_onnx.converters.errors import ConversionError, first_line
from mrecg_onnx.converters.versions import LAST_VERIFIED

if TYPE_CHECKING:
    from collections.abc import Callable


__all__ = [
    "Converter",
    "OnnxGraph",
    "OnnxMapping",
    "OnnxNode",
    "OperationConverterResult",
    "converter",
    "find_converter",
]

logger = logging.getLogger(__name__)

_NEEDS_TORCHVISION = frozenset({"NonMaxSuppression", "RoiAlign"})


def _import_torchvision() -> str | None:
    """Import torchvision; return None, or why it cannot be used."""
    try:
        importlib.import_module("torchvision.ops")
    # A build that does not match torch fails with RuntimeError or OSError, a missing one with ImportError.
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        return first_line(error)
    return None


def _stand_in() -> dict[str, ModuleType]:
    """Return modules that answer for ``torchvision`` and ``torchvision.ops`` and can do nothing."""

    def unavailable(*_args: object, **_kwargs: object) -> NoReturn:
        raise ConversionError("torchvision is missing or does not match torch; install one that does")

    package, ops = ModuleType("torchvision"), ModuleType("torchvision.ops")
    package.ops = ops  # type: ignore[attr-defined]
    for name in ("box_convert", "nms", "roi_align"):
        setattr(ops, name, unavailable)
    return {"torchvision": package, "torchvision.ops": ops}


def _import_onnx2torch() -> str | None:
    """Import onnx2torch, which imports torchvision for two detection operators although it can do without otherwise.

    Where torchvision cannot be imported, an empty stand-in takes its place while onnx2torch is imported, and only then.

    Returns:
        Why torchvision cannot be used, None if it can.
    """
    failure = _import_torchvision()
    stand_in = {} if failure is None else _stand_in()
    before = {name: sys.modules.get(name) for name in stand_in}
    sys.modules.update(stand_in)
    try:
        importlib.import_module("onnx2torch.node_converters")
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module
    return failure


_TORCHVISION_FAILURE = _import_onnx2torch()

# Only now can these be imported.
from onnx2torch.node_converters.registry import (  # noqa: E402
    _CONVERTER_REGISTRY,
    OperationDescription,
    add_converter,
    get_converter,
)
from onnx2torch.onnx_graph import OnnxGraph  # noqa: E402
from onnx2torch.onnx_node import OnnxNode  # noqa: E402
from onnx2torch.utils.common import OnnxMapping, OperationConverterResult  # noqa: E402

if TYPE_CHECKING:
    Converter = Callable[[OnnxNode, OnnxGraph], OperationConverterResult]
else:
    Converter = Any

# Each standard operator's versions: the opsets that introduced or changed it.
_VERSIONS: dict[str, list[int]] = {}
for _schema in onnx.defs.get_all_schemas_with_history():
    if not _schema.domain:
        _VERSIONS.setdefault(_schema.name, []).append(_schema.since_version)

# Converters preferred over onnx2torch's own, which stay in its registry untouched.
_PREFERRED: dict[Any, Converter] = {}


def converter(op_type: str, first: int = 1, last: int = LAST_VERIFIED) -> Callable[[Converter], Converter]:
    """Register a converter for an operator of the standard domain, for opset ``first`` to ``last``.

    Versions onnx2torch does not know go into its registry. For those it does, the converter is preferred here, and
    onnx2torch's registry is left as it is.
    """

    def register(function: Converter) -> Converter:
        for version in _VERSIONS.get(op_type, ()):
            if not first <= version <= last:
                continue
            description = OperationDescription(domain="", operation_type=op_type, version=version)
            if description not in _CONVERTER_REGISTRY:
                add_converter(operation_type=op_type, version=version)(function)
            _PREFERRED[description] = function
        return function

    return register


def find_converter(op_type: str, domain: str, version: int) -> Converter:
    """Return the converter for an operator at an opset version.

    Raises:
        ConversionError: There is none; the message names the operator and its version.
    """
    since = version
    if onnx.defs.has(op_type, version, domain):
        since = onnx.defs.get_schema(op_type, version, domain).since_version
    label = f"{domain or 'ai.onnx'}::{op_type} version {since}"
    if not domain and op_type in _NEEDS_TORCHVISION and _TORCHVISION_FAILURE is not None:
        raise ConversionError(f"{label} needs a working torchvision ({_TORCHVISION_FAILURE})")
    found = _PREFERRED.get(OperationDescription(domain=domain, operation_type=op_type, version=since))
    if found is not None:
        return found
    try:
        return get_converter(op_type, since, domain)  # type: ignore[no-any-return]
    except NotImplementedError as error:
        raise ConversionError(f"{label} cannot be converted to torch") from error
