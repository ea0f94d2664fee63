#!/usr/bin/env bash
# ONNX Runtime 1.32.0 (CPU): a Gemm between DQ and Q runs in float where its output is a graph output as well.
#
# Expected: QGemm. It can give float, so one QGemm with a QuantizeLinear behind it serves both.
# Seen: with the graph output alone it is QGemm with a float output, with the QuantizeLinear alone it is QGemm with a quantized
# output, and with both it stays a float Gemm between QuantizeLinear and DequantizeLinear nodes. The values are right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "onnx==1.23.2" "onnxruntime==1.32.0" "numpy==2.4.6"
"$folder/venv/bin/python" - "$folder/optimized.onnx" <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, checker, helper, numpy_helper


def operators(float_output, quantized):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "s", "wz"], ["wd"]),
        helper.make_node("Gemm", ["xd", "wd"], ["g"]),
    ]
    names = []
    if float_output:
        names.append("g")
    if quantized:
        nodes.append(helper.make_node("QuantizeLinear", ["g", "s", "z"], ["gq"]))
        nodes.append(helper.make_node("DequantizeLinear", ["gq", "s", "z"], ["y"]))
        names.append("y")
    constants = {"s": np.float32(1), "z": np.uint8(0), "w": np.eye(4, dtype=np.int8), "wz": np.int8(0)}
    graph = helper.make_graph(
        nodes, "gemm", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in names],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = sys.argv[1]
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for y in session.run(None, {"x": np.array([[1, 2, 3, 4]], np.float32)}):
        assert y.tolist() == [[1, 2, 3, 4]]
    return [node.op_type for node in onnx.load(sys.argv[1]).graph.node]


found = {readers: operators(*readers) for readers in ((True, False), (False, True), (True, True))}
for (float_output, quantized), names in found.items():
    print("graph output:", float_output, "| QuantizeLinear:", quantized, "|", *names)
assert "QGemm" in found[True, False] and "Gemm" not in found[True, False]
assert "QGemm" in found[False, True] and "Gemm" not in found[False, True]
assert "Gemm" in found[True, True] and "QGemm" not in found[True, True]
PYTHON
