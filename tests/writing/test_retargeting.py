"""Forms for targets: each computes what the file for ONNX Runtime does, and keeps the rules."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from helpers.architectures import PATTERNS, residual
from helpers.crossed import crossed
from helpers.stages import feeds, simulated, tensors
from helpers.targets import makers, outputs, quantized
from onnx import TensorProto

from mrecg_onnx.converters import normalize
from mrecg_onnx.converters.errors import ExportError, ModelError, SettingsError
from mrecg_onnx.planning import BitRule
from mrecg_onnx.planning.branches import branch_narrow_reads
from mrecg_onnx.running import open_with
from mrecg_onnx.settings import Settings
from mrecg_onnx.targets.target import TARGET_NAMES, load_target
from mrecg_onnx.writing.containers import contained
from mrecg_onnx.writing.qdq import export
from mrecg_onnx.writing.retargeting import retarget, target_of
from mrecg_onnx.writing.rule_checks import broken_rules

OTHERS = [name for name in TARGET_NAMES if name != "ort"]


@pytest.mark.parametrize(("pattern", "target"), crossed([*PATTERNS, "padded"], TARGET_NAMES))
def test_somebody_reads_what_every_node_makes(pattern: str, target: str) -> None:
    bits = (8, 8) if target == "tensorrt" else (4, 4)
    rules, plain = load_target(target), quantized(pattern, target, *bits)
    for container in rules.containers:
        held = contained(retarget(plain, rules), container).model
        read = {name for node in held.graph.node for name in node.input} | {v.name for v in held.graph.output}
        assert not [node.name for node in held.graph.node if not read.intersection(node.output)]
        assert not [tensor.name for tensor in held.graph.initializer if tensor.name not in read]


@pytest.mark.parametrize("target", OTHERS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_form_computes_the_same_and_keeps_the_rules(pattern: str, target: str) -> None:
    plain, rules = quantized(pattern, target), load_target(target)
    before = plain.SerializeToString()
    aimed = retarget(plain, rules)
    assert plain.SerializeToString() == before
    assert target_of(aimed) == target
    assert not broken_rules(aimed, rules)
    onnx.checker.check_model(aimed, full_check=True)
    for x, y in zip(outputs(plain), outputs(aimed), strict=True):
        np.testing.assert_array_equal(x, y)
    outputs(aimed, "all")


@pytest.mark.parametrize("bits", [(2, 2), (8, 8), (4, 32)])
def test_tensorrt_at_other_widths(bits: tuple[int, int]) -> None:
    plain = quantized("residual", "tensorrt", *bits)
    aimed = retarget(plain, load_target("tensorrt"))
    for x, y in zip(outputs(plain), outputs(aimed), strict=True):
        np.testing.assert_array_equal(x, y)


def test_tensorrt_has_int8_zero_point_zero_float_bias_and_float_bounds() -> None:
    aimed = retarget(quantized("conv_clip", "tensorrt"), load_target("tensorrt"))
    constants = {t.name: t for t in aimed.graph.initializer}
    zeros = [constants[n.input[2]] for n in aimed.graph.node if n.op_type.endswith("uantizeLinear")]
    assert {t.data_type for t in zeros} == {TensorProto.INT8}
    assert not any(onnx.numpy_helper.to_array(t).any() for t in zeros)
    made = {o: n for n in aimed.graph.node for o in n.output}
    for node in aimed.graph.node:
        if node.op_type == "Conv":
            assert constants[node.input[2]].data_type == TensorProto.FLOAT
        if node.op_type == "Clip":
            assert constants[node.input[1]].data_type == TensorProto.FLOAT
            assert made[node.input[0]].op_type == "Conv"


@pytest.mark.parametrize("swapped", [False, True])
def test_tensorrt_gets_one_operand_of_an_add_straight_from_its_layer(swapped: bool) -> None:
    """The skip operand alone is quantized; where both come from a convolution, the shortcut: the one with fewer in front."""
    model = residual()
    for node in model.graph.node:
        if node.op_type == "Add" and swapped:
            node.input[:] = node.input[::-1]
    stage = simulated(model, wbits=4, abits=4, target="tensorrt")
    plain = export(stage.graph, stage.simulation, {"mrecg_onnx.version": "test"}).model
    aimed = retarget(plain, load_target("tensorrt"))
    made = makers(aimed)
    straight = [made[name] for node in aimed.graph.node if node.op_type == "Add" for name in node.input]
    assert [n.name for n in straight if n.op_type == "Conv"] == ["conv2", "conv4"]
    assert sum(n.op_type == "DequantizeLinear" for n in straight) == 2
    for x, y in zip(outputs(plain), outputs(aimed), strict=True):
        np.testing.assert_array_equal(x, y)


def test_tensorrt_quantizes_no_output_for_float_ops_alone() -> None:
    aimed = retarget(quantized("sigmoid_gate", "tensorrt"), load_target("tensorrt"))
    made = makers(aimed)
    assert {made[n.input[0]].op_type for n in aimed.graph.node if n.op_type == "Sigmoid"} == {"Conv"}


def test_asymmetric_eight_bits_are_refused_where_the_target_is_symmetric() -> None:
    with pytest.raises(SettingsError, match=r"'input' has asymmetric codes of 8 bits .*--target tensorrt"):
        retarget(quantized("conv_clip"), load_target("tensorrt"))


def test_only_a_file_for_ort_gets_another_target() -> None:
    aimed = retarget(quantized("conv_clip"), load_target("portable"))
    with pytest.raises(ModelError, match="was written for portable"):
        retarget(aimed, load_target("qnn"))
    with pytest.raises(ModelError, match=r"opset 19, target .* takes up to"):
        retarget(quantized("conv_clip"), dataclasses.replace(load_target("qnn"), opset=(11, 12)))


def test_packed_weights_take_no_type_that_the_target_lacks() -> None:
    """OpenVINO has types of 4 bits and none of 2, which the opsets of its rules say."""
    rules = load_target("openvino")
    model = retarget(quantized("residual", "openvino", 2, 4), rules)
    kinds = {t.data_type for t in contained(model, "packed", highest=rules.opset[1]).model.graph.initializer}
    assert kinds & {TensorProto.UINT4, TensorProto.INT4}
    assert TensorProto.UINT2 not in kinds
    unlimited = contained(model, "packed").model
    assert TensorProto.UINT2 in {t.data_type for t in unlimited.graph.initializer}
    pytest.importorskip("openvino")
    with pytest.raises(ExportError, match="OpenVINO refuses the file: Unsupported data type UINT2"):
        open_with(rules, unlimited, None)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_activations_of_sixteen_bits(pattern: str) -> None:
    """All of them are uint16, the file computes what the simulation does, and nothing in it needs what ONNX Runtime lacks."""
    model, rules = PATTERNS[pattern](), load_target("qnn")
    stage = simulated(model, wbits=4, abits=16, target="qnn")
    plain = export(stage.graph, stage.simulation, {"mrecg_onnx.version": "test"})
    assert not plain.integer_layers
    assert not plain.integer_ops
    aimed = retarget(plain.model, rules)
    onnx.checker.check_model(aimed, full_check=True)
    assert not broken_rules(aimed, rules)
    assert {i.version for i in aimed.opset_import if not i.domain} == {21}
    constants = {t.name: t for t in aimed.graph.initializer}
    kinds = {constants[n.input[2]].data_type for n in aimed.graph.node if n.op_type == "QuantizeLinear"}
    assert kinds == {TensorProto.UINT16}
    expected = stage.simulation.run({n: torch.from_numpy(x) for n, x in feeds(aimed, 8).items()})
    for level in ("off", "all"):
        for name, found in zip(expected, outputs(aimed, level), strict=True):
            np.testing.assert_allclose(expected[name].numpy(), found, rtol=0, atol=2e-3 * np.abs(found).max())


def test_one_layer_of_sixteen_bits() -> None:
    stage = simulated(residual(), wbits=8, abits=8, target="qnn", bits=(BitRule.parse("conv4=W4A16"),))
    assert [p.name for p in stage.simulation.plan.activations if p.bits == 16] == [
        stage.simulation.plan.layer("conv4").input
    ]
    exported = export(stage.graph, stage.simulation, {"mrecg_onnx.version": "test"})
    assert "conv4" not in exported.integer_layers["Conv"]
    assert "conv1" in exported.integer_layers["Conv"]
    aimed = retarget(exported.model, load_target("qnn"))
    for x, y in zip(outputs(exported.model), outputs(aimed), strict=True):
        np.testing.assert_array_equal(x, y)


def test_an_add_and_the_convolution_in_front_stay_apart_for_openvino() -> None:
    aimed = retarget(quantized("residual", "openvino"), load_target("openvino"))
    made = {o: n for n in aimed.graph.node for o in n.output}
    pooled = [n for n in aimed.graph.node if n.op_type == "MaxPool"]
    assert [made[n.input[0]].op_type for n in pooled] == ["QuantizeLinear"] * 3  # one Add has one, the other two
    assert not any(n.op_type == "MaxPool" for n in retarget(quantized("residual"), load_target("qnn")).graph.node)


@pytest.mark.parametrize("target", OTHERS)
def test_branches_of_a_stream_are_plain(target: str) -> None:
    settings = {"wbits": 4, "abits": 4, "target": target}
    graph = normalize(residual())
    assert branch_narrow_reads(graph, Settings(**settings)) == 1
    stage = simulated(graph, tensors(residual()), **settings)
    plain = export(stage.graph, stage.simulation, {"mrecg_onnx.version": "test"}).model
    aimed = retarget(plain, load_target(target))
    assert [n.op_type for model in (plain, aimed) for n in model.graph.node].count("LeakyRelu") == 1
    for x, y in zip(outputs(plain), outputs(aimed), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("pattern", ["residual", "conv_clip", "depthwise"])
def test_every_layer_for_qnn_is_followed_by_its_quantizer(pattern: str) -> None:
    """Bounds stand between quantizers of their own: QNN runs a layer with anything else behind it in float."""
    aimed = retarget(quantized(pattern), load_target("qnn"))
    made, read = makers(aimed), {}
    for node in aimed.graph.node:
        for name in node.input:
            read.setdefault(name, []).append(node)
    clips = [node for node in aimed.graph.node if node.op_type == "Clip"]
    assert clips
    for clip in clips:
        before = made[clip.input[0]]
        (behind,) = read[clip.output[0]]
        assert (before.op_type, behind.op_type) == ("DequantizeLinear", "QuantizeLinear")
        assert before.input[1:] == behind.input[1:] == made[before.input[0]].input[1:]
    for node in aimed.graph.node:
        if node.op_type == "Conv":
            (behind,) = read[node.output[0]]
            behind = read[behind.output[0]][0] if behind.op_type == "Relu" else behind
            assert behind.op_type == "QuantizeLinear"


def test_four_bits_for_qnn_have_no_zero_points() -> None:
    """Symmetric weights lie in INT4 beside activations in UINT8; others stay in INT8 and are named."""
    rules = load_target("qnn")
    stage = simulated(residual(), wbits=4, abits=8, target="qnn", symmetric_weights=True)
    plain = export(stage.graph, stage.simulation, {"mrecg_onnx.version": "test"}).model
    aimed = retarget(plain, rules)
    typed = contained(aimed, "typed", highest=rules.opset[1], zero_points=False)
    assert not broken_rules(typed.model, rules)
    kinds = {tensor.name: tensor.data_type for tensor in typed.model.graph.initializer}
    weights = [kind for name, kind in kinds.items() if name.endswith("weight_quantized")]
    assert weights.count(TensorProto.INT4) == len(weights) - 2  # first and last have 8 bits
    assert TensorProto.UINT4 not in kinds.values()
    for x, y in zip(outputs(aimed), outputs(typed.model), strict=True):
        np.testing.assert_array_equal(x, y)
    assert contained(typed.model, "int8").model.SerializeToString() == aimed.SerializeToString()
    shifted = contained(retarget(quantized("residual"), rules), "typed", highest=rules.opset[1], zero_points=False)
    assert not {TensorProto.INT4, TensorProto.UINT4} & {t.data_type for t in shifted.model.graph.initializer}
    assert "--symmetric-weights" in shifted.notes[0]


def test_openvino_gets_clips_of_values_and_of_codes_where_channels_have_bounds() -> None:
    stage = simulated(PATTERNS["conv_relu"](), wbits=4, abits=4, first_last_bits=4, target="openvino")
    rules, metadata = load_target("openvino"), {"mrecg_onnx.version": "test"}
    plain = export(stage.graph, stage.simulation, metadata).model
    aimed = retarget(plain, rules)
    assert {makers(aimed)[n.input[0]].op_type for n in aimed.graph.node if n.op_type == "Clip"} <= {"Conv", "Relu"}
    grid = stage.simulation.activations["relu_out"]
    ceiling = torch.tensor([3.0, 15.0, 7.0, 15.0] * 4)
    stage.simulation.activations["relu_out"] = dataclasses.replace(grid, ceiling=ceiling)
    plain = export(stage.graph, stage.simulation, metadata).model
    aimed = retarget(plain, rules)
    assert sum(n.op_type == "Min" for n in aimed.graph.node) == 1
    assert not broken_rules(aimed, rules)
    for x, y in zip(outputs(plain), outputs(aimed), strict=True):
        np.testing.assert_array_equal(x, y)
    with pytest.raises(SettingsError, match="'relu_out' has widths a channel, which target portable cannot hold"):
        retarget(plain, load_target("portable"))
