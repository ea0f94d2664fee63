"""samples/to_hls4ml.py: hls4ml's C simulation computes what ONNX Runtime does."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from helpers.architectures import Graph
from helpers.contained import VERSION
from helpers.stages import feeds, simulated
from helpers.targets import quantized

from mrecg_onnx.running import open_session
from mrecg_onnx.targets import load_target
from mrecg_onnx.writing.containers import contained
from mrecg_onnx.writing.qdq import export
from mrecg_onnx.writing.retargeting import retarget

if TYPE_CHECKING:
    from types import ModuleType

RULES = load_target("qonnx")


@pytest.fixture
def bridge() -> ModuleType:
    pytest.importorskip("hls4ml", reason="hls4ml is not installed")
    pytest.importorskip("qonnx", reason="qonnx is not installed")
    path = Path(__file__).parents[2] / "samples" / "to_hls4ml.py"
    spec = importlib.util.spec_from_file_location("to_hls4ml", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def network(*, global_pool: bool) -> onnx.ModelProto:
    """A stem, a residual block, a pool, a depthwise layer and a classifier, on 3 x 8 x 8, for target qonnx."""
    g = Graph(seed=3)
    x = g.relu(g.conv(g.input(3, size=8), 3, 4, "stem"), "stem_relu")
    y = g.relu(g.conv(x, 4, 6, "a1"), "a1_relu")
    x = g.relu(g.op("Add", [g.conv(y, 6, 4, "a2"), x], "a_add"), "a_out")
    x = g.op("MaxPool", [x], "halved", kernel_shape=[2, 2], strides=[2, 2])
    x = g.relu(g.conv(x, 4, 4, "b", groups=4), "b_relu")
    if global_pool:
        g.classifier(x, 4)
    else:
        g.gemm(g.op("Flatten", [x], "flat"), 64, 5, output="output")
    stage = simulated(g.model(), wbits=4, abits=4, target="qonnx")
    return retarget(export(stage.graph, stage.simulation, VERSION).model, RULES)


@pytest.mark.parametrize(
    ("container", "io_type", "global_pool"), [("int8", "io_stream", True), ("qonnx", "io_parallel", False)]
)
def test_the_simulation_computes_the_same(
    bridge: Any, tmp_path: Path, container: str, io_type: str, global_pool: bool
) -> None:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    model, path = network(global_pool=global_pool), tmp_path / "model.onnx"
    onnx.save(contained(model, container).model, path)
    data = feeds(model, 16)
    wanted = open_session(model, level="off", threads=1).run(None, data)[0]
    converted = bridge.converted(bridge.prepared(path), tmp_path / "project", io_type=io_type)
    made = bridge.simulated(converted, next(iter(data.values()))).reshape(wanted.shape)
    np.testing.assert_allclose(made, wanted, rtol=0, atol=1e-3 * np.abs(wanted).max())


def test_what_hls4ml_does_not_compute_is_refused(bridge: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(retarget(quantized("residual"), RULES), path)
    with pytest.raises(SystemExit, match="has a zero point"):
        bridge.prepared(path)
    onnx.save(network(global_pool=True), path)
    with pytest.raises(SystemExit, match="needs --integer"):
        bridge.converted(bridge.prepared(path), tmp_path / "project", integer=2)
