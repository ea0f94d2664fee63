"""Where LiteRT is not installed, and what the command refuses before it looks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers.command_line import fails
from helpers.contained import quantized


def test_the_schema_is_asked_for(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.schema_py_generated", None)
    Path("q.onnx").write_bytes(quantized("residual").SerializeToString())
    fails("convert", "q.onnx", "--to", "tflite", code=2, says=("pip install 'mrecg-onnx[litert]'",))


def test_what_contradicts_itself_is_refused(here: Path) -> None:
    Path("q.onnx").write_bytes(quantized("residual").SerializeToString())
    fails("convert", "q.onnx", "--to", "tflite", "--target", "openvino", code=2, says=("leave out --target",))
    fails("convert", "q.onnx", "-o", "q.tflite", code=2, says=("add --to tflite",))
