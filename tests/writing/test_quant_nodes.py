"""Quant nodes of qonnx's domain: what they say, that they come back as they were, and that qonnx computes the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from helpers.architectures import PATTERNS
from helpers.contained import VERSION
from helpers.learned import small
from helpers.stages import feeds, simulated
from helpers.targets import makers, quantized
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from mrecg_onnx.converters.errors import ExportError
from mrecg_onnx.running import open_session, open_with
from mrecg_onnx.targets import load_target
from mrecg_onnx.writing.containers import contained, container_of, runnable
from mrecg_onnx.writing.qdq import export
from mrecg_onnx.writing.quant_nodes import DOMAIN, from_quant, to_quant
from mrecg_onnx.writing.retargeting import retarget
from mrecg_onnx.writing.rule_checks import broken_rules, remarks

RULES = load_target("qonnx")


def outputs(model: onnx.ModelProto, count: int = 4) -> list[np.ndarray]:
    return open_session(model, level="off", threads=1).run(None, feeds(model, count))


def widths(model: onnx.ModelProto) -> dict[str, tuple[float, int, int]]:
    """Width, sign and narrowness of every Quant node by what it makes."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return {
        n.output[0]: (
            float(constants[n.input[3]]),
            *(next(a.i for a in n.attribute if a.name == kind) for kind in ("signed", "narrow")),
        )
        for n in model.graph.node
        if n.op_type == "Quant"
    }


@pytest.mark.parametrize("calibrated", ["qonnx", "ort"])
@pytest.mark.parametrize("pattern", [*PATTERNS, "padded"])
def test_every_form_computes_what_the_file_for_onnx_runtime_does(pattern: str, calibrated: str) -> None:
    plain = quantized(pattern, calibrated)
    aimed = retarget(plain, RULES)
    assert not broken_rules(aimed, RULES)
    held = contained(aimed, "qonnx").model
    for model in (aimed, held):
        onnx.checker.check_model(model, full_check=True)
    assert container_of(held) == "qonnx"
    assert {n.op_type for n in held.graph.node} & {"Quant", "QuantizeLinear", "DequantizeLinear"} == {"Quant"}
    assert {n.domain for n in held.graph.node if n.op_type == "Quant"} == {DOMAIN}
    back = runnable(held)
    assert back.SerializeToString() == aimed.SerializeToString()
    assert contained(back, "qonnx").model.SerializeToString() == held.SerializeToString()
    for one, other in zip(outputs(plain), outputs(back), strict=True):
        np.testing.assert_array_equal(one, other)
    zeros = {t.name: numpy_helper.to_array(t) for t in aimed.graph.initializer if t.name.endswith("_zero_point")}
    if calibrated == "qonnx":
        assert not any(zero.any() for zero in zeros.values())
        assert not remarks(aimed, RULES)


@pytest.mark.parametrize(("wbits", "abits"), [(2, 2), (3, 5), (4, 4), (7, 6), (8, 8)])
def test_widths_and_signs_are_those_that_were_asked_for(wbits: int, abits: int) -> None:
    stage = simulated(small(), wbits=wbits, abits=abits, target="qonnx")
    aimed = retarget(export(stage.graph, stage.simulation, VERSION).model, RULES)
    found = widths(contained(aimed, "qonnx").model)
    for layer in stage.plan.layers:
        width = found.pop(f"{layer.weight}_dequantized")
        assert width == (layer.wbits, 1, int(layer.wbits == 8)), layer
    for plan in stage.plan.activations:
        grid = stage.simulation.activations[plan.name]
        name = f"{plan.name}_dequantized" if f"{plan.name}_dequantized" in found else plan.name
        assert found.pop(name) == (plan.bits, int(bool(grid.zero_point)), 0)
    assert not found


@pytest.mark.parametrize("wbits", range(2, 9))
def test_stored_values_quantize_to_the_learned_codes(wbits: int) -> None:
    for target in ("qonnx", "ort"):
        plain = quantized("residual", target, wbits, 4)
        constants = {t.name: numpy_helper.to_array(t) for t in plain.graph.initializer}
        aimed = retarget(plain, RULES)
        values = {t.name: numpy_helper.to_array(t) for t in aimed.graph.initializer}
        clips = {n.input[0]: n for n in aimed.graph.node if n.op_type == "Clip"}
        seen = 0
        for node in (n for n in aimed.graph.node if n.op_type == "QuantizeLinear" and n.input[0] in values):
            weight, scale, zero = (values[name] for name in node.input)
            shape = [-1 if axis == 0 else 1 for axis in range(weight.ndim)]
            low, high = (int(values[name]) for name in clips[node.output[0]].input[1:])
            codes = np.clip(np.rint(weight / scale.reshape(shape)) + zero.astype(int).reshape(shape), low, high)
            learned = constants[f"{node.input[0]}_quantized"].astype(int)
            np.testing.assert_array_equal(codes - zero.astype(int).reshape(shape), learned)
            assert next(a.i for a in node.attribute if a.name == "axis") == 0
            seen += 1
        assert seen == 7


def test_what_fpga_tools_cannot_read_is_not_there() -> None:
    for pattern in ("padded", "average_pool", "max_pool", "view_chain", "conv_clip", "residual"):
        aimed = retarget(quantized(pattern, "qonnx"), RULES)
        made = makers(aimed)
        readers: dict[str, list[str]] = {}
        for node in aimed.graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node.op_type)
        for node in aimed.graph.node:
            if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
                assert len(node.input) == 3
            if node.op_type == "QuantizeLinear":
                assert readers[node.output[0]] in (["Clip"], ["DequantizeLinear"])
            if node.op_type == "DequantizeLinear":
                assert made[node.input[0]].op_type in {"Clip", "QuantizeLinear"}
            if node.op_type == "Clip" and made.get(node.input[0], node).op_type == "QuantizeLinear":
                assert readers[node.output[0]] == ["DequantizeLinear"]
            if node.op_type == "Pad":
                assert made[node.input[0]].op_type != "QuantizeLinear"
            assert node.op_type != "LeakyRelu"
            if node.op_type == "Conv":
                assert {a.name for a in node.attribute} >= {"dilations", "group", "kernel_shape", "pads", "strides"}


