#!/usr/bin/env bash
# ONNX Runtime 1.32.0 (CPU): a MatMul or Gemm of dequantized inputs runs in float where a Relu or Clip and then a float operator follow.
#
# Expected: MatMulIntegerToFloat (or QGemm with a float output), then Relu and Sigmoid in float, as without the Relu.
# Seen: with Relu as the graph output, with Sigmoid alone, or with Sigmoid and then Relu the product runs in integers. With Relu (or
# Clip) and then Sigmoid it runs in float behind DequantizeLinear nodes; if the Relu is a graph output too it is integers again. The
# values are right.
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


def operators(product, tail, outputs):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "s", "wz"], ["wd"]),
        helper.make_node(product, ["xd", "wd"], ["m"]),
    ]
    last = "m"
    for name in tail:
        bounds = ["low", "high"] if name == "Clip" else []
        nodes.append(helper.make_node(name, [last, *bounds], [name.lower()]))
        last = name.lower()
    constants = {
        "s": np.float32(1), "z": np.uint8(0), "w": np.eye(4, dtype=np.int8), "wz": np.int8(0),
        "low": np.float32(0), "high": np.float32(6),
    }
    graph = helper.make_graph(
        nodes, "product", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = sys.argv[1]
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.array([[1, 2, 3, 4]], np.float32)
    sigmoid = 1 / (1 + np.exp(-x))
    right = {"sigmoid": sigmoid, "relu": sigmoid if tail[0] == "Sigmoid" else x}
    for name, y in zip(outputs, session.run(None, {"x": x})):
        assert np.allclose(y, right[name])
    return [node.op_type for node in onnx.load(sys.argv[1]).graph.node]


rows = [
    (["Relu"], ["relu"], True),
    (["Sigmoid"], ["sigmoid"], True),
    (["Sigmoid", "Relu"], ["relu"], True),
    (["Relu", "Sigmoid"], ["sigmoid"], False),
    (["Clip", "Sigmoid"], ["sigmoid"], False),
    (["Relu", "Sigmoid"], ["relu", "sigmoid"], True),
]
for product, integer in (("MatMul", "MatMulIntegerToFloat"), ("Gemm", "QGemm")):
    for tail, outputs, integers in rows:
        found = operators(product, tail, outputs)
        print(product, *tail, "| graph outputs", *outputs, "|", *found)
        assert (integer in found) == integers
        assert ("DequantizeLinear" in found) == (not integers)
PYTHON
