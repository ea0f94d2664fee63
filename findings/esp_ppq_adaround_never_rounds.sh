#!/usr/bin/env bash
# esp-ppq 1.3.12: the block reconstruction (AdaRound) never asks its roundings to become 0 or 1.
#
# Expected: as in the AdaRound paper, after a fifth of the steps a regularization term with a falling exponent pushes every soft
# rounding to one of its ends; AdaroundRegTerm is made for that, and is called with the step.
# Seen: it is called at every step with 0, which it takes for the warm-up, and is 0 throughout. In AdaroundPass.finetune the loop
# over the outputs of the block uses the name of the loop over the steps (`for idx, name in enumerate(output_names)`), so that what
# follows sees the last output's number. Roundings stay between 0 and 1 and are cut at the end.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "esp-ppq==1.3.12"
cd "$folder"
"$folder/venv/bin/python" - "$folder/model.onnx" >"$folder/said" 2>"$folder/errors" <<'PYTHON' || { tail -5 "$folder/errors"; exit 1; }
import sys

import numpy as np
import onnx
import torch
from esp_ppq.api import QuantizationSettingFactory, load_onnx_graph, quantize_native_model
from esp_ppq.core import TargetPlatform
from esp_ppq.quantization.optim.legacy import AdaroundRegTerm
from onnx import TensorProto, helper, numpy_helper

rng = np.random.default_rng(0)
weights = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3)}
graph = helper.make_graph(
    [
        helper.make_node("Conv", ["x", "w1"], ["a"], "first", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "w2"], ["y"], "second", pads=[1] * 4),
    ],
    "two layers",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 3, 8, 8])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 8, 8, 8])],
    [numpy_helper.from_array(rng.normal(size=size).astype(np.float32) / 5, name) for name, size in weights.items()],
)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), sys.argv[1])

calls, forward = [], AdaroundRegTerm.forward


def seen(self, r, iter):
    term = forward(self, r, iter)
    calls.append((iter, float(term)))
    return term


AdaroundRegTerm.forward = seen
setting = QuantizationSettingFactory.default_setting()
setting.blockwise_reconstruction = True
setting.blockwise_reconstruction_setting.steps = 50
setting.blockwise_reconstruction_setting.collecting_device = "cpu"
images = [torch.randn(4, 3, 8, 8) for _ in range(8)]
quantize_native_model(
    load_onnx_graph(sys.argv[1]), images, len(images), None, TargetPlatform.ONNXRUNTIME,
    inputs=[images[0]], setting=setting, device="cpu", collate_fn=lambda x: x,
)
assert len(calls) == 50 * 2, len(calls)  # two layers in one block
print("SEEN steps", sorted({step for step, _ in calls}), "terms", sorted({term for _, term in calls}))
assert {*calls} == {(0, 0.0)}
# Called with a step behind the warm-up it does what it should.
assert float(forward(AdaroundRegTerm(max_iter=50), torch.zeros(4), 40)) > 0
PYTHON
grep SEEN "$folder/said"
echo "esp-ppq's AdaRound regularizes with step 0 at every step, as described."
