"""Reconstruction units: the published partitions and schemes, and what holds for any graph."""

from __future__ import annotations

import json
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from helpers.architectures import ARCHITECTURES, PATTERNS, Graph, export
from helpers.stages import planned

from mrecg_onnx.planning.granularity import module_capacity
from mrecg_onnx.planning.schemes import read_scheme
from mrecg_onnx.planning.units import MAX_CHAIN, MAX_PIECE, plan_layer_units, plan_units

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from mrecg_onnx.planning.plan import Plan, UnitPlan


@lru_cache
def architecture(name: str) -> tuple[ir.Model, Plan]:
    return planned(export(ARCHITECTURES[name]()))


# --- the published partitions (Ma et al. 2023 and its code) -------------------------------------------------------------


def resnet_block(stage: int, block: int, convolutions: int) -> set[str]:
    where = f"/layer{stage}/layer{stage}.{block}"
    layers = {f"{where}/conv{i + 1}/Conv" for i in range(convolutions)}
    # The first block of a stage changes width or stride; ResNet-18's first stage does neither.
    if block == 0 and not (stage == 1 and convolutions == 2):
        layers.add(f"{where}/downsample/downsample.0/Conv")
    return layers


def resnet(depths: tuple[int, ...], convolutions: int) -> dict[str, set[str]]:
    units = {"stem": {"/conv1/Conv"}}
    units |= {f"{s}.{b}": resnet_block(s, b, convolutions) for s, depth in enumerate(depths, 1) for b in range(depth)}
    return units | {"fc": {"/fc/Gemm"}}


def regnet(depths: tuple[int, ...]) -> dict[str, set[str]]:
    units = {"stem": {"/stem/stem.0/Conv"}}
    for s, depth in enumerate(depths, 1):
        for b in range(depth):
            where = f"/trunk_output/block{s}/block{s}-{b}"
            layers = {f"{where}/f/{part}/{part}.0/Conv" for part in "abc"}
            units[f"s{s}b{b + 1}"] = layers | ({f"{where}/proj/proj.0/Conv"} if b == 0 else set())
    return units | {"fc": {"/fc/Gemm"}}


def mobilenet() -> dict[str, set[str]]:
    def block(i: int) -> set[str]:
        where = f"/features/features.{i}/conv"
        return {f"{where}/conv.0/conv.0.0/Conv", f"{where}/conv.1/conv.1.0/Conv", f"{where}/conv.2/Conv"}

    first = "/features/features.1/conv"
    stem = {"/features/features.0/features.0.0/Conv", f"{first}/conv.0/conv.0.0/Conv", f"{first}/conv.1/Conv"}
    head = {"/features/features.18/features.18.0/Conv", "/classifier/classifier.1/Gemm"}
    return {"stem+1": stem} | {str(i): block(i) for i in range(2, 18)} | {"18+fc": head}


UNITS = {
    "resnet18": resnet((2, 2, 2, 2), 2),
    "resnet50": resnet((3, 4, 6, 3), 3),
    "regnet_x_600mf": regnet((1, 3, 5, 7)),
    "mobilenet_v2": mobilenet(),
}
#: Scheme lists of the published configurations and what they join.
SCHEMES = {
    "resnet18": ([1, 2, [3, 3], [4, 4], 5, 6, 7, 8], ["1.1 2.0", "2.1 3.0"]),
    "resnet50": (
        [1, 2, 3, [4, 4], 5, 6, [7, 7, 7], 8, 9, 10, [11, 11], 12, 13, 14],
        ["1.2 2.0", "2.3 3.0 3.1", "3.5 4.0"],
    ),
    "mobilenet_v2": (
        [1, 2, [3, 3], 4, [5, 5], 6, [7, 7, 7], [8, 8, 8], 9, [10, 10], 11],
        ["3 4", "6 7", "9 10 11", "12 13 14", "16 17"],
    ),
    "regnet_x_600mf": (
        [1, 2, 3, 4, [5, 5, 5], 6, 7, [8, 8], 9, 10, 11, 12, [13, 13], 14],
        ["s2b3 s3b1 s3b2", "s3b5 s4b1", "s4b6 s4b7"],
    ),
}
COUNTS = {"resnet18": (10, 8), "resnet50": (18, 14), "mobilenet_v2": (18, 11), "regnet_x_600mf": (18, 14)}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_units_of_the_published_architectures(name):
    _, plan = architecture(name)
    assert len(plan.units) == COUNTS[name][0]
    assert [set(unit.layers) for unit in plan.units] == list(UNITS[name].values())


