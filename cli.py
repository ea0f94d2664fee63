#!/usr/bin/env python3
"""The door from a checkout: ``python cli.py ...`` is ``mrecg-onnx ...`` without installing the package."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parent)
sys.path.insert(0, ROOT)

import mrecg_onnx

# Installed, the folder converters/ is the subpackage mrecg_onnx.converters; in a checkout it lies beside mrecg_onnx/.
mrecg_onnx.__path__.append(ROOT)

from mrecg_onnx.commands import main

if __name__ == "__main__":
    main(prog_name="python cli.py")
