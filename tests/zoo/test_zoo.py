"""The zoo as exporters write it: the bridge equals ONNX Runtime, units cover all layers, W4A4 files are what was learned.

Plain ``pytest`` takes a row of each kind of :data:`networks.CASES`, ``-m slow`` the others; ``benchmarks/zoo.py`` makes a table.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from networks import CASES, Case
from stages import feeds, planned

from mrecg_onnx.activations import is_weighted
from mrecg_onnx.converters import to_torch
from mrecg_onnx.quantization import QuantizationResult, quantize
from mrecg_onnx.settings import Settings

#: What plain pytest takes, by exporter and whether the batch is dynamic.
FAST = {
    ("torchscript", True): ("squeezenet", "vit", "keyword_spotting"),
    ("torchscript", False): ("shufflenet_v2", "deit", "two_inputs"),
}


def check(model: onnx.ModelProto, folder: Path) -> QuantizationResult:
    """Parity and plan, then a few iterations at W4A4 on more samples than the batch: the file is what was simulated."""
    data = feeds(model, count=2)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    graph, plan = planned(model)
    with torch.no_grad():
        got = to_torch(graph)(*(torch.from_numpy(data[value.name]) for value in model.graph.input))
    for ours, theirs in zip(got if isinstance(got, tuple) else (got,), session.run(None, data), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-4, atol=1e-4)
    layers = Counter(layer for unit in plan.units for layer in unit.layers)
    assert layers == Counter(node.name for node in graph.graph if is_weighted(node))

    np.savez(folder / "calib.npz", **feeds(model, count=8))
    result = quantize(model, folder / "calib.npz", Settings(iters=3, batch_size=4, threads=1))
    assert not result.verification.warnings
    assert {layer for unit in result.units for layer in unit.layers} == {layer.name for layer in result.plan.layers}
    return result


def parameter(case: Case) -> object:
    fast = case.exporter == "hand" or case.network in FAST.get((case.exporter, case.dynamic), ())
    name = f"{case.network}-{case.exporter}-{case.opset}"
    return pytest.param(case, id=name, marks=[] if fast else pytest.mark.slow)


@pytest.mark.parametrize("case", [parameter(case) for case in CASES])
def test_zoo(case: Case, tmp_path: Path) -> None:
    model = case.model()
    found = check(model, tmp_path).verification.fused
    if case.exporter == "hand":
        # All layers run on integer kernels, and ONNX Runtime moves the Transposes of maps out of their way.
        layers = sum(node.op_type in {"Conv", "MatMul"} for node in model.graph.node)
        assert found["QLinearConv"] + found["QGemm"] == layers
        assert not {"Conv", "BatchNormalization", "Gemm"} & found.keys()
        assert found.get("Transpose", 0) <= 1  # of the pooled map
