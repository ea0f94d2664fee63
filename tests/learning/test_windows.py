"""Spatial windows: what is counted of a window is what the whole map has there, and the rest is never windowed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from helpers.architectures import Graph
from helpers.stages import network_of
from onnx import TensorProto, helper

from mrecg_onnx.learning.windows import WindowPlan, plan_windows

if TYPE_CHECKING:
    from collections.abc import Callable

    from mrecg_onnx.network.steps import Network

SIDE = 12


def image(g: Graph, height: int, width: int, channels: int = 4, name: str = "input") -> str:
    g.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", channels, height, width]))
    return name


def stem(g: Graph, height: int, width: int) -> None:
    """7x7 at stride 2, Relu, 3x3 max pool at stride 2."""
    x = g.relu(g.conv(image(g, height, width), 4, 8, kernel=7, stride=2))
    g.op("MaxPool", [x], "maxpool", "output", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)


def residual(g: Graph, height: int, width: int) -> None:
    x = image(g, height, width)
    y = g.conv(g.relu(g.conv(x, 4, 6, "conv1"), "relu1"), 6, 4, "conv2")
    g.relu(g.op("Add", [x, y], "add"), output="output")


def strided_residual(g: Graph, height: int, width: int) -> None:
    x = image(g, height, width)
    y = g.conv(g.relu(g.conv(x, 4, 6, "conv1", stride=2), "relu1"), 6, 6, "conv2")
    g.relu(g.op("Add", [g.conv(x, 4, 6, "shortcut", kernel=1, stride=2), y], "add"), output="output")


def inverted_bottleneck(g: Graph, height: int, width: int) -> None:
    x = g.clip(g.conv(image(g, height, width), 4, 12, "expand", kernel=1))
    x = g.clip(g.conv(x, 12, 12, "depthwise", stride=2, groups=12, kernel=5), "clip2")
    g.conv(x, 12, 4, "project", kernel=1, output="output")


def two_strides(g: Graph, height: int, width: int) -> None:
    x = g.relu(g.conv(image(g, height, width), 4, 6, "conv1", stride=2), "relu1")
    g.conv(g.relu(g.conv(x, 6, 6, "conv2", stride=2), "relu2"), 6, 4, "conv3", output="output")


def dilated(g: Graph, height: int, width: int) -> None:
    weight = g.weight("dilated.weight", (4, 4, 3, 3), 36)
    x = g.op("Conv", [image(g, height, width), weight], "dilated", dilations=[2, 2], pads=[2] * 4)
    g.conv(g.op("HardSwish", [x], "hardswish"), 4, 4, output="output")


def pads_at_the_end(g: Graph, height: int, width: int) -> None:
    """Stride 2 as TensorFlow pads even sizes: nothing in front, one row and column behind."""
    weight = g.weight("conv.weight", (4, 4, 3, 3), 36)
    x = g.op("Conv", [image(g, height // 2 * 2, width // 2 * 2), weight], "conv", strides=[2, 2], pads=[0, 0, 1, 1])
    g.conv(g.relu(x), 4, 4, "conv2", output="output")


def pooled_shortcut(g: Graph, height: int, width: int) -> None:
    """ResNet-D: the shortcut averages with ceil_mode in front of its convolution."""
    x = image(g, height, width)
    pool = {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": 0}
    y = g.conv(g.op("AveragePool", [x], "avgpool", **pool), 4, 6, "shortcut", kernel=1)
    g.relu(g.op("Add", [g.conv(x, 4, 6, "conv1", stride=2), y], "add"), output="output")


def average_with_pads(g: Graph, height: int, width: int) -> None:
    x = g.conv(image(g, height, width), 4, 4)
    pool = {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1] * 4}
    g.op("AveragePool", [x], "avgpool", "output", **pool)


def two_inputs(g: Graph, height: int, width: int) -> None:
    """A unit that reads a skip beside its data."""
    x = g.op("Add", [image(g, height, width), image(g, height, width, name="skip")], "add")
    g.conv(g.relu(g.conv(x, 4, 6, "conv1")), 6, 4, "conv2", output="output")


def constants(g: Graph, height: int, width: int) -> None:
    """Hardswish as old exporters write it, and PRelu: constants that are the same at every place."""
    x = g.conv(image(g, height, width), 4, 6, "conv1")
    y = g.clip(g.op("Add", [x, g.constant("three", np.float32(3))], "plus"))
    x = g.op("Div", [g.op("Mul", [x, y], "times"), g.constant("six", np.full((1, 1, 1, 1), 6, np.float32))], "over")
    x = g.op("PRelu", [g.conv(x, 6, 4, "conv2"), g.constant("slope", np.full((4, 1, 1), 0.1, np.float32))], "prelu")
    g.conv(x, 4, 4, "conv3", kernel=1, output="output")


LOCAL = [
    stem,
    residual,
    strided_residual,
    inverted_bottleneck,
    two_strides,
    dilated,
    pads_at_the_end,
    pooled_shortcut,
    average_with_pads,
    two_inputs,
    constants,
]


def prepared(
    build: Callable[[Graph, int, int], None], height: int = 48, width: int = 48, outputs: tuple[str, ...] = ("output",)
) -> tuple[Network, dict[str, torch.Tensor], dict[str, tuple[int, ...]]]:
    """Network, inputs, and the shape of every tensor and constant."""
    g = Graph(opset=17)
    build(g, height, width)
    model = g.model(*outputs)
    network = network_of(model)
    generator = torch.Generator().manual_seed(0)
    sizes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]] for value in model.graph.input}
    data = {name: torch.randn(2, *size, generator=generator) for name, size in sizes.items()}
    shapes = {name: tuple(value.shape) for name, value in (network.constants | data).items()}

    def note(name: str, value: torch.Tensor) -> torch.Tensor:
        shapes[name] = tuple(value.shape)
        return value

    network.run(data, activation=note)
    return network, data, shapes


def windows_of(network: Network, shapes: dict[str, tuple[int, ...]], side: int = SIDE) -> WindowPlan | None:
    return plan_windows(network.steps, shapes, network.inputs, network.outputs, side)


@pytest.mark.parametrize("build", LOCAL)
@pytest.mark.parametrize(("height", "width"), [(56, 56), (57, 83), (79, 56)])
def test_window_gives_what_the_whole_map_has_there(build, height, width):
    network, data, shapes = prepared(build, height, width)
    plan = windows_of(network, shapes)
    assert plan is not None
    whole = network.run(data)["output"]
    assert plan.whole == tuple(whole.shape[2:])
    generator = torch.Generator().manual_seed(1)
    seen = torch.zeros(plan.whole, dtype=torch.bool)
    for _ in range(60):
        window = plan.draw(generator)
        (top, bottom), (left, right) = window.read
        cut = network.run({name: x[:, :, top:bottom, left:right] for name, x in data.items()})["output"]
        (top, bottom), (left, right) = window.use
        used = cut[:, :, top:bottom, left:right]
        (top, bottom), (left, right) = window.aim
        assert used.shape[2:] == plan.size
        assert torch.allclose(used, whole[:, :, top:bottom, left:right], rtol=1e-5, atol=1e-5)
        seen[top:bottom, left:right] = True
    # The true borders are drawn, too.
    assert all(bool(edge.any()) for edge in (seen[0], seen[-1], seen[:, 0], seen[:, -1]))


@pytest.mark.parametrize("build", [residual, two_strides])
def test_window_saves_work(build):
    network, _, shapes = prepared(build, 96, 96)
    plan = windows_of(network, shapes)
    for seed in range(20):
        (top, bottom), (left, right) = plan.draw(torch.Generator().manual_seed(seed)).read
        assert (bottom - top) * (right - left) < 96 * 96 / 2
    # The wanted side is that of the largest map: the output has a quarter of it after two strides.
    assert plan.size == (max(4, SIDE // plan.stride),) * 2


@pytest.mark.parametrize("build", [residual, two_strides])
def test_all_windows_read_as_much(build):
    network, _, shapes = prepared(build, 96, 96)
    plan = windows_of(network, shapes)
    generator = torch.Generator().manual_seed(0)
    read = [plan.draw(generator).read for _ in range(200)]
    assert len({(bottom - top, right - left) for (top, bottom), (left, right) in read}) == 1
    assert {0} < {top for (top, _), _ in read}
    assert max(bottom for (_, bottom), _ in read) == 96


def test_every_place_is_drawn_about_equally_often():
    network, _, shapes = prepared(residual, 40, 40)
    plan = windows_of(network, shapes)
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(40)
    for _ in range(4000):
        (top, bottom), _ = plan.draw(generator).aim
        counts[top:bottom] += 1
    expected = 4000 * plan.size[0] / 40
    assert float(counts.min()) > 0.5 * expected
    assert float(counts.max()) < 2 * expected


def test_same_generator_same_windows():
    network, _, shapes = prepared(residual)
    plan = windows_of(network, shapes)
    draws = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(3)
        draws.append([plan.draw(generator) for _ in range(10)])
    assert draws[0] == draws[1]


@pytest.mark.parametrize(
    ("build", "stride", "halo"),
    [
        (stem, 4, 3),  # 7x7 at stride 2 spoils up to 6 / 2 on the side of its pads; the pool: (3 + 2) / 2
        (residual, 1, 4),
        (strided_residual, 2, 3),
        (inverted_bottleneck, 2, 2),
        (two_strides, 4, 4),  # 2 / 2, (1 + 2) / 2, 2 + 2
        (dilated, 1, 6),  # 2 x 2 and 2
        (average_with_pads, 1, 4),
        (pooled_shortcut, 2, 1),
    ],
)
def test_halo_is_what_the_kernels_reach_over(build, stride, halo):
    network, _, shapes = prepared(build, 64, 96)
    plan = windows_of(network, shapes, side=40)
    size = 40 // stride
    assert plan == WindowPlan((min(size, 64 // stride),) * 2, (64 // stride, 96 // stride), (64, 96), stride, halo)


def test_map_is_cut_where_a_window_and_its_halo_are_smaller():
    for side in (20, 21):
        network, _, shapes = prepared(residual, side, side)
        assert (windows_of(network, shapes) is None) == (side == 20)  # 12 and twice 4
    network, _, shapes = prepared(residual, 60, 10)
    assert windows_of(network, shapes).size == (12, 10)


@pytest.mark.parametrize(("source", "stride"), [(40, 2), (39, 2), (20, 1)])
def test_windows_of_a_line(source, stride):
    """4 of 20 output pixels with a halo of 3: those that would begin before the border or end behind it move inside."""
    plan = WindowPlan((4, 4), (20, 20), (source, source), stride, 3)
    generator = torch.Generator().manual_seed(0)
    drawn = [plan.draw(generator) for _ in range(4000)]
    expected = set()
    for start in range(17):
        first = min(max(start - 3, 0), 10)
        stop = source if first == 10 else (first + 10) * stride
        expected.add(((first * stride, stop), (start - first, start - first + 4), (start, start + 4)))
    for axis in (0, 1):
        lines = [(w.read[axis], w.use[axis], w.aim[axis]) for w in drawn]
        assert set(lines) == expected
        # 21 places from -2 to 18: the first three are the one at the border, and so are the last.
        for start, share in ((0, 3), (1, 1), (8, 1), (15, 1), (16, 3)):
            found = sum(aim[0] == start for _, _, aim in lines) / len(lines)
            assert found == pytest.approx(share / 21, abs=0.02)


def test_a_line_as_long_as_the_window_is_read_whole():
    plan = WindowPlan((4, 6), (4, 20), (9, 41), 2, 1)
    for seed in range(5):
        window = plan.draw(torch.Generator().manual_seed(seed))
        assert (window.read[0], window.use[0], window.aim[0]) == ((0, 9), (0, 4), (0, 4))


def test_unit_of_other_than_images_is_run_whole():
    network, _, shapes = prepared(residual)
    for shape in ((2, 4, 48), (2, 4, 48, 48, 2), (2, 4)):
        assert windows_of(network, shapes | {"input": shape}) is None
    assert windows_of(network, shapes | {"output": (2, 4, 47, 48)}) is None


# --- what is run whole -------------------------------------------------------------------------------------------


def global_pool(g: Graph, height: int, width: int) -> None:
    g.op("GlobalAveragePool", [g.conv(image(g, height, width), 4, 4)], "pool", "output")


def gate(g: Graph, height: int, width: int) -> None:
    x = g.conv(image(g, height, width), 4, 4)
    s = g.op("Sigmoid", [g.conv(g.op("GlobalAveragePool", [x], "squeeze"), 4, 4, "excite", kernel=1)], "sigmoid")
    g.op("Mul", [x, s], "scale", "output")


def upsampling(g: Graph, height: int, width: int) -> None:
    inputs = [g.conv(image(g, height, width), 4, 4), g.weight("deconv.weight", (4, 4, 2, 2), 16)]
    g.op("ConvTranspose", inputs, "deconv", "output", kernel_shape=[2, 2], strides=[2, 2])


def resized(g: Graph, height: int, width: int) -> None:
    scales = g.constant("scales", np.array([1, 1, 2, 2], np.float32))
    g.op("Resize", [g.conv(image(g, height, width), 4, 4), "", scales], "resize", "output")


def attention_like(g: Graph, height: int, width: int) -> None:
    g.op("Softmax", [g.conv(image(g, height, width), 4, 4)], "softmax", "output", axis=-1)


def place_dependent(g: Graph, height: int, width: int) -> None:
    x = g.conv(image(g, height, width), 4, 4)
    g.op("Add", [x, g.weight("positions", (1, 4, height, width), 1)], "add", "output")


def column_dependent(g: Graph, height: int, width: int) -> None:
    g.op("Mul", [g.conv(image(g, height, width), 4, 4), g.weight("columns", (width,), 1)], "mul", "output")


def oblong(g: Graph, height: int, width: int) -> None:
    g.op("Conv", [image(g, height, width), g.weight("w", (4, 4, 1, 3), 12)], "conv", "output", pads=[0, 1, 0, 1])


def pads_by_size(g: Graph, height: int, width: int) -> None:
    """SAME_UPPER at stride 2 pads even and odd sizes differently: a cut would shift everything by one."""
    weight = g.weight("w", (4, 4, 3, 3), 36)
    g.op("Conv", [image(g, height, width), weight], "conv", "output", strides=[2, 2], auto_pad="SAME_UPPER")


def pool_pads_by_size(g: Graph, height: int, width: int) -> None:
    pool = {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}
    g.op("MaxPool", [g.conv(image(g, height, width), 4, 4)], "maxpool", "output", **pool)


def no_padding(g: Graph, height: int, width: int) -> None:
    g.op("Conv", [image(g, height, width), g.weight("w", (4, 4, 3, 3), 36)], "conv", "output")


def flattened(g: Graph, height: int, width: int) -> None:
    g.op("Flatten", [g.conv(image(g, height, width), 4, 4)], "flatten", "output", axis=1)


@pytest.mark.parametrize(
    "build",
    [
        global_pool,
        gate,
        upsampling,
        resized,
        attention_like,
        place_dependent,
        column_dependent,
        oblong,
        pads_by_size,
        pool_pads_by_size,
        no_padding,
        flattened,
    ],
)
def test_unit_that_looks_further_than_its_neighbourhood_is_run_whole(build):
    network, _, shapes = prepared(build, 49, 49)
    assert windows_of(network, shapes) is None


def test_pool_that_gives_indices_is_run_whole():
    g = Graph()
    x = g.conv(image(g, 48, 48), 4, 4)
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    g.nodes.append(helper.make_node("MaxPool", [x], ["output", "indices"], name="maxpool", **pool))
    results = [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)]
    results.append(helper.make_tensor_value_info("indices", TensorProto.INT64, None))
    graph = helper.make_graph(g.nodes, "indices", g.inputs, results, g.initializers)
    network = network_of(
        onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]))
    )
    shapes = {"input": (1, 4, 48, 48), "conv_out": (1, 4, 48, 48), "output": (1, 4, 24, 24), "indices": (1, 4, 24, 24)}
    assert plan_windows(network.steps, shapes, ["input"], ["output"], SIDE) is None


def test_small_maps_are_run_whole():
    network, _, shapes = prepared(residual, 15, 15)
    assert windows_of(network, shapes) is None
    assert windows_of(network, shapes, side=4) is not None


def test_side_0_is_whole_maps():
    network, _, shapes = prepared(residual, 48, 48)
    assert windows_of(network, shapes, side=0) is None


def test_unit_with_two_outputs_is_run_whole():
    network, _, shapes = prepared(residual)
    assert plan_windows(network.steps, shapes, network.inputs, ["output", "conv2_out"], SIDE) is None


def test_inputs_of_different_sizes_are_run_whole():
    network, _, shapes = prepared(two_inputs)
    shapes["skip"] = (1, 4, 24, 24)
    assert windows_of(network, shapes) is None


def test_long_side_alone_is_cut():
    network, data, shapes = prepared(residual, 14, 60)
    plan = windows_of(network, shapes)
    assert plan.size == (12, 12)
    whole = network.run(data)["output"]
    window = plan.draw(torch.Generator().manual_seed(0))
    (top, bottom), (left, right) = window.read
    cut = network.run({"input": data["input"][:, :, top:bottom, left:right]})["output"]
    used = cut[:, :, slice(*window.use[0]), slice(*window.use[1])]
    assert torch.allclose(used, whole[:, :, slice(*window.aim[0]), slice(*window.aim[1])], atol=1e-5)
