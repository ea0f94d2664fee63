#!/usr/bin/env bash
# OpenVINO 2026.4.1 (CPU): a float AveragePool with padding, ceil_mode=1 and count_include_pad=1 divides overhanging windows by the whole kernel.
#
# Expected: as ONNX Runtime, onnx's reference and torch: zeros of the padding count, what lies beyond the padding does not.
# Seen: without padding OpenVINO agrees; with padding of 1 the last row and column of a constant map of 100 are 22.2, 33.3 and 11.1
# where the others have 33.3, 50 and 25. The file holds no quantizer at all.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "onnx==1.23.2" "onnxruntime==1.32.0" "openvino==2026.4.1" "numpy==2.4.6"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnxruntime as ort
import openvino as ov
from onnx import TensorProto, checker, helper
from onnx.reference import ReferenceEvaluator

x = np.full((1, 1, 4, 4), 100, np.float32)


def outputs(pad):
    pool = {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": 1, "pads": [pad] * 4}
    graph = helper.make_graph(
        [helper.make_node("AveragePool", ["x"], ["y"], **pool)], "pool",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 2 + pad, 2 + pad])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    compiled = ov.compile_model(ov.Core().read_model(data), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return {
        "onnxruntime": ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0],
        "reference": ReferenceEvaluator(model).run(None, {"x": x})[0],
        "openvino": compiled([x])[0],
    }


rows = {pad: {name: y.astype(np.float64).ravel().round(1).tolist() for name, y in outputs(pad).items()} for pad in (0, 1)}
for pad, found in rows.items():
    for name, row in found.items():
        print("pads", pad, name, row)
assert all(row == [100] * 4 for row in rows[0].values())
right = [44.4, 66.7, 33.3, 66.7, 100, 50, 33.3, 50, 25]
assert rows[1]["onnxruntime"] == right and rows[1]["reference"] == right
assert rows[1]["openvino"] == [44.4, 66.7, 22.2, 66.7, 100, 33.3, 22.2, 33.3, 11.1]
PYTHON
