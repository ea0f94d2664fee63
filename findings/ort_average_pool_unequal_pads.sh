#!/usr/bin/env bash
# ONNX Runtime 1.24.4 (CPU): from opset 19 on AveragePool leaves pads out of the count where those of the sides differ.
#
# Expected: with count_include_pad a window is divided by its size, wherever the pads lie; opset 18 and 19 say the same here.
# Seen: pads only behind (0, 0, 1, 1), kernel 2, stride 1, a map of ones: at opset 18 the last row is 0.5 0.5 0.25; at opset 19 it is
# 1 1 0.5, as if the row below were not counted. 1.25.1 gives both opsets the values of opset 18. No warning.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/pool.py" <<'PYTHON'
import sys

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, checker, helper


def pooled(opset):
    node = helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], pads=[0, 0, 1, 1], count_include_pad=1)
    graph = helper.make_graph(
        [node], "pool", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 3, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.ones((1, 1, 3, 3), np.float32)})[0][0, 0]


right = np.float32([[1, 1, 0.5], [1, 1, 0.5], [0.5, 0.5, 0.25]])
for opset in (18, 19):
    found = pooled(opset)
    print("onnxruntime", ort.__version__, "opset", opset, found.tolist())
    assert np.allclose(found, right) == (sys.argv[1] == "right" or opset == 18), found
PYTHON
for version in 1.24.4:wrong 1.25.1:right; do
    python3 -m venv "$folder/${version%:*}"
    "$folder/${version%:*}/bin/pip" install --quiet --disable-pip-version-check "onnx==1.22.0" "onnxruntime==${version%:*}" "numpy==2.4.6"
    "$folder/${version%:*}/bin/python" "$folder/pool.py" "${version#*:}"
done
