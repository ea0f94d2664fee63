#!/usr/bin/env bash
# onnxruntime-web 1.30.0: QLinearAdd gives another code than ONNX Runtime 1.30.0 in Python (x86-64) for sums next to halfway.
#
# Expected: one version gives one code for one pair of codes, wherever it runs.
# Seen: with the scales of a ResNet-20, 1 of all 65,536 pairs of uint8 codes differs by one: its sum is 35.49999927, which is 35 in
# one place and 36 in the other. Convolutions, whose sums are integers, are equal. A network has hundreds of thousands of sums an image.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "onnx==1.23.2" "onnxruntime==1.30.0" "numpy==2.4.6"
npm install --silent --no-audit --no-fund --prefix "$folder" "onnxruntime-web@1.30.0"
cat > "$folder/run.mjs" <<'JS'
import fs from "node:fs";
import * as ort from "onnxruntime-web";
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(process.argv[2]);
const read = (name) => new ort.Tensor("uint8", new Uint8Array(fs.readFileSync(name)), [65536]);
const { y } = await session.run({ a: read(process.argv[3]), b: read(process.argv[4]) });
fs.writeFileSync(process.argv[5], y.data);
process.exit(0);
JS
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import pathlib
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

folder = pathlib.Path(sys.argv[1])
a, b = (x.reshape(-1).astype(np.uint8) for x in np.meshgrid(np.arange(256), np.arange(256), indexing="ij"))


def codes(scales, zeros):
    constants = []
    for name, scale, zero in zip("aby", scales, zeros):
        constants.append(helper.make_tensor(f"{name}_s", TensorProto.FLOAT, [], [scale]))
        constants.append(helper.make_tensor(f"{name}_z", TensorProto.UINT8, [], [zero]))
    node = helper.make_node("QLinearAdd", ["a", "a_s", "a_z", "b", "b_s", "b_z", "y_s", "y_z"], ["y"], domain="com.microsoft")
    values = [helper.make_tensor_value_info(name, TensorProto.UINT8, [65536]) for name in "aby"]
    graph = helper.make_graph([node], "sum", values[:2], values[2:], constants)
    imports = [helper.make_opsetid("", 19), helper.make_opsetid("com.microsoft", 1)]
    path = folder / "sum.onnx"
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=9), path)
    native = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"a": a, "b": b})[0]
    a.tofile(folder / "a"), b.tofile(folder / "b")
    subprocess.run(["node", str(folder / "run.mjs"), *(str(folder / n) for n in ("sum.onnx", "a", "b", "y"))], check=True)
    web = np.fromfile(folder / "y", np.uint8)
    exact = (a - float(zeros[0])) * scales[0] + (b - float(zeros[1])) * scales[1]
    return native, web, exact / scales[2] + zeros[2]


CASES = (
    ((0.022383717820048332, 0.02457677200436592, 0.020411211997270584), (144, 0, 0), 1),
    ((0.033405665308237076, 0.02758505940437317, 0.028673723340034485), (114, 0, 0), 1),
    ((0.5, 0.25, 1.0), (128, 3, 101), 0),  # exact in float: ties are treated alike
)
for scales, zeros, expected in CASES:
    native, web, exact = codes(scales, zeros)
    differ = native != web
    print(scales, zeros, "| differ:", int(differ.sum()), "| exact:", exact[differ].tolist(), "| native:", native[differ], "web:", web[differ])
    assert int(differ.sum()) == expected
    assert np.all(np.abs(exact[differ] - np.floor(exact[differ]) - 0.5) < 1e-5)
PYTHON
