#!/usr/bin/env bash
# ONNX Runtime 1.32.0: convert_onnx_models_to_ort writes a model with 4-bit weights that cannot be opened.
#
# Expected: the file opens as the ONNX model does, or the converter says that the ORT format has no 4-bit types.
# Seen: with UINT4 initializers (opset 21) the converter reports "Converted 1/1 models successfully" and exits with 0; opening its
# file gives INVALID_ARGUMENT, "Unsupported tensor data type '<unknown>' ... Invalid ORT format model". With UINT8 the same model opens.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "onnx==1.23.2" "onnxruntime==1.32.0" "numpy==2.4.6"
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import pathlib
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, checker, helper


def run(path):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        return str(error)
    return session.run(None, {"x": np.zeros(4, np.float32)})[0].tolist()


def outcomes(kind):
    nodes = [helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"]), helper.make_node("Add", ["x", "wd"], ["y"])]
    code = getattr(TensorProto, kind)
    constants = [
        helper.make_tensor("w", code, [4], [1, 2, 3, 4]),
        helper.make_tensor("s", TensorProto.FLOAT, [], [1]),
        helper.make_tensor("z", code, [], [0]),
    ]
    graph = helper.make_graph(
        nodes, "weights", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])], constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    checker.check_model(model, full_check=True)
    path = pathlib.Path(sys.argv[1], kind, "model.onnx")
    path.parent.mkdir()
    onnx.save(model, path)
    command = [sys.executable, "-m", "onnxruntime.tools.convert_onnx_models_to_ort", str(path), "--optimization_style", "Fixed"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Converted 1/1 models successfully." in done.stdout
    return run(path), run(path.with_suffix(".ort"))


for kind in ("UINT8", "UINT4"):
    before, after = outcomes(kind)
    print(kind, "| onnx:", before, "| ort:", after)
    assert before == [1, 2, 3, 4]
    if kind == "UINT8":
        assert after == [1, 2, 3, 4]
    else:
        assert "Unsupported tensor data type" in after
PYTHON
