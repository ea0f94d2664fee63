"""The zoo through torch's exporters: the bridge equals ONNX Runtime, units cover all layers, W4A4 files are what was learned.

Rows are :data:`networks.NETWORKS`. The TorchScript exporter writes opset 13 with a dynamic batch and 17 with a fixed one, the
torch.export one 18 to 23; plain ``pytest`` takes a row of each kind, ``-m slow`` all of them. :data:`nhwc.BY_HAND` has graphs
that no exporter of torch writes.
"""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from networks import NETWORKS, Row, initialized
from nhwc import BY_HAND
from stages import feeds, planned

from mrecg_onnx.activations import is_weighted
from mrecg_onnx.converters import to_torch
from mrecg_onnx.quantization import QuantizationResult, quantize
from mrecg_onnx.settings import Settings

#: What plain pytest exports, by opset.
FAST = {13: ("squeezenet", "vit", "keyword_spotting"), 17: ("shufflenet_v2", "deit", "two_inputs")}


def exported(row: Row, module: torch.nn.Module, opset: int, *, dynamo: bool, dynamic: bool) -> onnx.ModelProto:
    """A batch of 2, or one called ``batch``."""
    names = [f"input{i or ''}" for i in range(len(row.shapes))]
    options: dict[str, object] = {"dynamo": dynamo, "opset_version": opset, "input_names": names}
    if dynamic and dynamo:
        options["dynamic_shapes"] = tuple({0: torch.export.Dim("batch")} for _ in names)
    elif dynamic:
        options["dynamic_axes"] = {name: {0: "batch"} for name in names}
    if dynamo:
        options["verbose"] = False
    file = io.BytesIO()
    torch.onnx.export(module, tuple(torch.randn(2, *shape) for shape in row.shapes), file, **options)
    return onnx.load_from_string(file.getvalue())


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


def cases(*opsets: int) -> list[object]:
    """A parameter a row and opset; those that are not in :data:`FAST` are slow."""
    return [
        pytest.param(name, opset, id=f"{name}-{opset}", marks=[] if name in FAST.get(opset, ()) else pytest.mark.slow)
        for name in NETWORKS
        for opset in opsets
    ]


@pytest.mark.parametrize(("name", "opset"), cases(13, 17))
def test_torchscript(name: str, opset: int, tmp_path: Path) -> None:
    row = NETWORKS[name]
    opset = max(opset, row.oldest)
    check(exported(row, initialized(name), opset, dynamo=False, dynamic=opset < 17), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_torch_export(name: str, tmp_path: Path) -> None:
    """One opset a row, the next one for the next row: exporting takes longer than all that is checked."""
    index = list(NETWORKS).index(name)
    model = exported(NETWORKS[name], initialized(name), 18 + index % 6, dynamo=True, dynamic=index % 2 == 1)
    check(model, tmp_path)


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name: str, tmp_path: Path) -> None:
    """All layers run on integer kernels, and where all else does ONNX Runtime needs no Transpose of maps between them."""
    found = check(BY_HAND[name](), tmp_path).verification
    layers = sum(node.op_type in {"Conv", "MatMul"} for node in BY_HAND[name]().graph.node)
    assert found.fused["QLinearConv"] + found.fused["QGemm"] == layers
    assert found.fused.get("Transpose", 0) <= 1  # the pooled one
    assert not {"Conv", "BatchNormalization", "Gemm"} & found.fused.keys()
