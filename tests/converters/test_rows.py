"""A batch of one image that the graph takes apart and stacks again keeps its axis, and nodes that do nothing go."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.detectors import listed_detector
from onnx import numpy_helper

from mrecg_onnx.converters import normalize
from mrecg_onnx.converters.parity import run_onnx
from mrecg_onnx.planning import cut_off

CONSTANTS = {
    "zero": np.array([0]),
    "first": np.array(0),
    "pads": np.array([0, 1, 1, 0, 1, 1]),
    "nothing": np.zeros(8, np.int64),
    "mean": np.full((3, 1, 1), 0.5, np.float32),
    "wide": np.full((2, 3, 4, 4), 0.5, np.float32),
    "same": np.array([1, 3, 4, 4]),
    "none": np.zeros(0, np.float32),
    "w": np.ones((2, 3, 1, 1), np.float32),
}


def made(nodes: str, *, batch: int = 1) -> onnx.ModelProto:
    """A graph from images ``x`` [batch, 3, 4, 4] to ``y``."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[{batch}, 3, 4, 4] x) => (float[a, b, c, d] y) {{ {nodes} }}"""
    model = onnx.parser.parse_model(text)
    read = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in CONSTANTS.items() if n in read)
    return model


def left(nodes: str, *, batch: int = 1) -> list[str]:
    """The operators that are left, of a graph that computes what it did."""
    model = made(nodes, batch=batch)
    graph = normalize(model, free=False)
    x = np.random.default_rng(0).random((batch, 3, 4, 4), np.float32)
    assert np.array_equal(run_onnx(ir.to_proto(graph), {"x": x})["y"], run_onnx(model, {"x": x})["y"])
    return [node.op_type for node in graph.graph]


@pytest.mark.parametrize(
    ("nodes", "wanted"),
    [
        ("a = Squeeze(x, zero) b = Sub(a, mean) c = Unsqueeze(b, zero) y = Conv(c, w)", ["Sub", "Conv"]),
        ("a = Gather<axis = 0>(x, first) b = Sub(mean, a) c = Unsqueeze(b, zero) y = Conv(c, w)", ["Sub", "Conv"]),
        ("a = Squeeze(x, zero) b = Pad(a, pads) c = Unsqueeze(b, zero) y = Conv(c, w)", ["Pad", "Conv"]),
        ("a = Squeeze(x, zero) b = Relu(a) y = Unsqueeze(b, zero)", ["Relu"]),
        ("a = Relu(x) b = Squeeze(a, zero) c = Unsqueeze(b, zero) y = Conv(c, w)", ["Relu", "Conv"]),
    ],
)
def test_an_axis_that_is_taken_off_and_put_back_stays(nodes: str, wanted: list[str]) -> None:
    assert left(nodes) == wanted


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Squeeze(x, zero) b = Softmax<axis = 0>(a) c = Unsqueeze(b, zero) y = Conv(c, w)",  # looks at a whole axis
        "a = Squeeze(x, zero) b = Add(a, wide) y = Conv(b, w)",  # its constant has more axes
        "a = Squeeze(x, zero) b = Relu(a) c = Unsqueeze(b, zero) d = Conv(c, w) e = ReduceMax(b) y = Mul(d, e)",  # a fork
    ],
)
def test_other_ways_stay_as_they_are(nodes: str) -> None:
    assert left(nodes) == [node.op_type for node in made(nodes).graph.node]


def test_of_several_images_one_is_taken() -> None:
    nodes = "a = Gather<axis = 0>(x, first) b = Relu(a) c = Unsqueeze(b, zero) y = Conv(c, w)"
    assert left(nodes, batch=2) == ["Gather", "Relu", "Unsqueeze", "Conv"]


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Split<axis = 0>(x) y = Conv(a, w)",
        "a = Concat<axis = 0>(x) y = Conv(a, w)",
        "a = Pad(x, nothing) y = Conv(a, w)",
        'a = Resize<mode = "linear">(x, none, none, same) y = Conv(a, w)',
    ],
)
def test_what_hands_on_its_input_goes(nodes: str) -> None:
    assert left(nodes) == ["Conv"]


@pytest.mark.parametrize("padded", [0, 2])
def test_the_beginning_of_torchvisions_detectors_runs_at_any_batch(padded: int) -> None:
    front, _ = cut_off(listed_detector(padded=padded))
    graph = ir.to_proto(normalize(front))
    images = np.random.default_rng(0).random((3, 3, 32, 32), np.float32)
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    for output in graph.graph.output:
        output.type.tensor_type.shape.dim[0].dim_param = "N"
    together = run_onnx(graph, {"images": images})
    alone = [run_onnx(front, {"images": images[i : i + 1]}) for i in range(3)]
    for name, values in together.items():
        np.testing.assert_allclose(values, np.concatenate([one[name] for one in alone]), rtol=1e-5, atol=1e-5)
