#!/usr/bin/env bash
# OpenVINO 2026.4.1 (CPU): values half way between two codes round the other way when the zero point is odd.
#
# Expected: QuantizeLinear as ONNX defines it, round(x / scale) to even first and then plus the zero point: 0.5 becomes 0, 1.5 and 2.5 become 2.
# Seen: with an odd zero point OpenVINO rounds the sum to even: 0.5 becomes 1, 1.5 becomes 1, 2.5 becomes 3. With an even zero point the
# two agree. Sums of few bits and scales that are powers of two have such values often.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "onnx==1.23.2" "onnxruntime==1.32.0" "openvino==2026.4.1" "numpy==2.4.6"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnxruntime as ort
import openvino as ov
from onnx import TensorProto, checker, helper, numpy_helper

x = np.array([-1.5, -0.5, 0.5, 1.5, 2.5], np.float32)


def outputs(zero_point):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    constants = [numpy_helper.from_array(np.float32(1), "s"), numpy_helper.from_array(zero_point, "z")]
    graph = helper.make_graph(
        nodes, "ties", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [5])], constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    compiled = ov.compile_model(ov.Core().read_model(data), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    runtime = ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    return runtime.tolist(), compiled([x])[0].tolist()


for kind, even, odd in ((np.uint8, 128, 127), (np.int8, 0, 1)):
    for zero_point in (even, odd):
        runtime, openvino = outputs(kind(zero_point))
        print(kind.__name__, "zero point", zero_point, "onnxruntime", runtime, "openvino", openvino)
        assert runtime == [-2, 0, 0, 2, 2]
        assert openvino == ([-2, 0, 0, 2, 2] if zero_point % 2 == 0 else [-1, -1, 1, 1, 3])
PYTHON
