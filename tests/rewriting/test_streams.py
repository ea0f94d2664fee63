"""Streams: which tensors can be rescaled together, and which cannot."""

from __future__ import annotations

import onnx
import pytest
from helpers.architectures import PATTERNS, Graph, export, mobilenet_v2
from helpers.rescalable import mobile, prelu_pair, relu_pair, through_depthwise, through_pools_to_gemm

from mrecg_onnx.converters import normalize
from mrecg_onnx.rewriting.streams import Stream, find_streams


def streams(model: onnx.ModelProto) -> dict[str, Stream]:
    return {stream.name: stream for stream in find_streams(normalize(model))}


def test_linear_bottlenecks_of_a_stage_are_one_stream():
    found = {name: stream for name, stream in streams(mobile()).items() if not stream.ceilings}
    assert list(found) == ["stem_project_out", "b0_project_out"]
    first, second = found.values()
    assert first.channels == 8
    assert set(first.tensors) == {"stem_project_out", "a0_project_out", "a0_add_out", "a1_project_out", "a1_add_out"}
    assert first.producers == ("stem_project", "a0_project", "a1_project")
    assert first.consumers == ("a0_expand", "a1_expand", "b0_expand")
    assert second.channels == 12
    assert second.producers == ("b0_project", "b1_project")
    assert second.consumers == ("b1_expand", "head")


def test_mobilenet_v2_has_a_stream_a_stage():
    every = find_streams(normalize(export(mobilenet_v2())))
    found = [s for s in every if not s.ceilings]
    assert [s.channels for s in found] == [16, 24, 32, 64, 96, 160, 320]
    # Blocks by stage 1, 2, 3, 4, 3, 3, 1 (Sandler 2018, table 2): one producer each.
    assert [len(s.producers) for s in found] == [1, 2, 3, 4, 3, 3, 1]
    # What depthwise layers read: the stem and the expansions of all blocks but the first, each below one Relu6.
    under = [s for s in every if s.ceilings]
    assert [s.channels for s in under] == [32, 96, *[144] * 2, *[192] * 3, *[384] * 4, *[576] * 3, *[960] * 3]
    assert all(bound == 6.0 for s in under for _, bound in s.ceilings)


def test_relu_pair_is_a_stream():
    (stream,) = streams(relu_pair()).values()
    assert stream == Stream("first_out", ("first_out", "relu_out"), 12, ("first",), ("second",))


def test_prelu_and_leaky_relu_are_homogeneous():
    found = streams(prelu_pair())
    assert [(s.producers, s.consumers) for s in found.values()] == [
        (("first",), ("second",)),
        (("second",), ("third",)),
    ]


def test_depthwise_layer_ends_one_stream_and_begins_the_next():
    found = streams(through_depthwise())
    assert [(s.producers, s.consumers) for s in found.values()] == [
        (("first",), ("depthwise",)),
        (("depthwise",), ("last",)),
    ]


def test_stream_runs_through_pools_and_a_flat_view():
    (stream,) = streams(through_pools_to_gemm()).values()
    assert (stream.producers, stream.consumers) == (("first",), ("fc",))
    assert stream.tensors[-1] == "flatten_out"


def test_residual_blocks_behind_relu_join_their_stage():
    found = streams(PATTERNS["residual"]())
    stage = found["stem_out"]
    assert set(stage.producers) == {"stem", "conv2"}
    assert set(stage.consumers) == {"conv1", "conv3", "shortcut"}
    assert set(found["conv4_out"].producers) == {"conv4", "shortcut"}
    assert set(found["conv4_out"].consumers) == {"fc"}


def clipped() -> onnx.ModelProto:
    g = Graph()
    g.conv(g.clip(g.conv(g.input(), 8, 12, "first")), 12, 8, "second", output="output")
    return g.model()


def shared_weight() -> onnx.ModelProto:
    """Two convolutions read one initializer: neither can be rescaled alone."""
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 8, "first"))
    node = onnx.NodeProto()
    node.CopyFrom(g.nodes[0])
    node.name, node.input[0], node.output[0] = "second", x, "second_out"
    g.nodes.append(node)
    g.conv(g.relu("second_out", "relu2"), 8, 8, "third", output="output")
    return g.model()


def graph_output() -> onnx.ModelProto:
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 12, "first"))
    g.conv(x, 12, 8, "second", output="output")
    return g.model("output", "relu_out")


def other_reader() -> onnx.ModelProto:
    """Sigmoid reads the tensor, too: it would see scaled values."""
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 12, "first"))
    g.op("Add", [g.conv(x, 12, 12, "second"), g.op("Sigmoid", [x], "sigmoid")], "add", "output")
    return g.model()


def flattened_map() -> onnx.ModelProto:
    """Flatten of a map mixes channels and places: one factor a channel no longer fits the Gemm's rows."""
    g = Graph()
    x = g.op("Flatten", [g.relu(g.conv(g.input(), 8, 4, "first"))], "flatten", axis=1)
    g.gemm(x, 4 * 256, 8, output="output")
    return g.model()


def broadcast_add() -> onnx.ModelProto:
    g = Graph()
    x = g.conv(g.input(), 8, 12, "first")
    y = g.conv(g.op("GlobalAveragePool", [x], "pool"), 12, 12, "second", kernel=1)
    g.conv(g.op("Add", [x, y], "add"), 12, 8, "third", output="output")
    return g.model()


@pytest.mark.parametrize(
    "build",
    [clipped, shared_weight, graph_output, other_reader, flattened_map, broadcast_add],
    ids=lambda f: f.__name__,
)
def test_no_stream_where_rescaling_would_not_be_exact(build):
    # Only what hangs on the tensors in question: other pairs of these graphs may be streams.
    blocked = {"first_out", "relu_out", "clip_out", "second_out"}
    assert not [s for s in streams(build()).values() if blocked & set(s.tensors)]


def test_inputs_and_outputs_of_the_graph_are_in_no_stream():
    for build in PATTERNS.values():
        graph = normalize(build())
        ends = {v.name for v in (*graph.graph.inputs, *graph.graph.outputs)}
        assert not [s for s in find_streams(graph) if ends & set(s.tensors)]
