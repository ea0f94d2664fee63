#!/usr/bin/env bash
# ONNX Runtime 1.32.0 (CPU): an AveragePool with ceil_mode=1 and count_include_pad=1 between Q and DQ changes its values when it is fused.
#
# Expected: the fused kernel, QLinearAveragePool, gives what the graph gives as it is written, up to one code.
# Seen: where a window hangs over the edge, the kernel divides by the whole window instead of the part that lies on the (padded)
# input. A constant map of 100 becomes 67 and 44 at the edge. With count_include_pad=0 both are right. torch's AvgPool2d with
# ceil_mode=True is exported with count_include_pad=1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "onnx==1.23.2" "onnxruntime==1.32.0" "numpy==2.4.6"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, checker, helper, numpy_helper


def outputs(include_pad):
    pool = {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": include_pad}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("AveragePool", ["xd"], ["p"], **pool),
        helper.make_node("QuantizeLinear", ["p", "s", "z"], ["pq"]),
        helper.make_node("DequantizeLinear", ["pq", "s", "z"], ["y"]),
    ]
    constants = [numpy_helper.from_array(np.float32(1), "s"), numpy_helper.from_array(np.uint8(0), "z")]
    graph = helper.make_graph(
        nodes, "pool", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 2, 2])], constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    checker.check_model(model, full_check=True)
    found = []
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found.append(session.run(None, {"x": np.full((1, 1, 4, 4), 100, np.float32)})[0].ravel().tolist())
    return found


for include_pad in (0, 1):
    print("count_include_pad", include_pad, "as written, fused:", *outputs(include_pad))
assert outputs(0) == [[100, 100, 100, 100], [100, 100, 100, 100]]
assert outputs(1) == [[100, 100, 100, 100], [100, 67, 67, 44]]
PYTHON
