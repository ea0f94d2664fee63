#!/usr/bin/env bash
# hls4ml 1.3.0 (qonnx 1.0.0): readers of a Quant node whose scale is no power of two get its codes, not its values.
#
# Expected: every node that reads a Quant node's output gets code * scale.
# Seen: hls4ml makes three nodes of it, a multiplication with 1 / scale, a rounding and a multiplication with scale, and
# connects the last one with the first node alone whose first input is that tensor (ModelGraph.insert_node). A second reader
# gets codes; so does an Add that reads it as its second input. No error and no warning. With a scale that is a power of two,
# there is one node, and all readers get values. Needs g++: the C simulation is built and run.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "hls4ml==1.3.0" "qonnx==1.0.0" "onnx==1.23.2" "numpy==2.4.6"
cd "$folder"
"$folder/venv/bin/python" - 2>"$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import contextlib
import io

import hls4ml
import numpy as np
from onnx import TensorProto, helper, numpy_helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.util.cleanup import cleanup_model

x = np.array([[1.5, 3.0, -4.5, 6.0]], np.float32)


def outputs(name, scale, nodes):
    constants = {"scale": scale, "zero": 0.0, "bits": 8.0}
    quant = helper.make_node(
        "Quant", ["x", *constants], ["q"], domain="qonnx.custom_op.general", signed=1, narrow=0, rounding_mode="ROUND"
    )
    graph = helper.make_graph(
        [quant, *nodes], "readers", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(np.array(value, np.float32), key) for key, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("qonnx.custom_op.general", 1)]
    model = cleanup_model(ModelWrapper(helper.make_model(graph, opset_imports=opsets, ir_version=8)))
    wanted = execute_onnx(model, {model.graph.input[0].name: x})[model.graph.output[0].name]
    with contextlib.redirect_stdout(io.StringIO()):
        config = hls4ml.utils.config.config_from_onnx_model(
            model, granularity="name", backend="Vitis", default_precision="fixed<32,12>"
        )
        made = hls4ml.converters.convert_from_onnx_model(model, hls_config=config, output_dir=name, backend="Vitis")
        made.compile()
    return wanted.ravel(), made.predict(x).ravel()


two = [
    helper.make_node("Relu", ["q"], ["a"]), helper.make_node("Relu", ["q"], ["b"]), helper.make_node("Add", ["a", "b"], ["y"])
]
second = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Add", ["a", "q"], ["y"])]
codes = x.ravel() / 0.75
for name, scale, nodes, seen in (
    ("power_of_two", 0.5, two, 2 * np.maximum(x.ravel(), 0)),
    ("two_readers", 0.75, two, np.maximum(x.ravel(), 0) + np.maximum(codes, 0)),
    ("second_input", 0.75, second, np.maximum(x.ravel(), 0) + codes),
):
    wanted, found = outputs(name, scale, nodes)
    print(name, "| wanted:", *wanted, "| hls4ml:", *np.round(found, 3))
    assert np.allclose(found, seen, atol=1e-3)
    assert np.allclose(found, wanted, atol=1e-3) == (name == "power_of_two")
PYTHON
