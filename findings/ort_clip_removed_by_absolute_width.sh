#!/usr/bin/env bash
# ONNX Runtime 1.32.0 (CPU): a Clip in front of a QuantizeLinear of small scale is removed, although its bounds lie inside the codes.
#
# Expected: a Clip is removed as redundant only where its bounds are no narrower than what the quantizer's codes can hold.
# Seen: bounds and ends of the codes are compared with an absolute tolerance, float32's epsilon (1.2e-7), whatever the scale. With
# codes of int8 and scale 1e-10 the codes reach from -1.28e-8 to 1.27e-8, and a Clip to 0 .. 1e-9 is gone at the default level:
# codes -128 and 127 come out where the graph as written gives 0 and 10. With scale 1e-3 both agree. No warning.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "onnx==1.23.2" "onnxruntime==1.32.0" "numpy==2.4.6"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, checker, helper, numpy_helper


def codes(scale):
    nodes = [
        helper.make_node("Neg", ["x"], ["n"]),
        helper.make_node("Clip", ["n", "low", "high"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(np.float32(value), name) for name, value in (("low", 0), ("high", 10 * scale), ("s", scale))
    ]
    graph = helper.make_graph(
        nodes, "clip", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.INT8, [1, 3])],
        [*constants, numpy_helper.from_array(np.int8(0), "z")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    checker.check_model(model, full_check=True)
    x = np.array([[1000, -5, -1000]], np.float32) * np.float32(scale)
    found = []
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found.append(session.run(None, {"x": x})[0].ravel().tolist())
    return found


for scale in (1e-3, 1e-10):
    print("scale", scale, "as written, default level:", *codes(scale))
assert codes(1e-3) == [[0, 5, 10], [0, 5, 10]]
assert codes(1e-10) == [[0, 5, 10], [-128, 5, 127]]
PYTHON
