"""Entries of ``metadata_props`` that say what form a quantized file has."""

from __future__ import annotations

__all__ = ["TARGET_KEY", "VERSION_KEY"]

#: The version of this package that made the file: every file of :func:`mrecg_onnx.quantize` has it.
VERSION_KEY = "mrecg_onnx.version"
#: The target's name. Files without it are for ONNX Runtime.
TARGET_KEY = "mrecg_onnx.target"
