"""Files for QNN in Qualcomm's simulator of its processor, where ONNX Runtime's plugin for it is installed."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from helpers.architectures import residual
from helpers.stages import feeds, simulated
from helpers.targets import quantized

from mrecg_onnx.running import runtimes
from mrecg_onnx.targets.target import load_target
from mrecg_onnx.writing import contained, retarget
from mrecg_onnx.writing.qdq import export


def tried(model: onnx.ModelProto, folder: Path) -> tuple[float, dict[str, int], str]:
    """SQNR of the first output, the kernels, and whether layers ran on integers."""
    pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn is not installed")
    path = folder / "model.onnx"
    onnx.save(model, path)
    report = runtimes(path, feeds(model, 16), only=["qnn-htp"], samples=16, runs=0)
    (attempt,) = report.attempts
    assert attempt.fixed_batch == 1  # with a free one it takes none of the nodes
    return min(attempt.sqnr_by_output.values()), attempt.kernels, str(attempt.arithmetic)


@pytest.mark.parametrize("bits", [(8, 8), (4, 4)], ids=["W8A8", "W4A4"])
def test_every_layer_runs_on_integers(bits: tuple[int, int], tmp_path: Path) -> None:
    sqnr, kernels, arithmetic = tried(retarget(quantized("residual", "qnn", *bits), load_target("qnn")), tmp_path)
    assert arithmetic == "integer"
    assert kernels["Conv2d U8 (HTP)"] == 6
    assert "DequantizeLinear" not in kernels  # a weight that is dequantized is that of a float layer
    assert sqnr > (25 if bits == (8, 8) else 10)  # it requantizes in fixed point


def test_weights_of_four_bits_run_there(tmp_path: Path) -> None:
    rules = load_target("qnn")
    stage = simulated(residual(), wbits=4, abits=8, target="qnn", symmetric_weights=True)
    aimed = retarget(export(stage.graph, stage.simulation, {"mrecg_onnx.version": "test"}).model, rules)
    typed = contained(aimed, "typed", highest=rules.opset[1], zero_points=False).model
    assert any(tensor.data_type == onnx.TensorProto.INT4 for tensor in typed.graph.initializer)
    sqnr, kernels, arithmetic = tried(typed, tmp_path)
    assert arithmetic == "integer"
    assert kernels["Conv2d U8 (HTP)"] == 6
    assert sqnr > 25
