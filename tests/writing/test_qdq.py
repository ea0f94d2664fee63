"""The exported file: valid, in the 8-bit container, and computing what the simulation computes, bit by bit where it can."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from helpers.architectures import PATTERNS, Graph, residual
from helpers.crossed import crossed
from helpers.export_patterns import GRAPHS, MORE, tail
from helpers.stages import feeds, simulated
from helpers.written import exported, initializers, maker, node, run
from onnx import helper
from PIL import Image

import mrecg_onnx
from mrecg_onnx.checking.verification import verify
from mrecg_onnx.quantization import QuantizationResult, quantize
from mrecg_onnx.settings import Settings
from mrecg_onnx.writing.qdq import export

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


WIDTHS = [(4, 4), (2, 4), (8, 8), (4, 32)]


@pytest.fixture(scope="module")
def quantized(tmp_path_factory) -> Callable[[str, int, int], QuantizationResult]:
    """Results of :func:`quantize` with rounding to nearest, made once a graph and width."""

    @cache
    def calibration(name: str) -> Path:
        path = tmp_path_factory.mktemp("calibration") / f"{name}.npz"
        np.savez(path, **feeds(GRAPHS[name]()))
        return path

    @cache
    def result(name: str, wbits: int, abits: int) -> QuantizationResult:
        chosen = Settings(method="nearest", equalize="off", wbits=wbits, abits=abits)
        return quantize(GRAPHS[name](), calibration(name), chosen)

    return result


# --- every pattern at every width --------------------------------------------------------------------------------

CASES = crossed(PATTERNS, WIDTHS, flat=True) + crossed(MORE, [(4, 4), (8, 8)], flat=True)
every = pytest.mark.parametrize(("name", "wbits", "abits"), CASES, ids=str)


@every
def test_file_is_valid_standard_and_has_the_users_in_and_outputs(quantized, name, wbits, abits):
    source, model = GRAPHS[name](), quantized(name, wbits, abits).model
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain for entry in model.opset_import} == {""}
    assert {n.domain for n in model.graph.node} <= {"", "ai.onnx"}
    assert model.opset_import[0].version >= 13
    for kind in ("input", "output"):
        own, users = ([(v.name, v.type.SerializeToString()) for v in getattr(m.graph, kind)] for m in (model, source))
        assert [n for n, _ in own] == [n for n, _ in users]
        assert own == users or kind == "output"  # inference may know more of an output's shape
    names = [n.name for n in model.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    kept = {n.name for n in source.graph.node if n.op_type in {"Conv", "ConvTranspose", "Gemm", "MatMul", "Add"}}
    assert kept <= {*names, "matmul_bias"}  # that Add is part of a Gemm now


@every
def test_file_computes_what_the_simulation_does(quantized, name, wbits, abits):
    verification = quantized(name, wbits, abits).verification
    # 120 dB is float32; a code on the border between two steps falls the other way now and then: then it is that image alone.
    assert verification.sqnr_db >= 60 or (verification.sqnr_db >= 50 and verification.exact >= 0.9)
    assert verification.agreement in {None, 1.0}
    # Weights alone: ONNX Runtime runs MatMul on 8-bit weights with activations it quantizes itself.
    assert verification.sqnr_fused_db >= (35 if abits == 32 else 50)


@every
def test_runtime_fuses_what_the_plan_expects(quantized, name, wbits, abits):
    verification = quantized(name, wbits, abits).verification
    assert verification.warnings == ()
    assert all(verification.fused.get(kernel, 0) >= count for kernel, count in verification.expected.items())
    assert bool(verification.expected) == (abits != 32)


@every
def test_codes_stay_within_their_bits(quantized, name, wbits, abits):
    result = quantized(name, wbits, abits)
    values = initializers(result.model)
    written = json.loads({p.key: p.value for p in result.model.metadata_props}["mrecg_onnx.bits"])
    assert written == {a.name: a.bits for a in result.plan.activations} | {
        x.weight: x.wbits for x in result.plan.layers
    }
    for layer in result.plan.layers:
        users = [n for n in result.model.graph.node if n.name == layer.name]
        dequantize = maker(result.model, users[0].input[0 if layer.op == "MatMul" and layer.axis == 0 else 1])
        codes, scale, zero = (values[n] for n in dequantize.input)
        assert dequantize.op_type == "DequantizeLinear"
        assert (codes.dtype, codes.shape) == (np.int8, layer.shape)
        assert scale.shape == zero.shape == (layer.shape[layer.axis],)
        assert not zero.any()
        assert helper.get_node_attr_value(dequantize, "axis") == layer.axis
        channels = np.moveaxis(codes.astype(int), layer.axis, 0).reshape(codes.shape[layer.axis], -1)
        # code - zero point: any window of 2^b values that holds 0.
        assert (channels.max(1) - channels.min(1)).max() <= 2**layer.wbits - 1
        assert channels.max() <= 2**layer.wbits - 1
        assert channels.min() >= -(2**layer.wbits - 1)
    for entry in result.plan.activations:
        quantize_node = node(result.model, f"{entry.name}_QuantizeLinear")
        scale, zero = (values[n] for n in quantize_node.input[1:])
        assert (scale.shape, zero.shape, zero.dtype) == ((), (), np.uint8)
        assert zero <= 2**entry.bits - 1
        readers = [n for n in result.model.graph.node if quantize_node.output[0] in n.input]
        if entry.bits < 8:
            (clip,) = readers
            low, high = (values[n] for n in clip.input[1:])
            assert (clip.op_type, low.dtype, high.dtype) == ("Clip", np.uint8, np.uint8)
            assert 0 <= low < high <= 2**entry.bits - 1


@every
def test_activations_are_seen_to_use_their_bits_only(quantized, name, wbits, abits):
    result = quantized(name, wbits, abits)
    model = onnx.ModelProto()
    model.CopyFrom(result.model)
    codes = {}
    for dequantize in model.graph.node:
        if dequantize.op_type == "DequantizeLinear" and dequantize.name.endswith("_DequantizeLinear"):
            name_of = dequantize.name.removesuffix("_DequantizeLinear")
            if name_of in {m for a in result.plan.activations for m in a.members}:
                codes[name_of] = dequantize.input[0]
    have = {v.name for v in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=c) for c in sorted(set(codes.values()) - have))
    # What a Pad of codes alone reads is not dequantized.
    on_codes = {n.input[0].rsplit("_", 1)[0] for n in model.graph.node if n.op_type == "Pad"}
    assert set(codes) | on_codes == {m for a in result.plan.activations for m in a.members} | on_codes
    if not codes:
        return
    widths = {m: a.bits for a in result.plan.activations for m in a.members}
    values = run(model, feeds(GRAPHS[name](), 8, seed=3), list(codes.values()))
    for own, value in zip(codes, values, strict=True):
        assert value.dtype == np.uint8
        assert value.max() <= 2 ** widths[own] - 1


def test_float_weights_are_gone_and_the_rest_of_the_file_stays():
    source = residual()
    source.metadata_props.add(key="author", value="somebody")
    source.doc_string = "a model"
    stage = simulated(source)
    model = export(stage.graph, stage.simulation, {"mrecg_onnx.version": "0"}).model
    assert not {layer.weight for layer in stage.plan.layers} & {t.name for t in model.graph.initializer}
    metadata = {p.key: p.value for p in model.metadata_props}
    assert (metadata["author"], metadata["mrecg_onnx.version"]) == ("somebody", "0")
    used = {i for n in model.graph.node for i in n.input}
    assert {t.name for t in model.graph.initializer} <= used


def test_export_leaves_the_float_graph_alone():
    stage = simulated(residual())
    before = {v.name for n in stage.graph.graph for v in n.outputs} | set(stage.graph.graph.initializers)
    first = export(stage.graph, stage.simulation, {}).model.SerializeToString()
    assert {v.name for n in stage.graph.graph for v in n.outputs} | set(stage.graph.graph.initializers) == before
    assert export(stage.graph, stage.simulation, {}).model.SerializeToString() == first


@pytest.mark.parametrize(
    ("build", "layer"), [(residual, "conv3"), (PATTERNS["conv_transpose"], "deconv"), (PATTERNS["gemm"], "fc")]
)
def test_excluded_layer_keeps_its_float_weight_at_every_level(build, layer):
    """Left alone, ONNX Runtime quantizes float weights behind a DequantizeLinear itself, to 8 bits per tensor."""
    stage, result = exported(build(), exclude=(f"^{layer}$",))
    kept = node(result.model, layer)
    assert np.array_equal(initializers(result.model)[kept.input[1]], initializers(build())[f"{layer}.weight"])
    found = verify(result, stage.simulation, stage.data)
    assert found.warnings == ()
    assert found.sqnr_fused_db > 60
    integer = sum(found.fused.get(kernel, 0) for kernel in ("QLinearConv", "QGemm"))
    assert integer == sum(found.expected.get(kernel, 0) for kernel in ("QLinearConv", "QGemm"))


def test_names_that_are_taken_are_not_taken_again():
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 8, output="relu_out_scale"), output="relu_out")
    g.conv(g.op("Neg", [x], "relu_out_QuantizeLinear"), 8, 8, "conv2", output="output")
    _, result = exported(g.model())
    onnx.checker.check_model(result.model, full_check=True)
    names = [n.name for n in result.model.graph.node]
    assert len(set(names)) == len(names)


# --- the whole way, with images ----------------------------------------------------------------------------------


def test_images_and_preprocessing_are_remembered(tmp_path):
    g = Graph()
    x = g.relu(g.conv(g.input(3, 16), 3, 8))
    model = tail(g, x)
    source, folder = tmp_path / "model.onnx", tmp_path / "images"
    onnx.save(model, source)
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i:02}.png")
    output = tmp_path / "out.onnx"
    result = mrecg_onnx.quantize(source, folder, Settings(method="nearest"), output=output)
    assert result.output == output
    assert (result.images, result.skipped) == (12, ())
    written = onnx.load(output)
    assert written.SerializeToString() == result.model.SerializeToString()
    metadata = {p.key: p.value for p in written.metadata_props}
    assert metadata["mrecg_onnx.version"] == mrecg_onnx.__version__
    assert json.loads(metadata["mrecg_onnx.settings"])["wbits"] == 4
    assert json.loads(metadata["mrecg_onnx.units"]) == [["conv", "conv2"], ["fc"]]
    assert json.loads(metadata["mrecg_onnx.bits"])["conv2.weight"] == 4
    preprocess = json.loads(metadata["mrecg_onnx.settings"])["preprocess"]
    assert preprocess["mean"] == pytest.approx([0.485, 0.456, 0.406])
    used = mrecg_onnx.validate(source, output, folder).preprocess
    assert used is not None
    assert used.to_json() == json.loads(metadata["mrecg_onnx.preprocess"])
    json.dumps(result.to_json())


def test_model_of_fixed_batch_is_quantized(tmp_path):
    g = Graph()
    x = g.relu(g.conv(g.input(batch=1), 8, 8))
    model = tail(g, x)
    np.savez(tmp_path / "calib.npz", **feeds(model, 10))
    result = quantize(model, tmp_path / "calib.npz", Settings(method="nearest"))
    assert result.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    assert result.verification.sqnr_db > 60
    assert result.verification.warnings == ()


def dilated_pool() -> onnx.ModelProto:
    """An average pool that ONNX Runtime's integer kernel does not do, between two layers."""
    g = Graph(opset=19)
    x = g.conv(g.input(), 8, 8, "conv")
    x = g.op("AveragePool", [x], "pool", kernel_shape=[2, 2], dilations=[2, 2])
    g.conv(x, 8, 8, "conv2", output="output")
    return g.model()


