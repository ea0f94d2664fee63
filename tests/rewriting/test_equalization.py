"""Cross-layer equalization: which streams there are, that rescaling is exact, and when it is done."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from helpers.architectures import PATTERNS, Graph, export, mobilenet_v2
from helpers.stages import feeds, network_of, planned, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from mrecg_onnx.converters import normalize
from mrecg_onnx.quantization import quantize
from mrecg_onnx.rewriting.equalization import LARGEST, MIN_GAIN, SMALLEST, choose_scales
from mrecg_onnx.rewriting.rescaling import apply_scale
from mrecg_onnx.rewriting.streams import Stream, find_streams
from mrecg_onnx.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable


def streams(model: onnx.ModelProto) -> dict[str, Stream]:
    return {stream.name: stream for stream in find_streams(normalize(model))}


def run(model: ir.Model | onnx.ModelProto, fed: dict[str, np.ndarray]) -> np.ndarray:
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, fed)[0]


# --- graphs ------------------------------------------------------------------------------------------------------


def inverted(g: Graph, x: str, cin: int, cout: int, name: str, *, stride: int = 1) -> str:
    y = g.clip(g.conv(x, cin, 16, f"{name}_expand", kernel=1), f"{name}_clip1")
    y = g.clip(g.conv(y, 16, 16, f"{name}_depthwise", stride=stride, groups=16), f"{name}_clip2")
    y = g.conv(y, 16, cout, f"{name}_project", kernel=1)
    return g.op("Add", [x, y], f"{name}_add") if stride == 1 and cin == cout else y


def mobile(seed: int = 0) -> onnx.ModelProto:
    """Two stages of linear bottlenecks: three blocks of 8 channels, two of 12."""
    g = Graph(seed)
    x = g.clip(g.conv(g.input(), 8, 16, "stem", stride=2), "stem_clip")
    x = g.conv(x, 16, 8, "stem_project", kernel=1)
    for i in range(2):
        x = inverted(g, x, 8, 8, f"a{i}")
    x = inverted(g, x, 8, 12, "b0", stride=2)
    x = inverted(g, x, 12, 12, "b1")
    x = g.clip(g.conv(x, 12, 16, "head", kernel=1), "head_clip")
    g.classifier(x, 16)
    return g.model()


def relu_pair() -> onnx.ModelProto:
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 12, "first"))
    g.op("Softmax", [g.conv(x, 12, 8, "second")], "softmax", "output", axis=1)
    return g.model()


def prelu_pair() -> onnx.ModelProto:
    g = Graph()
    slope = g.constant("slope", np.linspace(0.05, 0.5, 12, dtype=np.float32).reshape(12, 1, 1))
    x = g.op("PRelu", [g.conv(g.input(), 8, 12, "first"), slope], "prelu")
    x = g.op("LeakyRelu", [g.conv(x, 12, 8, "second")], "leaky", alpha=0.2)
    g.conv(x, 8, 8, "third", output="output")
    return g.model()


def through_depthwise() -> onnx.ModelProto:
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 12, "first"))
    x = g.relu(g.conv(x, 12, 12, "depthwise", groups=12, stride=2), "relu2")
    g.conv(x, 12, 8, "last", output="output")
    return g.model()


def grouped_pair() -> onnx.ModelProto:
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 12, "first"))
    g.conv(x, 12, 8, "grouped", groups=4, output="output")
    return g.model()


def through_pools_to_gemm() -> onnx.ModelProto:
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 12, "first"))
    x = g.op("MaxPool", [x], "maxpool", kernel_shape=[2, 2], strides=[2, 2])
    x = g.op("AveragePool", [x], "avgpool", kernel_shape=[2, 2], strides=[2, 2])
    g.classifier(x, 12)
    return g.model()


def gemm_stored_by_rows() -> onnx.ModelProto:
    """Gemm without transB on both sides: input channels are rows."""
    g = Graph()
    x = g.op("Flatten", [g.input(2, 4)], "flatten", axis=1)
    x = g.relu(g.op("Gemm", [x, g.weight("w1", (32, 10), 32), g.bias("b1", 10)], "first"))
    g.op("Gemm", [x, g.weight("w2", (10, 6), 10), g.bias("b2", 6)], "second", "output")
    return g.model()


# --- finding streams ---------------------------------------------------------------------------------------------


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


def expanded() -> onnx.ModelProto:
    """A layer, Relu6 and a depthwise layer; the channels differ a hundredfold."""
    g = Graph(seed=2)
    x = g.conv(g.input(), 8, 12, "first")
    g.conv(g.clip(x, "clip"), 12, 12, "depthwise", groups=12, output="output")
    model = g.model()
    factors = np.geomspace(0.01, 1.0, 12, dtype=np.float32)
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if tensor.name in {"first.weight", "first.bias"}:
            scaled = value * factors.reshape(-1, *[1] * (value.ndim - 1))
            tensor.CopyFrom(numpy_helper.from_array(scaled, tensor.name))
    return model


def test_channels_below_a_ceiling_grow_up_to_it_and_the_function_stays():
    model = expanded()
    fed = feeds(model, 64, 0)
    graph, plan = planned(model, wbits=4, abits=4, first_last_bits=4)
    (stream,) = find_streams(graph)
    assert stream.ceilings == (("clip_out", 6.0),)
    data = {name: torch.from_numpy(x) for name, x in fed.items()}
    (chosen,) = choose_scales(network_of(graph), [stream], plan.activations, data)
    assert chosen.alpha > 0
    assert chosen.error_after < chosen.error_before
    scale = np.array(chosen.scale)
    assert (scale <= 1.0).all()
    before, peaks = run(model, fed), network_of(graph).run(data, keep=["clip_out"])["clip_out"].amax((0, 2, 3)).numpy()
    assert (peaks / scale <= 6.0 + 1e-5).all()
    apply_scale(graph, stream, chosen.scale)
    assert np.linalg.norm(run(graph, fed) - before) <= 1e-5 * np.linalg.norm(before)


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


# --- exactness ---------------------------------------------------------------------------------------------------

EXACT = [
    mobile,
    relu_pair,
    prelu_pair,
    through_depthwise,
    grouped_pair,
    through_pools_to_gemm,
    gemm_stored_by_rows,
    PATTERNS["residual"],
    PATTERNS["grouped"],
    PATTERNS["sigmoid_gate"],
    PATTERNS["two_inputs"],
    PATTERNS["matmul_add"],
]


@pytest.mark.parametrize("build", EXACT, ids=lambda f: f.__name__)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_rescaling_keeps_the_float_function(build: Callable[[], onnx.ModelProto], seed: int):
    model = build()
    fed = feeds(model, 2, seed)
    before = run(model, fed)
    graph = normalize(model)
    found = find_streams(graph)
    assert found
    random = np.random.default_rng(seed)
    weights = {name: value.const_value.numpy().copy() for name, value in graph.graph.initializers.items()}
    found = [stream for stream in found if not stream.ceilings]  # exact only up to what the data leave below the bound
    for stream in found:
        apply_scale(graph, stream, np.exp(random.uniform(-3, 3, stream.channels)).tolist())
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    after = run(graph, fed)
    assert np.linalg.norm(after - before) <= 1e-5 * np.linalg.norm(before)
    changed = {n for n, v in graph.graph.initializers.items() if not np.array_equal(v.const_value.numpy(), weights[n])}
    assert changed
    assert all(graph.graph.initializers[n].const_value.numpy().dtype == np.float32 for n in changed)


def test_scale_divides_the_stream_itself():
    graph = normalize(relu_pair())
    (stream,) = find_streams(graph)
    fed = tensors(relu_pair(), 2)
    before = network_of(graph).run(fed, keep=["relu_out"])["relu_out"]
    scale = torch.linspace(0.25, 4, 12)
    apply_scale(graph, stream, scale.tolist())
    after = network_of(graph).run(fed, keep=["relu_out"])["relu_out"]
    assert torch.allclose(after * scale.view(1, -1, 1, 1), before, rtol=1e-5, atol=1e-6)


# --- the choice --------------------------------------------------------------------------------------------------


def planted(outliers: dict[int, float], seed: int = 0) -> onnx.ModelProto:
    """Eight linear channels of equal power between two 1x1 layers, some of them then made larger, with no change of the
    function: what equalization should take back."""
    g = Graph(seed)
    x = g.clip(g.conv(g.input(), 8, 16, "stem"), "stem_clip")
    x = g.conv(x, 16, 8, "project", kernel=1)
    x = g.conv(x, 8, 16, "expand", kernel=1)
    g.classifier(g.clip(x, "clip2"), 16)
    model = g.model()
    graph = normalize(model)
    (stream,) = [s for s in find_streams(graph) if "project" in s.producers]
    values = network_of(graph).run(tensors(model, 64, 5), keep=["project_out"])["project_out"]
    power = values.pow(4).mean((0, 2, 3)).pow(0.25)
    factors = torch.tensor([outliers.get(c, 1.0) for c in range(8)])
    apply_scale(graph, stream, (power / factors).tolist())
    return ir.to_proto(graph)


def chosen(model: onnx.ModelProto, **options) -> dict[str, float]:
    graph, plan = planned(model, **options)
    data = tensors(model, 64, 5)
    decided = choose_scales(network_of(graph), find_streams(graph), plan.activations, data)
    return {entry.stream.name: entry for entry in decided}


def test_outlier_channels_are_equalized():
    entry = chosen(planted({2: 12.0, 5: 8.0}))["project_out"]
    assert entry.alpha > 0
    assert entry.spread == pytest.approx(12, rel=0.05)
    assert entry.error_after < (1 - MIN_GAIN) * entry.error_before
    scale = torch.tensor(entry.scale)
    assert torch.topk(scale, 2).indices.tolist() == [2, 5]
    assert float(scale.min()) >= SMALLEST
    assert float(scale.max()) <= LARGEST
    # s_c = (m_c / median m)^alpha
    assert float(scale[2]) == pytest.approx(entry.spread**entry.alpha, rel=0.01)


def test_equal_channels_are_left_alone():
    entry = chosen(planted({}))["project_out"]
    assert entry.alpha == 0
    assert entry.error_after == entry.error_before
    assert entry.scale == (1.0,) * 8


def test_predicted_error_is_that_of_the_rescaled_network():
    model = planted({2: 12.0, 5: 8.0})
    entry = chosen(model)["project_out"]
    graph = normalize(model)
    apply_scale(graph, entry.stream, entry.scale)
    again = chosen(ir.to_proto(graph))["project_out"]
    assert again.error_before == pytest.approx(entry.error_after, rel=0.02)


def test_dead_channel_does_not_upset_the_others():
    graph = normalize(planted({2: 12.0}))
    for name in ("project.weight", "project.bias"):
        value = graph.graph.initializers[name]
        array = value.const_value.numpy().copy()
        array[4] = 0
        value.const_value = ir.tensor(array, name=name)
    entry = chosen(ir.to_proto(graph))["project_out"]
    assert entry.alpha > 0
    assert entry.scale[4] == 1
    assert np.isfinite(entry.scale).all()


def test_stream_without_a_quantizer_is_not_judged():
    assert chosen(planted({2: 12.0}), abits=32) == {}


def test_quantize_equalizes_and_reports_it(tmp_path):
    model = planted({2: 12.0, 5: 8.0})
    np.savez(tmp_path / "calib.npz", **feeds(model, 64, 5))
    errors = {}
    for mode in ("auto", "off"):
        result = quantize(model, tmp_path / "calib.npz", Settings(method="nearest", equalize=mode))
        reported = {entry.stream.name: entry.alpha for entry in result.equalized}
        assert (reported.get("project_out", 0) > 0) == (mode == "auto")
        assert json.loads(json.dumps(result.to_json()))["equalized"] == [] or mode == "auto"
        fed = feeds(model, 64, 9)
        reference = run(model, fed)
        errors[mode] = float(np.linalg.norm(run(result.model, fed) - reference) / np.linalg.norm(reference))
    assert errors["auto"] < 0.8 * errors["off"]