@pytest.mark.parametrize("name", ["resnet18", "regnet_x_600mf", "mobilenet_v2"])
def test_units_do_not_depend_on_the_exporter_folding_batch_normalization(name):
    _, plan = planned(export(ARCHITECTURES[name](), bn_folded=False))
    assert [set(unit.layers) for unit in plan.units] == list(UNITS[name].values())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_published_schemes_join_what_the_authors_joined(name, tmp_path):
    _, plan = architecture(name)
    scheme, joined = SCHEMES[name]
    path = tmp_path / "scheme.json"
    path.write_text(json.dumps({"scheme": scheme}), encoding="utf-8")
    groups = read_scheme(path, plan.units)
    assert len(groups) == COUNTS[name][1]
    merged = [set().union(*(set(plan.units[i].layers) for i in group)) for group in groups if len(group) > 1]
    assert merged == [set().union(*(UNITS[name][part] for part in entry.split())) for entry in joined]
    # The same partition, stated by the names of its layers.
    path.write_text(
        json.dumps({"units": [[n for i in g for n in plan.units[i].layers] for g in groups]}), encoding="utf-8"
    )
    assert read_scheme(path, plan.units) == groups


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scheme_is_part_of_the_plan(name, tmp_path):
    path = tmp_path / "scheme.json"
    path.write_text(json.dumps(SCHEMES[name][0]), encoding="utf-8")
    graph, _ = architecture(name)
    _, plan = planned(graph, scheme=str(path))
    merged = plan.merged_units()
    assert len(merged) == COUNTS[name][1]
    assert plan.scheme == str(path)
    assert [n for unit in merged for n in unit.layers] == [n for unit in plan.units for n in unit.layers]
    assert sum(unit.capacity for unit in merged) == pytest.approx(sum(unit.capacity for unit in plan.units))
    # A chain of blocks: one tensor in and one out, also after merging.
    assert all(len(unit.inputs) == 1 and len(unit.outputs) == 1 for unit in merged)
    assert all(a.outputs == b.inputs for a, b in pairwise(merged))


# --- any graph ---------------------------------------------------------------------------------------------------


def u_net() -> onnx.ModelProto:
    """Three levels with long skips: alive from the way down to the way up."""
    g = Graph()
    x, skips, width = g.input(), [], 8
    for level in range(3):
        x = g.relu(g.conv(x, width, 8 * 2**level, f"down{level}a"), f"relu_d{level}a")
        width = 8 * 2**level
        x = g.relu(g.conv(x, width, width, f"down{level}b"), f"relu_d{level}b")
        skips.append((x, width))
        x = g.op("MaxPool", [x], f"pool{level}", kernel_shape=[2, 2], strides=[2, 2])
    x = g.relu(g.conv(x, width, width, "bottom"), "relu_bottom")
    for level, (skip, wide) in reversed(list(enumerate(skips))):
        inputs = [x, g.weight(f"up{level}.weight", (width, wide, 2, 2), width), g.bias(f"up{level}.bias", wide)]
        x = g.op("ConvTranspose", inputs, f"up{level}", kernel_shape=[2, 2], strides=[2, 2])
        x = g.op("Concat", [x, skip], f"concat{level}", axis=1)
        x = g.relu(g.conv(x, 2 * wide, wide, f"up{level}a"), f"relu_u{level}a")
        x = g.relu(g.conv(x, wide, wide, f"up{level}b"), f"relu_u{level}b")
        width = wide
    g.conv(x, width, 3, "head", kernel=1, output="output")
    return g.model()


