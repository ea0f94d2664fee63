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
from helpers.networks import CASES, Case
from helpers.stages import feeds, planned, simulated

from mrecg_onnx.checking.verification import verify
from mrecg_onnx.converters import to_torch
from mrecg_onnx.planning.activations import is_weighted
from mrecg_onnx.quantization import QuantizationResult, quantize
from mrecg_onnx.settings import Settings
from mrecg_onnx.writing.qdq import export

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


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_attention_and_mlp_are_units_between_residual_additions(name: str) -> None:
    graph, plan = planned(Case(name, "torchscript", 17, dynamic=False).model())
    units = {unit.layers: unit for unit in plan.units}
    blocks = sorted({layer.name.split("/")[2] for layer in plan.layers if "/mlp/" in layer.name})
    assert blocks == [f"blocks.{i}" for i in ((0, 1) if name == "vit" else (0, 1, 3))]
    for block in blocks:
        at = f"/blocks/{block}"
        attention = units[f"{at}/attention/qkv/MatMul", f"{at}/attention/out/MatMul"]
        mlp = units[f"{at}/mlp/up/MatMul", f"{at}/mlp/down/MatMul"]
        assert len(attention.inputs) == 1
        # The normalization in front and the addition behind are inside.
        assert attention.outputs == mlp.inputs == (f"{at}/Add_output_0",)
        assert {f"{at}/norm1/LayerNormalization", f"{at}/attention/Softmax", f"{at}/Add"} <= set(attention.nodes)
        assert {f"{at}/norm2/LayerNormalization", f"{at}/mlp/Erf", f"{at}/Add_1"} <= set(mlp.nodes)
    joined = planned(graph, method="mrecg", scheme="modcap", selection="eq4", merges=1)[1]
    assert joined.units == plan.units
    assert any(len(group) > 1 for group in joined.merges)
    assert [i for group in joined.merges for i in group] == list(range(len(plan.units)))


def test_quantizers_of_a_transformer() -> None:
    """Scores and their softmax have 8 bits, the latter from 0 on; what leads to the normalization and through GELU is float."""
    model = Case("vit", "torchscript", 17, dynamic=False).model()
    stage = simulated(model)
    plans = {plan.name: plan for plan in stage.plan.activations}
    grids = stage.simulation.activations
    for block in ("/blocks/blocks.0", "/blocks/blocks.1"):
        softmax = f"{block}/attention/Softmax_output_0"
        assert plans[softmax].members == (softmax,)
        assert (plans[softmax].bits, int(grids[softmax].zero_point)) == (8, 0)
        assert float(grids[softmax].scale) * 255 <= 1.0001
        assert plans[f"{block}/attention/MatMul_output_0"].bits == 8
        read = {layer.name: layer for layer in stage.plan.layers}
        for layer, made in {
            "attention/qkv": "norm1/LayerNormalization",
            "attention/out": None,
            "mlp/up": "norm2/LayerNormalization",
            "mlp/down": "mlp/Mul_1",
        }.items():
            found = read[f"{block}/{layer}/MatMul"]
            assert stage.simulation.input_grid(found).bits == 4
            assert made is None or found.input == f"{block}/{made}_output_0"
            assert found.bias is not None
            assert found.axis == 1  # a scale a column
        assert f"{block}/mlp/up/Add_output_0" not in plans
    found = verify(export(stage.graph, stage.simulation, {}), stage.simulation, stage.data)
    assert found.warnings == ()
    assert found.fused["QLinearSoftmax"] == 2
    assert min(found.sqnr_db, found.sqnr_fused_db) > 60


def test_blocks_of_a_net_with_skips_are_cut_at_their_additions() -> None:
    """The maps of SegFormer's first stage are alive up to the decoder: the second stage is cut inside."""
    _, plan = planned(Case("segformer", "torchscript", 17, dynamic=False).model())
    units = {unit.layers: unit for unit in plan.units}
    attention = next(unit for layers, unit in units.items() if "/blocks.1/attention/out/MatMul" in layers)
    assert "/blocks.1/Add" in attention.nodes
    mlp = units["/blocks.1/up/MatMul", "/blocks.1/depthwise/Conv", "/blocks.1/down/MatMul"]
    assert "/blocks.1/Add_2" in mlp.nodes
