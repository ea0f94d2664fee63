#!/usr/bin/env bash
# ONNX Runtime 1.32.0 (CPU): weights dequantized along the input channels run with the scales on the output channels once they are fused.
#
# Expected: QLinearConv has one scale an output channel, so a DequantizeLinear with axis=1 in front of a Conv either stays in float or
# is refused.
# Seen: where the weight has as many input as output channels it is fused without a look at the axis, and the values are wrong without
# a word at the default level; as written they are right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "onnx==1.23.2" "onnxruntime==1.32.0" "numpy==2.4.6"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, checker, helper, numpy_helper

weight = np.arange(-4, 5, dtype=np.int8).reshape(3, 3, 1, 1)
scale = np.array([0.1, 1, 10], np.float32)


def outputs(axis):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=axis),
        helper.make_node("Conv", ["xd", "wd"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "s", "z"], ["y"]),
    ]
    constants = {"s": np.float32(1), "z": np.uint8(100), "w": weight, "ws": scale, "wz": np.zeros(3, np.int8)}
    graph = helper.make_graph(
        nodes, "axis", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 1, 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 1, 1])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    checker.check_model(model, full_check=True)
    found = []
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        x = np.array([1, 2, 3], np.float32).reshape(1, 3, 1, 1)
        found.append(session.run(None, {"x": x})[0].ravel().tolist())
    return found


for axis in (0, 1):
    print("axis", axis, "as written, fused:", *outputs(axis))
assert outputs(0) == [[-2, 2, 155], [-2, 2, 155]]
assert outputs(1) == [[-66, 30, 126], [-2, 2, 155]]
PYTHON
