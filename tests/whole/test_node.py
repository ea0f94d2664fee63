"""onnxruntime-node and onnxruntime-web in Node.js compute what ONNX Runtime does in Python.

Needs Node.js and the packages: `npm install --no-save --prefix samples/web onnxruntime-web@1.30.0
onnxruntime-node@1.30.0`, or the path of another node_modules in MRECG_NODE_MODULES. Skipped where one is missing.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers.node import node, node_modules

import mrecg_onnx
from mrecg_onnx.data import Preprocess
from mrecg_onnx.data.images import ImageDataset
from mrecg_onnx.running import input_specs, open_session

SAMPLES = Path(__file__).parents[2] / "samples"
PACKED = SAMPLES / "web" / "digits_w4a4_packed.onnx"


@pytest.mark.slow
@pytest.mark.parametrize("package", ["onnxruntime-node", "onnxruntime-web"])
@pytest.mark.parametrize("container", ["int8", "packed"])
def test_node_computes_what_python_does(package: str, container: str, tmp_path: Path) -> None:
    program, modules = node(), node_modules(package)
    model = tmp_path / "model.onnx"
    mrecg_onnx.convert(PACKED, container, output=model)
    (spec,) = input_specs(open_session(model))
    paths = sorted((SAMPLES / "val").glob("*/*.png"))[::4]
    x = ImageDataset(spec, paths, None, Preprocess()).load(len(paths))[spec.name]
    x.tofile(tmp_path / "x.bin")
    script = Path(__file__).parent / "web" / "node.mjs"
    command = [program, script, package, modules, model, tmp_path / "x.bin", tmp_path / "y.bin", *map(str, x.shape)]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    (expected,) = open_session(model).run(None, {spec.name: x})
    got = np.fromfile(tmp_path / "y.bin", np.float32).reshape(expected.shape)
    # WebAssembly and each kind of processor have kernels of their own, whose roundings of sums to codes differ at times.
    np.testing.assert_array_equal(got.argmax(1), expected.argmax(1))
    assert np.mean((got == expected).all(axis=1)) > 0.9