def test_bounds_that_no_width_has_stand_in_front() -> None:
    """The bound of a Relu6 that is no end of the codes, and a Relu in front of codes around 0."""
    stage = simulated(PATTERNS["conv_clip"](), wbits=4, abits=4, target="qonnx")
    bounded = next(p for p in stage.plan.activations if p.high == 6.0)
    grid = stage.simulation.activations[bounded.name]
    for scale, zero, ops in ((0.6, 0.0, {"Clip"}), (0.6, 8.0, {"Relu"}), (1.1, 8.0, {"Clip"}), (0.4, 0.0, set())):
        changed = replace(grid, scale=torch.tensor(scale), zero_point=torch.tensor(zero))
        stage.simulation.activations[bounded.name] = changed
        plain = export(stage.graph, stage.simulation, VERSION).model
        aimed = retarget(plain, RULES)
        values = {t.name: numpy_helper.to_array(t) for t in aimed.graph.initializer}
        quantize = next(
            n
            for n in aimed.graph.node
            if n.op_type == "QuantizeLinear" and np.all(values[n.input[1]] == np.float32(scale))
        )
        front = makers(aimed)[quantize.input[0]]
        assert {front.op_type} - {"Conv"} == ops
        clip = next(n for n in aimed.graph.node if quantize.output[0] in n.input)
        assert [int(values[n]) for n in clip.input[1:]] == ([-8, 7] if zero else [0, 15])
        for one, other in zip(outputs(plain), outputs(aimed), strict=True):
            np.testing.assert_array_equal(one, other)


def test_zero_points_of_other_files_are_remarked() -> None:
    said = remarks(retarget(quantized("residual"), RULES), RULES)
    assert len(said) == 1
    assert "weights and" in said[0]
    assert "quantize with --target qonnx" in said[0]
    assert not remarks(quantized("residual"), load_target("ort"))


def test_stored_codes_have_no_quant_node() -> None:
    with pytest.raises(ExportError, match=r"has stored codes: .* add --target qonnx"):
        contained(quantized("residual"), "qonnx")


@settings(max_examples=40, deadline=None)
@given(
    bits=st.integers(2, 8), signed=st.booleans(), narrow=st.booleans(), seed=st.integers(0, 2**32 - 1),
    channels=st.integers(1, 5), axis=st.sampled_from([None, 0, 1]),
)  # fmt: skip
def test_any_quantizer_comes_back(
    bits: int, signed: bool, narrow: bool, seed: int, channels: int, axis: int | None
) -> None:
    random = np.random.default_rng(seed)
    kind, top = (np.int8 if signed else np.uint8), 2 ** (bits - signed) - 1
    ends = (-top - (not narrow), top) if signed else (0, top)
    shape = (channels, 3) if axis == 0 else (3, channels)
    size = () if axis is None else (channels,)
    scale = random.uniform(0.01, 2.0, size).astype(np.float32)
    zero = random.integers(*ends, size).astype(kind) if not signed else np.zeros(size, kind)
    constants = {"s": scale, "z": zero, "a": np.array(ends[0], kind), "b": np.array(ends[1], kind)}
    where = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **where),
        helper.make_node("Clip", ["q", "a", "b"], ["c"]),
        helper.make_node("DequantizeLinear", ["c", "s", "z"], ["y"], **where),
    ]
    ends_info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("x", "y")]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", ends_info[:1], ends_info[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    quant = ir.from_proto(model)
    to_quant(quant)
    assert [n.op_type for n in quant.graph] == ["Quant"]
    found = widths(ir.to_proto(quant))
    assert found == {"y": (float(bits), int(signed), int(signed and narrow))}
    from_quant(quant)
    back = ir.to_proto(quant)
    x = {"x": (random.standard_normal(shape) * 5).astype(np.float32)}
    one, other = (open_session(m, level="off").run(None, x)[0] for m in (model, back))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("width", [0.0, 9.0, 1e9, float("nan"), float("inf"), None])
def test_a_node_of_another_width_is_refused(width: float | None) -> None:
    held = contained(retarget(quantized("residual", "qonnx"), RULES), "qonnx").model
    node = next(n for n in held.graph.node if n.op_type == "Quant")
    if width is None:
        del node.input[3]
    else:
        stored = next(t for t in held.graph.initializer if t.name == node.input[3])
        stored.CopyFrom(numpy_helper.from_array(np.float32(width), stored.name))
    with pytest.raises(ExportError, match="width"):
        runnable(held)


@pytest.mark.parametrize("pattern", ["residual", "depthwise", "conv_clip", "padded", "concat", "two_inputs"])
def test_qonnx_computes_the_same(pattern: str) -> None:
    pytest.importorskip("qonnx")
    aimed = retarget(quantized(pattern, "qonnx"), RULES)
    for model in (aimed, contained(aimed, "qonnx").model):
        opened = open_with(RULES, model, feeds(aimed, 4), written=aimed)
        assert opened.runtime.startswith("qonnx")
        assert not {"QuantizeLinear", "DequantizeLinear"} & set(opened.kernels)
        assert min(opened.sqnr_by_output.values()) > 100
