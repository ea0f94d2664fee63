#!/usr/bin/env bash
# ONNX Runtime 1.32.0 (CPU): a Pad with an `axes` input between two Transposes does not run at any level of optimization but none.
#
# Expected: the model runs as it is written: Transpose from NHWC, Pad of axes 2 and 3 (opset 18), Transpose back.
# Seen: from ORT_ENABLE_BASIC on, the transpose optimizer permutes `pads` as if it had an entry for every axis of the input, whatever
# `axes` says; the session opens, and each run stops in the Gather that it made ("idx=4 must be within the inclusive range [-4,3]").
# With pads for all four axes and no `axes` the same model runs at every level.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "onnx==1.23.2" "onnxruntime==1.32.0" "numpy==2.4.6"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, checker, helper, numpy_helper

x = np.arange(48, dtype=np.float32).reshape(1, 4, 4, 3)
right = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def outcome(pads, axes, level):
    constants = [numpy_helper.from_array(np.array(pads, np.int64), "pads")]
    inputs = ["t", "pads"]
    if axes:
        constants.append(numpy_helper.from_array(np.array(axes, np.int64), "axes"))
        inputs += ["", "axes"]
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Pad", inputs, ["p"]),
        helper.make_node("Transpose", ["p"], ["y"], perm=[0, 2, 3, 1]),
    ]
    graph = helper.make_graph(
        nodes, "pad", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 4, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 6, 6, 3])], constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = session.run(None, {"x": x})[0]
    except Exception as error:
        return str(error)
    return "right" if np.array_equal(found, right) else "wrong"


for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"):
    whole = outcome([0, 0, 1, 1, 0, 0, 1, 1], None, level)
    some = outcome([1, 1, 1, 1], [2, 3], level)
    print(level, "| all axes:", whole, "| axes [2, 3]:", some)
    assert whole == "right"
    if level == "ORT_DISABLE_ALL":
        assert some == "right"
    else:
        assert "Gather" in some and "idx=4" in some
PYTHON
