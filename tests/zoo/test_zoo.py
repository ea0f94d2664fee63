"""Networks with random weights through torch's exporters: parity with ONNX Runtime and a plan that covers every layer."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from stages import feeds, planned
from torch import Tensor, nn

from mrecg_onnx.converters import to_torch
from mrecg_onnx.quantization import quantize
from mrecg_onnx.settings import Settings


class Fire(nn.Module):
    """SqueezeNet's block (Iandola 2016): a 1x1 squeeze read by two convolutions that are concatenated."""

    def __init__(self, cin: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(cin, squeeze, 1)
        self.left = nn.Conv2d(squeeze, expand, 1)
        self.right = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu()
        return torch.cat([self.left(x).relu(), self.right(x).relu()], 1)


def squeezenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), Fire(16, 4, 8), Fire(16, 4, 8),
        nn.Conv2d(16, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def exported(opset: int, *, dynamo: bool) -> onnx.ModelProto:
    torch.manual_seed(0)
    options = {"dynamo": dynamo, "opset_version": opset, "input_names": ["input"]}
    file = io.BytesIO()
    torch.onnx.export(squeezenet().eval(), (torch.randn(2, 3, 32, 32),), file, **options)
    return onnx.load_from_string(file.getvalue())


def check(model: onnx.ModelProto) -> None:
    data = feeds(model, count=2)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, data)[0]
    graph, plan = planned(model)
    with torch.no_grad():
        got = to_torch(graph)(torch.from_numpy(data["input"]))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-5)
    layers = Counter(layer for unit in plan.units for layer in unit.layers)
    assert set(layers.values()) == {1}
    assert len(layers) == sum(node.op_type == "Conv" for node in graph.graph)


def check_quantized(model: onnx.ModelProto, folder: Path) -> None:
    """A few iterations at W4A4, on more samples than the model's batch: the file opens and is what was simulated."""
    np.savez(folder / "calib.npz", **feeds(model, count=8))
    result = quantize(model, folder / "calib.npz", Settings(iters=3, batch_size=4, threads=1))
    assert not result.verification.warnings
    assert {layer for unit in result.units for layer in unit.layers} == {layer.name for layer in result.plan.layers}


@pytest.mark.parametrize("opset", [13, 17])
def test_squeezenet_by_torchscript(opset: int, tmp_path: Path) -> None:
    check(exported(opset, dynamo=False))
    check_quantized(exported(opset, dynamo=False), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 20, 23])
def test_squeezenet_by_torch_export(opset: int, tmp_path: Path) -> None:
    check(exported(opset, dynamo=True))
    check_quantized(exported(opset, dynamo=True), tmp_path)
