"""Branches: what low-bit layers share with additions gets a scale of its own for the layers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.architectures import Graph
from helpers.stages import feeds
from onnx import numpy_helper

from mrecg_onnx.converters import normalize
from mrecg_onnx.planning import editable_graph, make_plan
from mrecg_onnx.planning.branches import branch_narrow_reads
from mrecg_onnx.quantization import quantize
from mrecg_onnx.running import fused_op_counts, open_session, run_padded
from mrecg_onnx.settings import Settings


def residual(*, relu: bool = False) -> onnx.ModelProto:
    """Stem, a block with an identity skip, a block whose skip is a convolution, classifier."""
    g = Graph(seed=4)
    x = g.conv(g.input(4), 4, 8, "stem")
    x = g.relu(x, "stem_relu") if relu else x
    y = g.conv(g.relu(g.conv(x, 8, 8, "a1"), "a1_relu"), 8, 8, "a2")
    x = g.op("Add", [y, x], "a_add")
    y = g.conv(g.relu(g.conv(x, 8, 8, "b1"), "b1_relu"), 8, 8, "b2")
    x = g.op("Add", [y, g.conv(x, 8, 8, "b_skip", kernel=1)], "b_add")
    g.classifier(g.relu(g.conv(x, 8, 16, "last", kernel=1), "last_relu"), 16)
    return g.model()


def bits(model: onnx.ModelProto, **options) -> dict[str, int]:
    settings = Settings(wbits=4, abits=4, **options)
    return {a.name: a.bits for a in make_plan(editable_graph(model, settings), settings).activations}


def test_a_stream_that_a_block_adds_to_keeps_eight_bits_and_its_layer_reads_four():
    found = bits(residual())
    assert found["stem_out"] == 8
    assert found["stem_out_narrow"] == 4


def test_layers_alone_need_no_branch():
    found = bits(residual())
    # Both readers of the first sum are layers, the reader of the second is one.
    assert found["a_add_out"] == found["b_add_out"] == 4
    assert not [name for name in found if name.endswith("_narrow") and not name.startswith("stem")]


def test_shared_is_one_quantizer_of_the_layers_width():
    found = bits(residual(), residual="shared")
    assert found["stem_out"] == 4
    assert not [name for name in found if name.endswith("_narrow")]


def test_nothing_is_branched_where_layers_read_eight_bits():
    for settings in (Settings(wbits=4, abits=8), Settings(wbits=4, abits=32)):
        assert branch_narrow_reads(normalize(residual()), settings) == 0


def test_a_branch_behind_a_relu():
    found = bits(residual(relu=True))
    assert (found["stem_relu_out"], found["stem_relu_out_narrow"]) == (8, 4)


def test_names_that_are_taken_are_left_alone():
    model = residual()
    for node in model.graph.node:
        node.output[:] = ["stem_out_narrow" if o == "a1_out" else o for o in node.output]
        node.input[:] = ["stem_out_narrow" if i == "a1_out" else i for i in node.input]
    found = bits(model)
    assert found["stem_out_narrow_1"] == 4


@pytest.mark.parametrize("method", ["nearest", "qdrop"])
def test_the_branch_runs_on_an_integer_kernel_and_nothing_is_lost(tmp_path, method):
    path = tmp_path / "calib.npz"
    np.savez(path, **feeds(residual(), 32))
    settings = Settings(wbits=4, abits=4, method=method, iters=20, batch_size=8, equalize="off")
    result = quantize(residual(), path, settings)
    assert result.verification.warnings == ()
    assert result.verification.expected["QLinearLeakyRelu"] == 1
    assert fused_op_counts(result.model.SerializeToString())["QLinearLeakyRelu"] == 1
    scales = {
        t.name: float(numpy_helper.to_array(t))
        for t in result.model.graph.initializer
        if t.name.endswith("_scale") and t.dims == []
    }
    assert scales["stem_out_scale"] < scales["stem_out_narrow_scale"]


def test_the_float_function_is_unchanged():
    model, fed = residual(), feeds(residual(), 4)
    graph = normalize(model)
    assert branch_narrow_reads(graph, Settings(wbits=4, abits=4)) == 1
    outputs = [run_padded(open_session(m, level="off"), fed)["output"] for m in (model, ir.to_proto(graph))]
    assert np.array_equal(*outputs)
