#!/usr/bin/env bash
# OpenCV 5.0.0 (dnn, CPU): a convolution between DequantizeLinear and QuantizeLinear is wrong in the last positions of its planes.
#
# Expected: what ONNX Runtime makes of the graph, up to one step, for every size of image.
# Seen: readNetFromONNX joins the three nodes to an integer kernel, which is right where a plane has a multiple of 8 positions. Else the last
# ones are off by many steps: 1 of 49 (7 x 7), 4 of 196 (14 x 14), for kernels of 1 x 1 here, and for larger ones. A Clip of values in front of
# QuantizeLinear, at the ends of the type, where quantizing clips anyway, keeps the nodes apart: then all are right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "onnx==1.23.2" "onnxruntime==1.32.0" "opencv-python-headless==5.0.0.93" "numpy==2.4.6"
"$folder/venv/bin/python" - <<'PYTHON'
import cv2
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, checker, helper, numpy_helper

random = np.random.default_rng(0)


def wrong(size, apart):
    """Positions of a plane of ``size`` x ``size`` where any channel is off by more than one step."""
    scale, zero = np.float32(0.3), np.uint8(120)
    constants = {
        "s": np.float32(0.05), "z": np.uint8(3), "w": random.integers(-8, 8, (16, 16, 1, 1)).astype(np.int8),
        "ws": np.full(16, 0.1, np.float32), "wz": np.zeros(16, np.int8), "ys": scale, "yz": zero,
        "low": (np.float32(0 - 120) * scale).astype(np.float32), "high": (np.float32(255 - 120) * scale).astype(np.float32),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "s", "z"], ["values"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["weight"], axis=0),
        helper.make_node("Conv", ["values", "weight"], ["made"], kernel_shape=[1, 1]),
        *([helper.make_node("Clip", ["made", "low", "high"], ["bounded"])] if apart else []),
        helper.make_node("QuantizeLinear", ["bounded" if apart else "made", "ys", "yz"], ["y"]),
    ]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes, "positions", [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 16, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [1, 16, size, size])],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items() if n in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    x = random.integers(0, 16, (1, 16, size, size)).astype(np.uint8)
    expected = ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    net = cv2.dnn.readNetFromONNX(np.frombuffer(data, np.uint8))
    net.setInput(x)
    far = np.abs(net.forward().reshape(expected.shape).astype(int) - expected) > 1
    return sorted({int(place) for place in np.argwhere(far.reshape(16, -1))[:, 1]})


for size, expected in ((8, []), (12, []), (7, [48]), (6, [32, 33, 34, 35]), (14, [192, 193, 194, 195])):
    joined, apart = wrong(size, False), wrong(size, True)
    print(f"{size} x {size}: wrong at {joined}, with a Clip at {apart}")
    assert joined == expected
    assert apart == []
PYTHON
