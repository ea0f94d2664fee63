"""The target portable: OpenVINO, OpenCV 5, TVM and IREE open its files and compute what the graph says as written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.architectures import PATTERNS, Graph
from helpers.crossed import crossed
from helpers.other_runtimes import RUNTIMES, on_opencv
from helpers.stages import feeds, simulated
from helpers.targets import quantized
from helpers.written import run

from mrecg_onnx.measures import sqnr_db
from mrecg_onnx.running import fused_op_counts
from mrecg_onnx.targets.target import load_target
from mrecg_onnx.writing.fixed_batch import fix_batch
from mrecg_onnx.writing.qdq import export
from mrecg_onnx.writing.retargeting import retarget

#: Two images: one batch for the compilers that take no free one.
BATCH = 2


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("pattern", "bits"), crossed(PATTERNS, [(4, 4), (2, 4), (8, 8)]))
def test_everybody_computes_the_same(runtime: str, pattern: str, bits: tuple[int, int], tmp_path: Path) -> None:
    model = fix_batch(retarget(quantized(pattern, "portable", *bits), load_target("portable")), BATCH)
    fed = feeds(model, BATCH)
    found = RUNTIMES[runtime](model, fed, tmp_path)
    (expected, *_) = run(model, fed)
    # Sums in another order move single codes that lie on the edge between two steps.
    assert sqnr_db(expected, found.reshape(expected.shape)) >= 35


def tail_of_a_plane() -> onnx.ModelProto:
    """A plane of 196 positions, which is no multiple of 8, behind convolutions that nothing clamps."""
    g = Graph()
    x = g.conv(g.input(16, 14), 16, 16, "first", kernel=1)
    g.conv(x, 16, 16, "second", kernel=1, output="output")
    return g.model()


def test_opencv_computes_the_last_positions_too(tmp_path: Path) -> None:
    """Without the Clips of values it takes integer kernels that are wrong there (5.0.0)."""
    stage = simulated(tail_of_a_plane(), wbits=8, abits=8)
    plain = export(stage.graph, stage.simulation, {"mrecg_onnx.version": "test"}).model
    aimed = retarget(plain, load_target("portable"))
    fed = feeds(plain, 1)
    (expected,) = run(plain, fed)
    step = float(np.diff(np.unique(expected)).min())
    np.testing.assert_allclose(on_opencv(aimed, fed, tmp_path), expected, rtol=0, atol=1.01 * step)


def test_onnx_runtime_leaves_full_clips_out() -> None:
    """Layers of 8 bits keep their integer kernels: it knows that quantizing clips anyway."""
    model = quantized("residual", "portable", 8, 8)
    aimed = retarget(model, load_target("portable"))
    assert sum(n.op_type == "Clip" for n in aimed.graph.node) == sum(n.op_type == "Conv" for n in aimed.graph.node)
    assert fused_op_counts(aimed)["QLinearConv"] == fused_op_counts(model)["QLinearConv"]
    assert "Clip" not in fused_op_counts(aimed)
