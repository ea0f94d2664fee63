"""Placement: who is quantized to how many bits, on small graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers.architectures import PATTERNS, Graph, concat, conv_clip, conv_relu, max_pool, residual
from helpers.stages import planned

from mrecg_onnx.converters import normalize
from mrecg_onnx.planning import BitRule
from mrecg_onnx.planning.layers import plan_layers
from mrecg_onnx.planning.placement import place
from mrecg_onnx.planning.plan import FLOAT_BITS, ActivationPlan
from mrecg_onnx.settings import Settings

if TYPE_CHECKING:
    import onnx

#: Bits of every quantizer at W4A4, by tensor.
ACTIVATIONS = {
    "conv_relu": {"input": 8, "relu_out": 8, "output": 8},
    "conv_clip": {"input": 8, "clip_out": 4, "conv2_out": 8, "pool_out": 8},
    "depthwise": {"input": 8, "clip_out": 4, "clip2_out": 4, "project_out": 8, "pool_out": 8},
    "grouped": {"input": 8, "relu_out": 4, "relu2_out": 8, "pool_out": 8},
    "residual": {
        "input": 8,
        "stem_relu_out": 4,
        "relu1_out": 4,
        "conv2_out": 8,
        "add_relu_out": 4,
        "relu3_out": 4,
        "conv4_out": 8,
        "shortcut_out": 8,
        "add2_relu_out": 8,
        "pool_out": 8,
    },
    "concat": {
        "input": 8,
        "stem_relu_out": 4,
        "left_relu_out": 8,
        "right_out": 8,
        "concat_out": 4,
        "conv_out": 8,
        "pool_out": 8,
    },
    "max_pool": {"input": 8, "relu_out": 4, "relu2_out": 8, "pool_out": 8},
    "average_pool": {"input": 8, "relu_out": 8, "avgpool_out": 4, "relu2_out": 8, "pool_out": 8},
    "global_pool": {"input": 8, "relu_out": 8, "pool_out": 8, "head_out": 8},
    "gemm": {"input": 8, "relu_out": 8},
    "matmul_add": {"input": 8, "relu_out": 8, "pool_out": 8},
    "sigmoid_gate": {
        "input": 8,
        "relu_out": 8,
        "squeeze_out": 4,
        "reduce_relu_out": 4,
        "expand_out": 8,
        "sigmoid_out": 8,
        "scale_out": 4,
        "conv2_out": 8,
        "pool_out": 8,
    },
    "hardswish_gate": {
        "input": 8,
        "conv_out": 8,
        "hardswish_out": 4,
        "conv2_out": 8,
        "hardsigmoid_out": 8,
        "hardswish2_out": 8,
        "squeeze_out": 4,
        "excite_out": 8,
        "gate_out": 8,
        "scale_out": 8,
        "pool_out": 8,
    },
    "conv_transpose": {"input": 8, "relu_out": 4, "relu2_out": 8, "output": 8},
    "two_inputs": {"input": 8, "other": 8, "conv_left_out": 8, "conv_right_out": 8, "relu_out": 8, "pool_out": 8},
    "view_chain": {"input": 8, "relu_out": 8, "pool_out": 8},
}


def activations(model: onnx.ModelProto, **settings) -> dict[str, ActivationPlan]:
    return {plan.name: plan for plan in planned(model, **settings)[1].activations}


def bits(model: onnx.ModelProto, **settings) -> dict[str, int]:
    return {name: plan.bits for name, plan in activations(model, **settings).items()}


# --- every pattern -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS)
def test_activation_widths_of_every_pattern(pattern):
    assert bits(PATTERNS[pattern]()) == ACTIVATIONS[pattern]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_tensor_has_at_most_one_quantizer_and_outputs_come_from_behind_theirs(pattern):
    graph, plan = planned(PATTERNS[pattern]())
    members = [name for entry in plan.activations for name in entry.members]
    assert len(set(members)) == len(members)
    outputs = {name for entry in plan.activations for name in entry.outputs}
    assert set(members) & {value.name for value in graph.graph.outputs} == outputs
    # A Gemm writes floats itself.
    assert all(v.name not in members for v in graph.graph.outputs if v.producer().op_type == "Gemm")
    for entry in plan.activations:
        assert entry.members[0] == entry.name
        assert set(entry.reads) <= set(entry.members)
    inputs = {layer.input for layer in plan.layers}
    assert inputs <= set(members)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_clamps_of_the_patterns_are_part_of_the_quantizer_behind_them(pattern):
    graph, plan = planned(PATTERNS[pattern]())
    absorbed = {entry.absorbs for entry in plan.activations} - {None}
    assert absorbed == {n.name for n in graph.graph if n.op_type in {"Relu", "Clip"}}


# --- the rules ---------------------------------------------------------------------------------------------------


def test_branch_into_a_residual_add_has_8_bits_and_the_sum_those_of_its_reader():
    found = bits(residual(), abits=3)
    assert [found[name] for name in ("conv2_out", "conv4_out", "shortcut_out")] == [8, 8, 8]
    assert [found[name] for name in ("stem_relu_out", "relu1_out", "add_relu_out", "relu3_out")] == [3, 3, 3, 3]
    # Read by a pool only.
    assert found["add2_relu_out"] == 8


def test_max_pool_shares_the_scale_of_its_input_which_is_searched_behind_it():
    entry = activations(max_pool())["relu_out"]
    assert entry.members == ("relu_out", "maxpool_out")
    assert entry.reads == ("maxpool_out",)


def test_value_preserving_chain_is_one_group_and_the_narrowest_reader_decides():
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 8))
    pads = g.constant("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    y = g.op("Transpose", [g.op("Pad", [x, pads], "pad")], "transpose", perm=[0, 1, 3, 2])
    y = g.conv(y, 8, 8, "narrow")
    z = g.conv(x, 8, 8, "wide")
    g.op("MatMul", [g.op("Concat", [g.op("Slice", [y, *slices(g)], "slice"), z], "concat", axis=1),
                    g.weight("last", (16, 4), 16)], "matmul", output="output")  # fmt: skip
    entry = activations(g.model(), bits=(BitRule("narrow", None, 3), BitRule("wide", None, 6)))["relu_out"]
    assert entry.members == ("relu_out", "pad_out", "transpose_out")
    assert set(entry.reads) == {"relu_out", "transpose_out"}
    assert entry.bits == 3


def slices(g: Graph) -> list[str]:
    ends = {"starts": [0, 0], "ends": [16, 16], "axes": [2, 3]}
    return [g.constant(name, np.array(value)) for name, value in ends.items()]


def test_pad_with_another_value_than_zero_changes_the_range():
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 8))
    pads = g.constant("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    x = g.op("Pad", [x, pads, g.constant("one", np.float32(1))], "pad")
    g.conv(x, 8, 8, "conv2", output="output")
    assert {name: entry.members for name, entry in activations(g.model()).items()} == {
        "input": ("input",),
        "relu_out": ("relu_out",),
        "pad_out": ("pad_out",),
        "output": ("output",),
    }


def test_layer_that_only_float_ops_read_still_has_a_quantizer_behind_it():
    g = Graph(opset=17)
    x = g.relu(g.conv(g.input(), 8, 8))
    x = g.op("LayerNormalization", [x, g.constant("ones", np.ones(16, np.float32))], "norm")
    x = g.conv(g.op("Erf", [g.conv(x, 8, 8, "conv2")], "erf"), 8, 8, "conv3")
    g.classifier(x, 8)
    found = activations(g.model())
    assert [found[n].bits for n in ("relu_out", "norm_out", "conv2_out", "erf_out")] == [8, 4, 8, 4]
    assert found["relu_out"].absorbs == "relu"


def test_inputs_and_output_of_a_concat_have_quantizers_of_their_own():
    found = activations(concat())
    assert all(found[n].members == (n,) for n in ("stem_relu_out", "left_relu_out", "right_out", "concat_out"))


def test_bounds_of_an_absorbed_clip_are_kept():
    entry = activations(conv_clip())["clip_out"]
    assert (entry.absorbs, entry.low, entry.high) == ("clip", 0, 6)
    entry = activations(conv_relu())["relu_out"]
    assert (entry.absorbs, entry.low, entry.high) == ("relu", 0, None)


def clip_between(*, second_reader: bool = False, outputs: tuple[str, ...] = ()) -> onnx.ModelProto:
    g = Graph()
    x = g.conv(g.input(), 8, 8)
    y = g.conv(g.clip(x), 8, 8, "conv2")
    if second_reader:
        y = g.op("Add", [x, y], "add")
    g.conv(y, 8, 8, "conv3", output="output")
    return g.model("output", *outputs)


def test_clip_whose_input_has_another_reader_stays():
    found = activations(clip_between(second_reader=True))
    assert found["conv_out"].bits == 8
    assert (found["clip_out"].bits, found["clip_out"].absorbs, found["clip_out"].high) == (4, None, None)


@pytest.mark.parametrize("tensor", ["conv_out", "clip_out"])
def test_clip_at_an_output_of_the_graph_stays(tensor):
    found = activations(clip_between(outputs=(tensor,)))
    assert found["clip_out"].absorbs is None
    assert found["clip_out"].bits == 4


def test_ops_behind_the_last_layer_work_on_codes_until_a_float_op():
    g = Graph()
    x = g.conv(g.relu(g.conv(g.input(), 8, 8)), 8, 8, "conv2")
    x = g.op("Softmax", [g.op("Add", [x, x], "add")], "softmax", axis=1)
    g.op("GlobalAveragePool", [x], "pool", output="output")
    assert list(bits(g.model())) == ["input", "relu_out", "conv2_out", "add_out"]
    # Where only the inputs of layers are quantized nothing is.
    assert list(bits(g.model(), target="tensorrt")) == ["input", "relu_out"]


@pytest.mark.parametrize("last", ["Sigmoid", "Softmax"])
def test_probabilities_at_the_end_are_made_of_codes_and_float(last):
    g = Graph()
    g.op(last, [g.conv(g.relu(g.conv(g.input(), 8, 8)), 8, 8, "conv2")], "last", output="output")
    assert list(bits(g.model())) == ["input", "relu_out", "conv2_out"]


def test_what_follows_a_layer_that_writes_floats_stays_float():
    g = Graph()
    x = g.op("Flatten", [g.op("GlobalAveragePool", [g.relu(g.conv(g.input(), 8, 8))], "pool")], "flat")
    weight = g.weight("w", (8, 8), 8)
    y, z = (g.op("Gemm", [x, weight], name) for name in ("left", "right"))
    g.op("Concat", [y, z], "concat", axis=1, output="output")
    assert list(bits(g.model())) == ["input", "relu_out", "pool_out"]


def test_relu_between_a_gemm_and_a_float_op_has_a_quantizer_behind_it():
    """ONNX Runtime makes one float op of the two otherwise."""
    g = Graph()
    x = g.op("Flatten", [g.op("GlobalAveragePool", [g.relu(g.conv(g.input(), 8, 8))], "pool")], "flat")
    y = g.op("Relu", [g.op("Gemm", [x, g.weight("w", (8, 8), 8)], "left")], "left_relu")
    z = g.op("Gemm", [x, g.weight("v", (8, 8), 8)], "right")
    g.op("Concat", [y, z], "concat", axis=1, output="output")
    assert list(bits(g.model())) == ["input", "relu_out", "pool_out", "left_relu_out"]


def test_output_in_the_middle_is_taken_from_behind_a_quantizer_of_8_bits_only():
    found = activations(clip_between(outputs=("conv_out",)))
    assert (found["conv_out"].bits, found["conv_out"].outputs) == (8, ("conv_out",))
    found = activations(clip_between(outputs=("clip_out",)))
    assert (found["clip_out"].bits, found["clip_out"].outputs) == (4, ())
    found = activations(clip_between(outputs=("clip_out",)), abits=8)
    assert (found["clip_out"].bits, found["clip_out"].outputs, found["clip_out"].absorbs) == (8, ("clip_out",), "clip")


def test_heads_that_are_joined_into_an_output_are_known_to_be():
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 8))
    heads = [g.op("Transpose", [g.conv(x, 8, 4, name)], f"{name}_t", perm=[0, 2, 3, 1]) for name in ("boxes", "scores")]
    g.op("Concat", heads, "concat", axis=1, output="output")
    found = activations(g.model())
    assert (found["output"].joins, found["output"].spare) == (("boxes_out", "scores_out"), True)
    assert all(not entry.joins for name, entry in found.items() if name != "output")
    assert found["boxes_out"].members == ("boxes_out", "boxes_t_out")


def test_image_keeps_8_bits_when_first_and_last_layer_are_narrower():
    found = planned(residual(), first_last_bits=5)[1]
    assert {layer.name: layer.wbits for layer in found.layers if layer.wbits != 4} == {"stem": 5, "fc": 5}
    widths = {entry.name: entry.bits for entry in found.activations}
    assert (widths["input"], widths["pool_out"]) == (8, 5)


def test_lone_layer_is_first_and_last():
    g = Graph()
    g.conv(g.input(), 8, 4, output="output")
    (only,) = planned(g.model())[1].layers
    assert (only.first, only.last, only.wbits, only.abits) == (True, True, 8, 8)
    assert bits(g.model()) == {"input": 8, "output": 8}


# --- settings ----------------------------------------------------------------------------------------------------


def test_excluded_layer_stays_float_and_asks_for_nothing():
    found = planned(residual(), exclude=("^conv4$",))[1]
    excluded = found.layer("conv4")
    assert (excluded.excluded, excluded.wbits, excluded.abits) == (True, FLOAT_BITS, FLOAT_BITS)
    assert "conv4" not in {layer.name for layer in found.quantized_layers}
    widths = {entry.name: entry.bits for entry in found.activations}
    # conv3 in front runs in integers and needs a quantizer; 4 bits would serve nobody.
    assert widths["relu3_out"] == 8
    assert widths["conv4_out"] == 8


def test_excluded_op_takes_no_part():
    found = activations(residual(), exclude=("^add$", "^stem_relu$"))
    # The Add runs in float: nobody needs its inputs in integers but the layers that make them.
    assert found["add_relu_out"].absorbs == "add_relu"
    assert found["stem_relu_out"].absorbs is None
    assert found["stem_out"].bits == 8


def test_rule_reaches_first_and_last_layers_too():
    found = planned(residual(), bits=(BitRule.parse("stem|fc=W3A5"),))[1]
    assert (found.layer("stem").wbits, found.layer("fc").wbits) == (3, 3)
    widths = {entry.name: entry.bits for entry in found.activations}
    assert (widths["input"], widths["pool_out"]) == (5, 5)


def test_protected_quantizer_is_raised_to_8_bits_and_says_so():
    graph = normalize(residual())
    settings = Settings()
    described = plan_layers(graph, settings)
    found = {p.name: p for p in place(graph, described, settings, frozenset({"relu1_out", "conv2_out"}))}
    assert (found["relu1_out"].bits, found["relu1_out"].protected) == (8, True)
    # It had 8 bits anyway: nothing was raised.
    assert (found["conv2_out"].bits, found["conv2_out"].protected) == (8, False)
    plain = {p.name: p for p in place(graph, described, settings)}
    assert {name for name in plain if plain[name] != found[name]} == {"relu1_out"}