def inception() -> onnx.ModelProto:
    """Two blocks of four branches (one, two and three convolutions, a pool and one) that meet in a Concat."""
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 16, "stem"), "stem_relu")
    for b in range(2):

        def unit(x: str, name: str, kernel: int, cin: int = 4, b: int = b) -> str:
            return g.relu(g.conv(x, cin, 4, f"b{b}_{name}", kernel=kernel), f"b{b}_{name}_relu")

        one = unit(x, "one", 1, 16)
        two = unit(unit(x, "two_a", 1, 16), "two_b", 3)
        three = unit(unit(unit(x, "three_a", 1, 16), "three_b", 3), "three_c", 3)
        pool = g.op("MaxPool", [x], f"b{b}_maxpool", kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4)
        x = g.op("Concat", [one, two, three, unit(pool, "pool", 1, 16)], f"b{b}_concat", axis=1)
    g.classifier(x, 16)
    return g.model()


def dense() -> onnx.ModelProto:
    """A dense block of twelve layers, each reading the Concat of all before it: nothing inside is a cut."""
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 8, "stem"), "stem_relu")
    parts = [x]
    for i in range(12):
        y = g.op("Concat", parts, f"concat{i}", axis=1) if len(parts) > 1 else parts[0]
        parts.append(g.relu(g.conv(y, 8 + 4 * i, 4, f"dense{i}", kernel=1), f"dense{i}_relu"))
    x = g.op("Concat", parts, "concat", axis=1)
    g.classifier(g.relu(g.conv(x, 56, 8, "transition", kernel=1), "transition_relu"), 8)
    return g.model()


def plain_chain(layers: int) -> onnx.ModelProto:
    g = Graph()
    x = g.input()
    for i in range(layers):
        x = g.relu(g.conv(x, 8, 8, f"conv{i}"), f"relu{i}")
    g.classifier(x, 8)
    return g.model()


def gated() -> onnx.ModelProto:
    """A residual block whose branch ends in squeeze and excitation."""
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 8, "stem"), "stem_relu")
    y = g.conv(g.relu(g.conv(x, 8, 8, "conv1"), "relu1"), 8, 8, "conv2")
    s = g.relu(g.conv(g.op("GlobalAveragePool", [y], "squeeze"), 8, 4, "reduce", kernel=1), "reduce_relu")
    s = g.op("Sigmoid", [g.conv(s, 4, 8, "expand", kernel=1)], "sigmoid")
    x = g.relu(g.op("Add", [g.op("Mul", [y, s], "scale"), x], "add"), "add_relu")
    g.classifier(x, 8)
    return g.model()


GRAPHS = PATTERNS | {f.__name__: f for f in (u_net, inception, dense, gated)} | {"chain7": lambda: plain_chain(7)}


def layers_of(units: tuple[UnitPlan, ...]) -> list[tuple[str, ...]]:
    return [unit.layers for unit in units]


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("planner", [plan_units, plan_layer_units])
def test_units_are_a_partition_in_running_order(name, planner):
    graph, plan = planned(GRAPHS[name]())
    units = planner(graph, plan.layers, 1.6)
    order = [node.name for node in graph.graph]
    nodes = [n for unit in units for n in unit.nodes]
    assert len(set(nodes)) == len(nodes)
    assert sorted(n for unit in units for n in unit.layers) == sorted(layer.name for layer in plan.layers)
    have = {value.name for value in graph.graph.inputs}
    for unit in units:
        assert unit.layers
        assert set(unit.layers) <= set(unit.nodes)
        assert list(unit.nodes) == sorted(unit.nodes, key=order.index)
        # What it reads was fed or made before, and the loss can be taken somewhere.
        assert set(unit.inputs) <= have
        assert unit.outputs
        have |= set(unit.outputs)
        assert unit.capacity == module_capacity([plan.layer(n) for n in unit.layers], 1.6)
    assert {value.name for value in graph.graph.outputs} <= have


