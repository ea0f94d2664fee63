#!/usr/bin/env bash
# ONNX Runtime 1.30.0 (CPU): two clamps in front of a QuantizeLinear that makes both of them needless keep a model from being opened.
#
# Expected: QuantizeLinear -> DequantizeLinear -> Conv -> Relu -> Relu -> QuantizeLinear, which onnx.checker lets pass, opens at the
# default level as it does with one Relu, with three, and at ORT_DISABLE_ALL.
# Seen: with two, where the codes begin at 0 (zero point 0 of uint8, so that both Relus are left out), "This is an invalid model. Error:
# two nodes with same node name (conv)". Clip, Relu and Clip, Clip do the same; Relu, Clip does not; a zero point of 3 does not. 1.31.1 opens
# all. The names in the model are all different.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/clamps.py" <<'PYTHON'
import sys

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, checker, helper, numpy_helper


def opens(clamps, zero=0, level="ENABLE"):
    constants = {
        "s": np.float32(6 / 255), "z": np.uint8(zero), "w": np.ones((4, 3, 3, 3), np.int8), "wz": np.int8(0),
        "low": np.float32(0), "high": np.float32(6),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], "x_q"),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], "x_d"),
        helper.make_node("DequantizeLinear", ["w", "s", "wz"], ["wd"], "w_d"),
        helper.make_node("Conv", ["xd", "wd"], ["a0"], "conv"),
    ]
    for number, clamp in enumerate(clamps):
        bounds = ["low", "high"] if clamp == "Clip" else []
        nodes.append(helper.make_node(clamp, [f"a{number}", *bounds], [f"a{number + 1}"], f"clamp{number}"))
    nodes += [
        helper.make_node("QuantizeLinear", [f"a{len(clamps)}", "s", "z"], ["q"], "y_q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], "y_d"),
    ]
    graph = helper.make_graph(
        nodes, "clamps", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 6, 6])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}_ALL")
    try:
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        assert "two nodes with same node name (conv)" in str(error), error
        return False
    return True


wrong = sys.argv[1] == "wrong"
for clamps in ((), ("Relu",), ("Relu", "Clip"), ("Relu", "Relu"), ("Clip", "Relu"), ("Clip", "Clip"), ("Relu",) * 3):
    refused = wrong and clamps in {("Relu", "Relu"), ("Clip", "Relu"), ("Clip", "Clip")}
    print("onnxruntime", ort.__version__, clamps, "opens" if opens(clamps) else "is refused")
    assert opens(clamps) is not refused, clamps
    assert opens(clamps, zero=3), clamps
    assert opens(clamps, level="DISABLE"), clamps
PYTHON
for version in 1.30.0:wrong 1.31.1:right; do
    python3 -m venv "$folder/${version%:*}"
    "$folder/${version%:*}/bin/pip" install --quiet --disable-pip-version-check "onnx==1.22.0" "onnxruntime==${version%:*}" "numpy==2.4.6"
    "$folder/${version%:*}/bin/python" "$folder/clamps.py" "${version#*:}"
done