def test_pool_without_an_integer_kernel_is_parted_from_its_quantizer():
    stage, result = exported(dilated_pool())
    apart = maker(result.model, node(result.model, "pool_out_QuantizeLinear").input[0])
    assert (apart.name, apart.op_type, list(apart.input)) == ("pool_float", "LeakyRelu", ["pool_out"])
    assert [a.f for a in apart.attribute if a.name == "alpha"] == [1.0]
    shapes = {v.name: v for v in result.model.graph.value_info}
    assert shapes[apart.output[0]].type == shapes["pool_out"].type
    (found,) = run(result.model, {n: x.numpy() for n, x in stage.data.items()}, optimized=True)
    wanted = stage.simulation.run(stage.data)["output"].numpy()
    assert np.abs(found - wanted).max() <= 1.01 * float(stage.simulation.activations["output"].scale)
    assert np.mean(found != wanted) < 0.01


def test_pool_at_an_output_of_the_graph_needs_nothing_behind_it():
    g = Graph(opset=19)
    g.op("AveragePool", [g.conv(g.input(), 8, 8, "conv")], "pool", "output", kernel_shape=[2, 2], dilations=[2, 2])
    _, result = exported(g.model())
    pool = node(result.model, "pool")
    assert "LeakyRelu" not in {n.op_type for n in result.model.graph.node} or pool.output[0] != "output"


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_layer_with_a_float_weight_reads_one_equal_scale_a_channel(groups, transposed, bias):
    """ConvTranspose keeps its inputs in the weight's first axis, Conv a group's in the second."""
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 12, "conv"))
    shape = (12, 8 // groups, 1, 1) if transposed else (8, 12 // groups, 1, 1)
    inputs = [x, g.weight("own.weight", shape, 12), *([g.bias("own.bias", 8)] if bias else [])]
    x = g.op("ConvTranspose" if transposed else "Conv", inputs, "own", group=groups)
    g.conv(g.relu(x, "relu2"), 8, 8, "conv2", output="output")
    stage, result = exported(g.model(), exclude=["own"])
    reader = maker(result.model, node(result.model, "own").input[0])
    values = initializers(result.model)
    scale, zero = (values[name] for name in reader.input[1:])
    grid = stage.simulation.activations["relu_out"]
    assert scale.tolist() == [float(grid.scale)] * 12
    assert zero.tolist() == [int(grid.zero_point)] * 12
    assert [a.i for a in reader.attribute if a.name == "axis"] == [1]
    (found,) = run(result.model, {n: x.numpy() for n, x in stage.data.items()}, optimized=True)
    wanted = stage.simulation.run(stage.data)["output"].numpy()
    assert np.mean(np.abs(found - wanted) > 1e-5) < 0.01


@pytest.mark.parametrize(("opset", "version"), [(11, 6), (17, 8)])
def test_old_files_are_raised_and_new_ones_stay(opset, version):
    g = Graph(opset=13)
    g.relu(g.conv(g.input(), 8, 8, "conv"), output="output")
    stage = simulated(g.model())
    stage.graph.opset_imports[""], stage.graph.ir_version = opset, version
    result = export(stage.graph, stage.simulation, {})
    assert {o.domain: o.version for o in result.model.opset_import}[""] == max(13, opset)
    assert result.model.ir_version == max(7, version)


def test_float_bias_beside_a_quantized_weight_keeps_its_input_apart():
    """Behind one scale a tensor ONNX Runtime would quantize the bias itself, to int32."""
    stage = simulated(residual())
    bias = stage.network.step("conv2").module.bias.detach()
    stage.simulation.biases["conv2"] = bias + 1e9
    result = export(stage.graph, stage.simulation, {})
    assert result.float_biases == ["conv2"]
    reader = maker(result.model, node(result.model, "conv2").input[0])
    values = initializers(result.model)
    assert values[reader.input[1]].shape == values[reader.input[2]].shape == (8,)
    assert values[maker(result.model, node(result.model, "conv1").input[0]).input[1]].shape == ()
