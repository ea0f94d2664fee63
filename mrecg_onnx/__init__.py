"""Learned low-bit post-training quantization from ONNX to ONNX.

    import mrecg_onnx
    result = mrecg_onnx.quantize("model.onnx", "images/", mrecg_onnx.Settings(wbits=4, abits=4), output="model_w4a4.onnx")
    report = mrecg_onnx.validate("model.onnx", "model_w4a4.onnx", "labelled_images/")
    found = mrecg_onnx.compare("model.onnx", "images/", "labelled_images/", "out/", methods=["nearest", "mrecg"], bits=["W4A4"])

Names are resolved on first use, so that importing the package does not import torch.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrecg_onnx.comparing.comparison import Comparison, compare
    from mrecg_onnx.conversion import Conversion, convert
    from mrecg_onnx.converters.errors import MrecgError
    from mrecg_onnx.data.images import Preprocess
    from mrecg_onnx.inspecting.inspection import Inspection, inspect
    from mrecg_onnx.inspecting.ranking import Ranking, rank
    from mrecg_onnx.quantization import QuantizationResult, quantize
    from mrecg_onnx.settings import BitRule, Settings
    from mrecg_onnx.validating.benchmarking import Benchmark, benchmark
    from mrecg_onnx.validating.validation import ValidationResult, validate

__all__ = [
    "Benchmark", "BitRule", "Comparison", "Conversion", "Inspection", "MrecgError", "Preprocess", "QuantizationResult", "Ranking",
    "Settings", "ValidationResult", "benchmark", "compare", "convert", "inspect", "quantize", "rank", "validate",
]  # fmt: skip

try:
    __version__ = metadata.version("mrecg-onnx")
except metadata.PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+checkout"

_HOME = {
    "Benchmark": "validating.benchmarking",
    "BitRule": "settings",
    "Comparison": "comparing.comparison",
    "Conversion": "conversion",
    "Inspection": "inspecting.inspection",
    "MrecgError": "converters.errors",
    "Preprocess": "data.images",
    "QuantizationResult": "quantization",
    "Ranking": "inspecting.ranking",
    "Settings": "settings",
    "ValidationResult": "validating.validation",
    "benchmark": "validating.benchmarking",
    "compare": "comparing.comparison",
    "convert": "conversion",
    "inspect": "inspecting.inspection",
    "quantize": "quantization",
    "rank": "inspecting.ranking",
    "validate": "validating.validation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
