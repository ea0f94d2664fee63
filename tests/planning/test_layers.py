"""Layers: what is known of them and to how many bits they are quantized, on small graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers.architectures import PATTERNS, Graph, residual, two_inputs
from helpers.stages import planned

from mrecg_onnx.converters.errors import ModelError, SettingsError
from mrecg_onnx.planning import BitRule
from mrecg_onnx.planning.plan import FLOAT_BITS, LayerPlan

if TYPE_CHECKING:
    import onnx


#: Bits of every weight at W4A4, by layer.
WEIGHTS = {
    "conv_relu": {"conv": 8, "conv2": 8},
    "conv_clip": {"conv": 8, "conv2": 4, "fc": 8},
    "depthwise": {"expand": 8, "depthwise": 4, "project": 4, "fc": 8},
    "grouped": {"conv": 8, "grouped": 4, "fc": 8},
    "residual": {"stem": 8, "conv1": 4, "conv2": 4, "conv3": 4, "conv4": 4, "shortcut": 4, "fc": 8},
    "concat": {"stem": 8, "left": 4, "right": 4, "conv": 4, "fc": 8},
    "max_pool": {"conv": 8, "conv2": 4, "fc": 8},
    "average_pool": {"conv": 8, "conv2": 4, "fc": 8},
    "global_pool": {"conv": 8, "head": 8},
    "gemm": {"fc1": 8, "fc": 8},
    "matmul_add": {"conv": 8, "matmul": 8},
    "sigmoid_gate": {"conv": 8, "reduce": 4, "expand": 4, "conv2": 4, "fc": 8},
    "hardswish_gate": {"conv": 8, "conv2": 4, "excite": 4, "fc": 8},
    "conv_transpose": {"conv": 8, "deconv": 4, "conv2": 8},
    "two_inputs": {"conv_left": 8, "conv_right": 8, "fc": 8},
    "view_chain": {"conv": 8, "fc": 8},
}


def layers(model: onnx.ModelProto, **settings) -> dict[str, LayerPlan]:
    return {layer.name: layer for layer in planned(model, **settings)[1].layers}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_weight_widths_of_every_pattern(pattern):
    assert {name: layer.wbits for name, layer in layers(PATTERNS[pattern]()).items()} == WEIGHTS[pattern]


def test_layers_are_described():
    found = layers(PATTERNS["depthwise"]())
    middle = found["depthwise"]
    assert (middle.op, middle.weight, middle.bias) == ("Conv", "depthwise.weight", "depthwise.bias")
    assert (middle.shape, middle.axis, middle.stride, middle.groups) == ((16, 1, 3, 3), 0, (2, 2), 16)
    assert (middle.params, middle.macs) == (144, 144 * 8 * 8)
    assert (middle.input, middle.output) == ("clip_out", "depthwise_out")
    assert [(f.first, f.last) for f in found.values()] == [(True, False), (False, False), (False, False), (False, True)]
    last = found["fc"]
    assert (last.op, last.shape, last.axis, last.stride, last.params, last.macs) == ("Gemm", (10, 8), 0, (), 80, 80)


def test_output_channels_are_where_the_op_has_them():
    transposed = layers(PATTERNS["conv_transpose"]())["deconv"]
    assert (transposed.shape, transposed.axis) == ((16, 8, 2, 2), 1)
    assert transposed.macs == transposed.params * 8 * 8
    product = layers(PATTERNS["matmul_add"]())["matmul"]
    assert (product.op, product.shape, product.axis) == ("Gemm", (16, 10), 1)
    g = Graph()
    x = g.op("Reshape", [g.input(), g.constant("shape", np.array([0, 64, 32]))], "rows")
    x = g.op("MatMul", [x, g.weight("right.weight", (32, 16), 32)], "right")
    g.op("MatMul", [g.weight("left.weight", (5, 64), 64), x], "left", output="output")
    found = layers(g.model())
    assert (found["right"].axis, found["left"].axis) == (1, 0)
    assert (found["right"].input, found["left"].input) == ("rows_out", "right_out")
    assert found["right"].macs == 64 * 32 * 16


def test_every_input_of_a_graph_has_a_first_layer():
    found = layers(two_inputs())
    assert [(name, layer.first, layer.last) for name, layer in found.items()] == [
        ("conv_left", True, False),
        ("conv_right", True, False),
        ("fc", False, True),
    ]


def test_rules_set_single_layers_and_later_ones_win():
    rules = (BitRule.parse("conv=W8A8"), BitRule.parse("conv[34]=W2"), BitRule.parse("^conv4$=A3"))
    found = planned(residual(), bits=rules)[1]
    assert {x.name: (x.wbits, x.abits) for x in found.layers} == {
        "stem": (8, 8),
        "conv1": (8, 8),
        "conv2": (8, 8),
        "conv3": (2, 8),
        "conv4": (2, 3),
        "shortcut": (4, 4),
        "fc": (8, 8),
    }
    widths = {entry.name: entry.bits for entry in found.activations}
    # conv3 wants 8 bits, the shortcut 4: one tensor, one quantizer, the narrower.
    assert widths["add_relu_out"] == 4
    assert (widths["relu1_out"], widths["relu3_out"]) == (8, 3)


def test_rule_on_activations_does_not_bring_them_back_at_abits_32():
    found = planned(residual(), abits=32, bits=(BitRule.parse("conv1=W2A4"),))[1]
    assert found.activations == ()
    assert (found.layer("conv1").wbits, found.layer("conv1").abits) == (2, FLOAT_BITS)


@pytest.mark.parametrize(
    ("settings", "option"), [({"exclude": ("conv9",)}, "--exclude"), ({"bits": (BitRule("stemm", 8, 8),)}, "--bits")]
)
def test_pattern_that_matches_nothing_is_an_error_that_names_what_is_near(settings, option):
    with pytest.raises(
        SettingsError, match=rf"^{option} '.*' matches no node; names look like .*(conv|stem)"
    ) as caught:
        planned(residual(), **settings)
    assert caught.value.exit_code == 2


def test_modules_are_matched_where_no_name_is():
    model = residual()
    for number, node in enumerate(model.graph.node):  # as torch's exporter does: weights are called after their modules
        scopes = f"['', 'body', 'body.{node.name}', 'op']"
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
        node.name = f"node_{node.op_type}_{number}"
    layers = planned(model)[1].layers
    modules = {layer.weight.removesuffix(".weight"): layer.name for layer in layers}
    found = planned(model, exclude=("conv2", "body.add$"), bits=(BitRule(r"conv3", 2, 3),))[1]
    assert [layer.name for layer in found.layers if layer.excluded] == [modules["conv2"]]
    assert (found.layer(modules["conv3"]).wbits, found.layer(modules["conv3"]).abits) == (2, 3)
    # A name goes before a module: what a pattern meant before modules were looked at, it means still.
    both = planned(model, exclude=(f"{modules['conv1']}$|conv2",))[1].layers
    assert [layer.name for layer in both if layer.excluded] == [modules["conv1"]]
    with pytest.raises(SettingsError, match=r"--exclude 'konv2' matches no node; names look like .*\(conv2\)"):
        planned(model, exclude=("konv2",))


def test_bits_rules_only_see_layers():
    with pytest.raises(SettingsError, match="--bits 'relu1' matches no node"):
        planned(residual(), bits=(BitRule("relu1", 8, 8),))


def test_excluding_every_layer_is_an_error():
    with pytest.raises(SettingsError, match="leaves no layer"):
        planned(residual(), exclude=(".",))


def test_model_without_weights_is_an_error():
    g = Graph()
    g.relu(g.input(), output="output")
    with pytest.raises(ModelError, match="nothing to quantize"):
        planned(g.model())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_plan_at_float_activations_has_weights_only(pattern):
    _, plan = planned(PATTERNS[pattern](), abits=32)
    assert plan.activations == ()
    assert {layer.abits for layer in plan.layers} == {FLOAT_BITS}
    assert {layer.name: layer.wbits for layer in plan.layers} == WEIGHTS[pattern]