@pytest.mark.parametrize("name", ["residual", "concat", "inception", "gated", "two_inputs"])
def test_branch_structure_is_one_unit_with_one_output(name):
    graph, plan = planned(GRAPHS[name]())
    assert all(len(unit.outputs) == 1 for unit in plan.units)
    joins = [node for node in graph.graph if node.op_type in {"Add", "Concat"}]
    for join in joins:
        (unit,) = [u for u in plan.units if join.name in u.nodes]
        makers = {v.producer().name for v in join.inputs if v.producer() is not None}
        assert makers & set(unit.nodes)


def test_inception_blocks_are_units():
    _, plan = planned(inception())
    block = {"one", "two_a", "two_b", "three_a", "three_b", "three_c", "pool"}
    expected = [{"stem"}, {f"b0_{n}" for n in block}, {f"b1_{n}" for n in block}, {"fc"}]
    assert [set(names) for names in layers_of(plan.units)] == expected


def test_gate_inside_a_residual_block_belongs_to_it():
    _, plan = planned(gated())
    assert layers_of(plan.units) == [("stem",), ("conv1", "conv2", "reduce", "expand"), ("fc",)]


def test_gate_outside_belongs_to_the_layer_in_front():
    _, plan = planned(PATTERNS["sigmoid_gate"]())
    assert layers_of(plan.units) == [("conv", "reduce", "expand", "conv2"), ("fc",)]


@pytest.mark.parametrize("name", ["u_net", "dense"])
def test_large_structures_are_cut_inside(name):
    graph, plan = planned(GRAPHS[name]())
    assert len(plan.units) > 3
    assert all(len(unit.layers) <= MAX_PIECE for unit in plan.units)
    # No layer is cut from its activation function.
    clamps = {n.name for n in graph.graph if n.op_type == "Relu"}
    assert not any(unit.nodes[0] in clamps for unit in plan.units)
    # A cut inside a structure: some unit reads more than one tensor, or hands on more than one.
    assert any(len(unit.inputs) > 1 or len(unit.outputs) > 1 for unit in plan.units)


@pytest.mark.parametrize(("count", "sizes"), [(1, [2]), (2, [3]), (3, [1, 3]), (6, [1, 3, 3]), (7, [2, 3, 3])])
def test_chain_without_shortcut_groups_at_most_three_layers_the_remainder_first(count, sizes):
    _, plan = planned(plain_chain(count))
    assert [len(unit.layers) for unit in plan.units] == sizes
    assert max(sizes) <= MAX_CHAIN


def test_linear_layer_ends_a_chain():
    _, plan = planned(PATTERNS["depthwise"]())
    assert layers_of(plan.units) == [("expand", "depthwise", "project"), ("fc",)]


def test_layer_units_have_one_layer_each():
    graph, plan = planned(PATTERNS["residual"](), method="adaround")
    assert layers_of(plan.units) == [(layer.name,) for layer in plan.layers]
    stem, *_, last = plan.units
    assert stem.nodes == ("stem", "stem_relu")
    assert last.nodes == ("fc",)
    shortcut = next(unit for unit in plan.units if unit.layers == ("shortcut",))
    assert set(shortcut.inputs) == {"add_relu_out", "conv4_out"}
    assert {"add2", "add2_relu", "pool", "flatten"} < set(shortcut.nodes)
    assert graph.graph.outputs[0].name in last.outputs


def test_ops_in_front_of_the_first_layer_belong_to_its_unit():
    g = Graph()
    x = g.op("Mul", [g.input(), g.input(name="mask")], "mask_it")
    g.classifier(g.relu(g.conv(x, 8, 8)), 8)
    _, plan = planned(g.model())
    assert plan.units[0].nodes[:2] == ("mask_it", "conv")
    assert set(plan.units[0].inputs) == {"input", "mask"}
