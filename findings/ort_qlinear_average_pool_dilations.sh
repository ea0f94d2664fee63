#!/usr/bin/env bash
# ONNX Runtime 1.32.0 (CPU): an AveragePool between Q and DQ with `dilations` written out is refused once it is fused.
#
# Expected: an AveragePool of opset 19 with dilations=[1, 1], which is the default, runs as the one without the attribute.
# Seen: from ORT_ENABLE_EXTENDED on, QLinearAveragePool is made with all attributes of the pool, has none named dilations, and the
# session is refused: INVALID_GRAPH, "Unrecognized attribute: dilations". Without the attribute, or below that level, the model runs.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "onnx==1.23.2" "onnxruntime==1.32.0" "numpy==2.4.6"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, checker, helper, numpy_helper


def outcome(level, **attributes):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("AveragePool", ["xd"], ["p"], kernel_shape=[2, 2], strides=[2, 2], **attributes),
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
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        return str(error)
    return session.run(None, {"x": np.full((1, 1, 4, 4), 100, np.float32)})[0].ravel().tolist()


for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"):
    without, written = outcome(level), outcome(level, dilations=[1, 1])
    print(level, "| no dilations:", without, "| dilations [1, 1]:", written)
    assert without == [100] * 4
    if level in ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC"):
        assert written == [100] * 4
    else:
        assert "INVALID_GRAPH" in written and "Unrecognized attribute: dilations" in written
PYTHON
