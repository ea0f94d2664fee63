"""The exported file: valid, in the 8-bit container, and computing what the simulation computes, bit by bit where it can."""

from __future__ import annotations

import json
import logging
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.architectures import PATTERNS, Graph, conv_clip, conv_relu, residual
from helpers.stages import Stage, feeds, simulated
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from PIL import Image

import mrecg_onnx
from mrecg_onnx.checking.verification import verify
from mrecg_onnx.measures import sqnr_db
from mrecg_onnx.network.simulation import QuantizedWeight
from mrecg_onnx.planning import BitRule
from mrecg_onnx.planning.activations import WEIGHTED_OPS
from mrecg_onnx.planning.plan import ActivationPlan
from mrecg_onnx.quantization import QuantizationResult, quantize
from mrecg_onnx.quantizers import Grid, fake_quantize, quantize_codes, search_range
from mrecg_onnx.runtimes import fused_op_counts, open_session, run_padded
from mrecg_onnx.settings import Settings
from mrecg_onnx.targets.target import load_target
from mrecg_onnx.writing.activations import code_bounds
from mrecg_onnx.writing.qdq import export
from mrecg_onnx.writing.retargeting import retarget

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mrecg_onnx.writing.exported import Exported

WIDTHS = [(4, 4), (2, 4), (8, 8), (4, 32)]


# --- more patterns: what the exporter treats apart ---------------------------------------------------------------


def _tail(g: Graph, x: str, cin: int = 8) -> onnx.ModelProto:
    g.classifier(g.conv(x, cin, 8, "conv2"), 8)
    return g.model()


def _pad(g: Graph, x: str, *, mode: str = "constant", value: float | None = None) -> str:
    inputs = [x, g.constant("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1]))]
    if value is not None:
        inputs.append(g.constant("pad_value", np.float32(value)))
    return g.op("Pad", inputs, "pad", mode=mode)


def pad_zero() -> onnx.ModelProto:
    """Behind a linear layer: the code of 0 is not 0."""
    g = Graph()
    return _tail(g, _pad(g, g.conv(g.input(), 8, 8)))


def pad_reflect() -> onnx.ModelProto:
    g = Graph()
    return _tail(g, _pad(g, g.relu(g.conv(g.input(), 8, 8)), mode="reflect"))


def pad_one() -> onnx.ModelProto:
    g = Graph()
    return _tail(g, _pad(g, g.relu(g.conv(g.input(), 8, 8)), value=1.0))


def pad_output() -> onnx.ModelProto:
    g = Graph()
    g.conv(_pad(g, g.relu(g.conv(g.input(), 8, 8))), 8, 8, "conv2", output="output")
    return g.model("output", "pad_out")


def clip_signed() -> onnx.ModelProto:
    g = Graph()
    return _tail(g, g.clip(g.conv(g.input(), 8, 8), low=-1.0, high=2.0))


def clip_positive() -> onnx.ModelProto:
    """The lower bound is no zero: the smallest code is above the zero point."""
    g = Graph()
    return _tail(g, g.clip(g.conv(g.input(), 8, 8), low=0.5, high=2.0))


def clip_above() -> onnx.ModelProto:
    g = Graph()
    x = g.op("Clip", [g.conv(g.input(), 8, 8), "", g.constant("high", np.float32(1.5))], "clip")
    return _tail(g, x)


def clip_twice() -> onnx.ModelProto:
    g = Graph()
    return _tail(g, g.clip(g.relu(g.conv(g.input(), 8, 8)), high=3.0))


def relu_output() -> onnx.ModelProto:
    """A Relu in the middle is an output too: both have its values from behind one quantizer."""
    g = Graph()
    g.conv(g.relu(g.conv(g.input(), 8, 8)), 8, 8, "conv2", output="output")
    return g.model("output", "relu_out")


def two_heads() -> onnx.ModelProto:
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 8))
    g.conv(x, 8, 4, "left", output="output")
    g.conv(x, 8, 2, "right", output="other")
    return g.model("output", "other")


def split() -> onnx.ModelProto:
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 8))
    sizes = g.constant("sizes", np.array([4, 4]))
    g.nodes.append(helper.make_node("Split", [x, sizes], ["a", "b"], name="split", axis=1))
    return _tail(g, g.op("Add", [g.conv("a", 4, 4, "half"), "b"], "add"), 4)


def resize_nearest() -> onnx.ModelProto:
    g = Graph()
    scales = g.constant("scales", np.array([1, 1, 2, 2], np.float32))
    x = [g.relu(g.conv(g.input(), 8, 8, stride=2)), "", scales]
    how = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return _tail(g, g.op("Resize", x, "resize", mode="nearest", **how))


def shuffle() -> onnx.ModelProto:
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 8, groups=2))
    x = g.op("Reshape", [x, g.constant("apart", np.array([0, 2, 4, 16, 16]))], "apart_it")
    x = g.op("Transpose", [x], "transpose", perm=[0, 2, 1, 3, 4])
    return _tail(g, g.op("Reshape", [x, g.constant("together", np.array([0, 8, 16, 16]))], "together_it"))


def leaky_relu() -> onnx.ModelProto:
    g = Graph()
    return _tail(g, g.op("LeakyRelu", [g.conv(g.input(), 8, 8)], "leaky", alpha=0.1))


def prelu() -> onnx.ModelProto:
    g = Graph()
    slope = g.constant("slope", np.linspace(0, 0.5, 8, dtype=np.float32).reshape(8, 1, 1))
    return _tail(g, g.op("PRelu", [g.conv(g.input(), 8, 8), slope], "prelu"))


def silu() -> onnx.ModelProto:
    g = Graph()
    x = g.conv(g.input(), 8, 8)
    return _tail(g, g.op("Mul", [x, g.op("Sigmoid", [x], "sigmoid")], "mul"))


def shared_weight() -> onnx.ModelProto:
    """Two layers read one initializer; each gets codes of its own."""
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 8))
    node = onnx.NodeProto()
    node.CopyFrom(g.nodes[0])
    node.name, node.input[0], node.output[0] = "again", x, "again_out"
    g.nodes.append(node)
    return _tail(g, g.relu("again_out", "relu2"))


def products() -> onnx.ModelProto:
    """MatMul with constants on either side, of three axes: no Gemm."""
    g = Graph()
    x = g.op("Reshape", [g.input(), g.constant("rows", np.array([0, 64, 32]))], "reshape")
    x = g.relu(g.op("MatMul", [x, g.weight("right.weight", (32, 16), 32)], "right"))
    x = g.relu(g.op("MatMul", [g.weight("left.weight", (24, 64), 64), x], "left"), "relu2")
    g.op("MatMul", [x, g.weight("last.weight", (16, 8), 16)], "last", "output")
    return g.model()


def _tokens(batch: int | str) -> onnx.ModelProto:
    """Linear layers in two nodes on three axes, in front of an addition, a Relu, a float op and the output."""
    g = Graph(opset=17)

    def linear(x: str, cin: int, cout: int, name: str, output: str | None = None) -> str:
        x = g.op("MatMul", [x, g.weight(f"{name}.weight", (cin, cout), cin)], name)
        return g.op("Add", [g.bias(f"{name}.bias", cout), x], f"{name}_add", output)

    x = g.op("Reshape", [g.input(batch=batch), g.constant("rows", np.array([0, 64, 32]))], "reshape")
    x = linear(x, 32, 16, "first")
    y = linear(g.relu(linear(x, 16, 24, "up")), 24, 16, "down")
    x = linear(g.op("Add", [x, y], "add"), 16, 16, "float")
    x = g.op("LayerNormalization", [x, g.constant("ones", np.ones(16, np.float32))], "norm")
    linear(x, 16, 8, "last", "output")
    return g.model()


def tokens() -> onnx.ModelProto:
    return _tokens("batch")


def tokens_of_one_size() -> onnx.ModelProto:
    """Here ONNX Runtime makes Gemms of MatMul and Add."""
    return _tokens(8)


def constant_operands() -> onnx.ModelProto:
    """Add and Mul of constants, which stay float, and with them the ops."""
    g = Graph()
    x = g.op("Add", [g.relu(g.conv(g.input(), 8, 8)), g.constant("offset", np.float32(0.3))], "add")
    scale = g.constant("scale", np.linspace(0.5, 2, 8, dtype=np.float32).reshape(8, 1, 1))
    x = g.op("Mul", [g.relu(g.conv(x, 8, 8, "middle"), "relu2"), scale], "mul")
    return _tail(g, x)


def normalized_between() -> onnx.ModelProto:
    """A float op between layers: the layer in front still runs in integers."""
    g = Graph(opset=17)
    x = g.relu(g.conv(g.input(), 8, 8))
    return _tail(g, g.op("LayerNormalization", [x, g.constant("ones", np.ones(16, np.float32))], "norm"))


def no_bias() -> onnx.ModelProto:
    g = Graph()
    x = g.op("Conv", [g.input(), g.weight("conv.weight", (8, 8, 3, 3), 72)], "conv", pads=[1] * 4)
    return _tail(g, g.relu(x))


def computed_bias() -> onnx.ModelProto:
    """The bias is an input of the graph: it stays float."""
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 8))
    g.inputs.append(helper.make_tensor_value_info("bias", onnx.TensorProto.FLOAT, [8]))
    x = g.op("Conv", [x, g.weight("w", (8, 8, 3, 3), 72), "bias"], "biased", pads=[1] * 4)
    g.conv(g.relu(x, "relu2"), 8, 8, "conv2", output="output")
    return g.model()


def computed_bound() -> onnx.ModelProto:
    """Clip without a lower bound whose upper one the graph computes: nothing to absorb."""
    g = Graph()
    high = g.op("Abs", [g.op("ReduceMin", [g.input()], "least", keepdims=0)], "high")
    return _tail(g, g.op("Clip", [g.conv("input", 8, 8), "", high], "clip"))


MORE = {
    build.__name__: build
    for build in (
        pad_zero,
        pad_reflect,
        pad_one,
        pad_output,
        clip_signed,
        clip_positive,
        clip_above,
        clip_twice,
        computed_bound,
        relu_output,
        two_heads,
        split,
        resize_nearest,
        shuffle,
        leaky_relu,
        prelu,
        silu,
        shared_weight,
        products,
        tokens,
        tokens_of_one_size,
        constant_operands,
        normalized_between,
        no_bias,
    )
}
GRAPHS: dict[str, Callable[[], onnx.ModelProto]] = PATTERNS | MORE


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


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    (found,) = [n for n in model.graph.node if n.name == name]
    return found


def maker(model: onnx.ModelProto, tensor: str) -> onnx.NodeProto:
    (found,) = [n for n in model.graph.node if tensor in n.output]
    return found


def run(
    model: onnx.ModelProto, fed: dict[str, np.ndarray], outputs: list[str] | None = None, *, optimized: bool = False
) -> list[np.ndarray]:
    """On ONNX Runtime as it stands, or at the default level."""
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(outputs, fed)


# --- every pattern at every width --------------------------------------------------------------------------------

CASES = [(name, *widths) for name in PATTERNS for widths in WIDTHS]
CASES += [(name, *widths) for name in MORE for widths in [(4, 4), (8, 8)]]
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


# --- the container -----------------------------------------------------------------------------------------------


def exported(model: onnx.ModelProto, **options) -> tuple[Stage, Exported]:
    stage = simulated(model, **options)
    return stage, export(stage.graph, stage.simulation, {})


@pytest.mark.parametrize("wbits", [2, 3, 4, 7])
def test_shifted_codes_are_the_asymmetric_weights(wbits):
    """Codes 0..2^b-1 with a zero point a channel, stored as code - zero point with zero point 0 (docs/method.md 6)."""
    stage, result = exported(residual(), wbits=wbits, first_last_bits=wbits)
    values = initializers(result.model)
    asymmetric = 0
    for layer in stage.plan.layers:
        quantized = stage.simulation.weights[layer.name]
        codes, zero, scale = (x.numpy() for x in (quantized.codes, quantized.grid.zero_point, quantized.grid.scale))
        assert codes.min() >= 0
        assert codes.max() <= 2**wbits - 1
        asymmetric += int((zero != 2 ** (wbits - 1)).sum())
        shape = [-1] + [1] * (codes.ndim - 1)
        reference = (codes - zero.reshape(shape)) * scale.reshape(shape)
        name = layer.weight
        stored = values[f"{name}_quantized"].astype(np.float32) * values[f"{name}_scale"].reshape(shape)
        assert np.array_equal(stored, reference.astype(np.float32))
    assert asymmetric > 0


def test_convolution_of_codes_equals_a_float_reference_from_codes_and_zero_points():
    """One layer by hand, in float64, against the file unoptimized and on the integer kernel."""
    model = conv_relu()
    stage, result = exported(model, wbits=4, first_last_bits=3)
    grids, weights = stage.simulation.activations, stage.simulation.weights["conv"]
    x = torch.from_numpy(feeds(model, 4, seed=7)["input"])
    grid = grids["input"]
    data = (quantize_codes(x, grid) - grid.zero_point).double() * grid.scale.double()
    scale, zero = weights.grid.along(4)
    kernel = (weights.codes - zero).double() * scale.double()
    bias_scale = (grid.scale * weights.grid.scale).double()
    own = stage.network.step("conv").module.bias.double()
    bias = torch.round(own / bias_scale) * bias_scale
    y = torch.nn.functional.conv2d(data, kernel, bias, padding=1).relu()
    out = grids["relu_out"]
    expected = torch.round(y / out.scale.double()).clamp(0, out.qmax).numpy()
    with_codes = onnx.ModelProto()
    with_codes.CopyFrom(result.model)
    codes = node(with_codes, "relu_out_DequantizeLinear").input[0]
    with_codes.graph.output.append(onnx.ValueInfoProto(name=codes))
    for optimized in (False, True):
        (found,) = run(with_codes, {"input": x.numpy()}, [codes], optimized=optimized)
        assert np.abs(found.astype(int) - expected).max() <= 1
        assert np.mean(found != expected) < 1e-3


def test_weight_of_eight_bits_is_symmetric():
    stage, result = exported(conv_relu(), wbits=8)
    for layer in stage.plan.layers:
        codes = initializers(result.model)[f"{layer.weight}_quantized"]
        assert codes.min() >= -127
        assert not initializers(result.model)[f"{layer.weight}_zero_point"].any()


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


@pytest.mark.parametrize(
    ("build", "options", "reasons"),
    [
        (residual, {}, {}),
        (residual, {"exclude": ("^conv3$",)}, {"conv3": "excluded"}),
        (PATTERNS["conv_transpose"], {}, {"deconv": "no integer kernel for ConvTranspose"}),
        (conv_relu, {"abits": 32}, {"conv": "activations are in float", "conv2": "activations are in float"}),
        (
            conv_relu,
            {"abits": 16, "target": "qnn"},
            {"conv": "activations of 16 bits", "conv2": "activations of 16 bits"},
        ),
        (conv_relu, {"target": "tensorrt"}, {"conv2": "not quantized"}),
        (computed_bias, {}, {"biased": "computed by the graph"}),
    ],
)
def test_all_layers_are_counted_and_those_in_float_named(build, options, reasons):
    model = build()
    data = {n: torch.from_numpy(x) for n, x in feeds(model, 8).items()}
    if "bias" in data:
        data["bias"] = torch.linspace(-1, 1, 8)
    stage = simulated(model, data, range_samples=8, **options)
    result = export(stage.graph, stage.simulation, {})
    found = verify(result, stage.simulation, stage.data)
    assert found.layers == len(stage.plan.layers) == sum(n.op_type in WEIGHTED_OPS for n in model.graph.node)
    assert found.integer_layers == found.layers - len(reasons)
    assert found.float_layers.keys() == reasons.keys()
    assert all(reasons[name] in reason for name, reason in found.float_layers.items())


def test_names_that_are_taken_are_not_taken_again():
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 8, output="relu_out_scale"), output="relu_out")
    g.conv(g.op("Neg", [x], "relu_out_QuantizeLinear"), 8, 8, "conv2", output="output")
    _, result = exported(g.model())
    onnx.checker.check_model(result.model, full_check=True)
    names = [n.name for n in result.model.graph.node]
    assert len(set(names)) == len(names)


# --- clamps ------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    bits=st.integers(2, 8),
    low=st.none() | st.floats(-3, 3, width=32),
    width=st.none() | st.floats(0.0625, 6, width=32),
)
def test_bounds_of_codes_are_exactly_the_clamp_in_front(seed, bits, low, width):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand((), generator=generator) * 0.5 + 0.01
    zero = torch.randint(0, 2**bits, (), generator=generator).float()
    grid = Grid(scale, zero, bits)
    high = None if width is None else (0.0 if low is None else low) + width
    x = torch.randn(300, generator=generator) * 4
    clamped = x if low is None else x.clamp(min=low)
    clamped = clamped if high is None else clamped.clamp(max=high)
    plan = ActivationPlan("x", ("x",), ("x",), bits, "clip", low, high)
    least, most = code_bounds(plan, grid)
    assert torch.equal(quantize_codes(x, grid).clamp(least, most), quantize_codes(clamped, grid))
    assert torch.equal(fake_quantize(clamped, grid), (quantize_codes(x, grid).clamp(least, most) - zero) * scale)


@pytest.mark.parametrize("build", [conv_clip, clip_signed, clip_positive, clip_above, clip_twice])
@pytest.mark.parametrize("abits", [2, 4, 8])
def test_absorbed_clip_equals_the_graph_that_keeps_it_in_float(build, abits):
    model = build()
    stage, result = exported(model, abits=abits, bits=(BitRule("conv", None, abits),))
    (entry,) = [a for a in stage.plan.activations if a.absorbs and a.absorbs.startswith("clip")]
    fed = feeds(model, 16, seed=5)
    fed["input"] *= 3  # far enough for both bounds
    (absorbed,) = run(result.model, fed)
    kept = onnx.ModelProto()
    kept.CopyFrom(result.model)
    assert not [n for n in kept.graph.node if n.op_type == "Clip" and n.input[0] == "conv_out"]
    quantize_node = node(kept, f"{entry.name}_QuantizeLinear")
    bounds = [entry.low, entry.high]
    for end, value in zip(("least", "most"), bounds, strict=True):
        if value is not None:
            kept.graph.initializer.append(numpy_helper.from_array(np.float32(value), end))
    inputs = [quantize_node.input[0], *("" if v is None else n for n, v in zip(("least", "most"), bounds, strict=True))]
    position = list(kept.graph.node).index(quantize_node)
    kept.graph.node.insert(position, helper.make_node("Clip", inputs, ["clamped"], name="float_clip"))
    node(kept, f"{entry.name}_QuantizeLinear").input[0] = "clamped"
    for tensor in kept.graph.initializer:
        ends = {f"{entry.name}_low": 0, f"{entry.name}_high": 2**abits - 1}
        if tensor.name in ends:
            tensor.CopyFrom(numpy_helper.from_array(np.array(ends[tensor.name], np.uint8), tensor.name))
    onnx.checker.check_model(kept, full_check=True)
    assert np.array_equal(run(kept, fed)[0], absorbed)


def test_relu_in_front_of_zero_point_0_stays_for_the_runtime_to_absorb():
    stage, result = exported(conv_relu())
    assert float(stage.simulation.activations["relu_out"].zero_point) == 0
    assert node(result.model, "relu").op_type == "Relu"


def test_relu_in_front_of_another_zero_point_becomes_a_bound():
    stage = simulated(conv_relu())
    grid = stage.simulation.activations["relu_out"]
    stage.simulation.activations["relu_out"] = Grid(grid.scale, torch.tensor(3.0), grid.bits)
    result = export(stage.graph, stage.simulation, {})
    clip = node(result.model, "relu")
    assert clip.op_type == "Clip"
    assert initializers(result.model)[clip.input[1]] == 3
    found = verify(result, stage.simulation, stage.data)
    assert found.sqnr_db > 60
    assert found.warnings == ()


# --- value-preserving ops ----------------------------------------------------------------------------------------


def test_pad_works_on_codes_and_pads_with_the_code_of_zero():
    stage, result = exported(pad_zero(), abits=4)
    pad = node(result.model, "pad")
    zero = stage.simulation.activations["conv_out"].zero_point
    assert 0 < float(zero) < 15
    assert initializers(result.model)[pad.input[2]] == np.uint8(zero)
    assert maker(result.model, pad.input[0]).op_type == "Clip"
    assert maker(result.model, node(result.model, "conv2").input[0]).input[0] == pad.output[0]
    assert verify(result, stage.simulation, stage.data).sqnr_db > 60


def test_pad_at_an_output_of_the_graph_stays_float():
    _, result = exported(pad_output())
    assert [v.name for v in result.model.graph.output] == ["output", "pad_out"]
    assert result.model.graph.output[1].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("name", ["relu_output", "pad_output"])
def test_output_in_the_middle_is_what_its_readers_see_where_that_has_8_bits(name):
    model = GRAPHS[name]()
    stage, result = exported(model)
    fed = feeds(model, 8, seed=2)
    found = run(result.model, fed)
    simulation = stage.simulation.run({n: torch.from_numpy(x) for n, x in fed.items()})
    for value, (own, wanted) in zip(found, simulation.items(), strict=True):
        assert sqnr_db(wanted.numpy(), value) > 60, own
    if name == "relu_output":
        assert len(np.unique(found[1])) <= 256
        assert fused_op_counts(result.model)["QLinearConv"] == 2


def test_pooled_tensor_has_codes_of_its_input():
    _, result = exported(PATTERNS["max_pool"]())
    pool = node(result.model, "maxpool")
    before = maker(result.model, pool.input[0])
    (behind,) = [n for n in result.model.graph.node if pool.output[0] in n.input]
    assert (before.op_type, behind.op_type) == ("DequantizeLinear", "QuantizeLinear")
    assert list(before.input[1:]) == list(behind.input[1:])


# --- biases ------------------------------------------------------------------------------------------------------


def bias_of(model: onnx.ModelProto, layer: str) -> str:
    """The tensor that a layer adds, in the node itself or in the Add behind a MatMul."""
    found = node(model, layer)
    if len(found.input) > 2:
        return found.input[2]
    (add,) = [n for n in model.graph.node if found.output[0] in n.input]
    assert add.op_type == "Add"
    return next(name for name in add.input if name != found.output[0])


@pytest.mark.parametrize("name", [*PATTERNS, "tokens"])
def test_biases_are_int32_at_the_product_of_the_scales(name):
    stage, result = exported(GRAPHS[name]())
    values = initializers(result.model)
    assert result.float_biases == []
    for layer in stage.plan.layers:
        bias = stage.network.step(layer.name).module.bias
        dequantize = maker(result.model, bias_of(result.model, layer.name))
        codes, scale, zero = (values[n] for n in dequantize.input)
        assert (dequantize.op_type, codes.dtype, zero.dtype) == ("DequantizeLinear", np.int32, np.int32)
        assert not zero.any()
        weight_scale = values[f"{layer.weight}_scale"]
        grid = stage.simulation.input_grid(layer)
        assert np.array_equal(scale, (np.float32(grid.scale) * weight_scale).astype(np.float32))
        assert np.abs(codes * scale.astype(np.float64) - bias.numpy()).max() <= scale.max() * 0.5001


def test_bias_stays_float_beside_float_activations():
    _, result = exported(conv_relu(), abits=32)
    assert np.array_equal(initializers(result.model)["conv.bias"], initializers(conv_relu())["conv.bias"])
    assert result.float_biases == []


def overflowing() -> onnx.ModelProto:
    """One channel of the middle layer has next to no weights and a large bias: its scale is tiny."""
    model = conv_clip()
    for tensor in model.graph.initializer:
        factor = {"conv2.weight": 1e-9, "conv2.bias": 500}.get(tensor.name)
        if factor is not None:
            array = numpy_helper.to_array(tensor).copy()
            array[3] *= factor
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


@pytest.mark.parametrize("abits", [4, 8])
@pytest.mark.parametrize("target", ["ort", "qnn", "portable"])
def test_a_channels_scale_grows_where_its_bias_would_not_fit(target, abits):
    stage, result = exported(overflowing(), abits=abits, target=target)
    helper.set_model_props(result.model, {"mrecg_onnx.version": mrecg_onnx.__version__})
    grid = stage.simulation.weights["conv2"].grid
    before = simulated(conv_clip(), abits=abits, target=target).simulation.weights["conv2"].grid
    assert grid.scale[3] > 1e-9
    assert torch.equal(torch.cat([grid.scale[:3], grid.scale[4:]]), torch.cat([before.scale[:3], before.scale[4:]]))
    assert result.float_biases == []
    values = initializers(result.model)
    codes = values[maker(result.model, node(result.model, "conv2").input[2]).input[0]]
    assert 2**29 < np.abs(codes.astype(np.int64)).max() <= 2**30
    found = verify(result, stage.simulation, stage.data)
    assert min(found.sqnr_db, found.sqnr_fused_db) > 100
    assert found.warnings == ()
    # The other targets' forms are other files, portable's with a float bias, which ONNX Runtime quantizes itself: it fits, too.
    aimed = retarget(result.model, load_target(target))
    feed = {name: x.numpy() for name, x in stage.data.items()}
    for level in ("off", "all"):
        (made,) = run_padded(open_session(aimed, level), feed).values()
        assert sqnr_db(stage.network.run(stage.data)["output"].numpy(), made) > 20
    if abits == 8:
        assert fused_op_counts(aimed)["QLinearConv"] == 2


def test_scales_stay_as_they_are_where_biases_fit():
    stage = simulated(conv_clip())
    before = dict(stage.simulation.weights)
    stage.simulation.fit_biases()
    assert all(stage.simulation.weights[name] is weight for name, weight in before.items())


@given(st.integers(0, 2**31), st.integers(2, 8), st.floats(-6, 6))
@settings(deadline=None)
def test_a_coarser_grid_keeps_the_weight_to_half_a_step_and_the_codes_in_range(seed, bits, exponent):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 3, 2, 2, generator=generator)
    grid = search_range(weight, bits, axis=0, symmetric=bits >= 8)
    fine = QuantizedWeight(quantize_codes(weight, grid), grid)
    least = grid.scale * 10.0 ** (exponent * torch.rand(4, generator=generator))
    coarse = fine.coarser(least)
    assert torch.equal(coarse.grid.scale, torch.maximum(grid.scale, least))
    assert coarse.codes.min() >= grid.qmin
    assert coarse.codes.max() <= grid.qmax
    step = coarse.grid.scale.view(-1, 1, 1, 1)
    assert ((coarse.dequantize() - fine.dequantize()).abs() <= 0.5001 * step).all()
    same = least <= grid.scale
    assert torch.equal(coarse.codes[same], fine.codes[same])


@pytest.mark.parametrize("method", ["brecq", "bit-split"])
def test_learned_layers_keep_room_for_their_biases(tmp_path, method):
    np.savez(tmp_path / "calibration.npz", **feeds(overflowing()))
    options = Settings(method=method, iters=20, equalize="off", wbits=4)
    result = quantize(overflowing(), tmp_path / "calibration.npz", options)
    assert result.verification.fused["QLinearConv"] == 2
    assert result.verification.warnings == ()


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_a_constant_input_keeps_its_layer_in_integers(value):
    data = {"input": torch.full((8, 8, 16, 16), value)}
    stage = simulated(conv_clip(), data)
    result = export(stage.graph, stage.simulation, {})
    found = verify(result, stage.simulation, stage.data)
    assert found.fused["QLinearConv"] == 2
    assert found.warnings == ()
    assert stage.simulation.activations["input"].scale > 1e-3


def test_bias_that_does_not_fit_stays_float_with_a_warning(caplog):
    """The guard behind that: scales that nobody has fitted to a bias."""
    stage, _ = exported(conv_clip())
    bias = stage.network.step("conv2").module.bias.detach()
    stage.simulation.biases["conv2"] = bias + 1e8 * (torch.arange(len(bias)) == 3)
    with caplog.at_level(logging.WARNING):
        result = export(stage.graph, stage.simulation, {})
    assert result.float_biases == ["conv2"]
    assert "layer 'conv2': its bias does not fit int32" in caplog.text
    onnx.checker.check_model(result.model, full_check=True)
    found = verify(result, stage.simulation, stage.data)
    # The layer cannot fuse, nobody expects it to, and the one line says so.
    said = "layer 'conv2': the bias does not fit int32 and stays in float, so the layer runs in float"
    assert [warning.startswith(said) for warning in found.warnings].count(True) == 1


def test_layer_without_bias_gets_none():
    _, result = exported(no_bias())
    assert len(node(result.model, "conv").input) == 2


@pytest.mark.parametrize("name", ["tokens", "tokens_of_one_size"])
def test_matmul_and_add_are_one_layer_and_two_nodes(name):
    """The file has both nodes of the user under their names, and the second makes the tensor that it made."""
    stage, result = exported(GRAPHS[name]())
    biases = {layer.name: layer.bias for layer in stage.plan.layers}
    assert biases == {layer: f"{layer}.bias" for layer in ("first", "up", "down", "float", "last")}
    for layer in biases:
        product = node(result.model, layer).output[0]
        add = node(result.model, f"{layer}_add")
        assert (node(result.model, layer).op_type, add.op_type) == ("MatMul", "Add")
        assert product in add.input
        assert add.output[0] == ("output" if layer == "last" else f"{layer}_add_out")
    assert not {"mrecg_onnx.bias_node"} & {p.key for n in result.model.graph.node for p in n.metadata_props}
    found = verify(result, stage.simulation, stage.data)
    assert found.warnings == ()
    # No quantizer between a float op and the layer in front of it; all five layers run on codes.
    assert "float_add_out" not in {plan.name for plan in stage.plan.activations}
    assert sum(found.fused.get(k, 0) for k in ("QGemm", "QLinearMatMul", "MatMulIntegerToFloat")) == 5


def test_bias_of_a_matmul_is_learned(tmp_path):
    np.savez(tmp_path / "calibration.npz", **feeds(tokens()))
    result = quantize(tokens(), tmp_path / "calibration.npz", Settings(wbits=3, iters=20, equalize="off"))
    values = initializers(result.model)
    moved = []
    for layer in result.plan.layers:
        codes, scale, _ = (values[n] for n in maker(result.model, bias_of(result.model, layer.name)).input)
        moved.append(np.abs(codes * scale - initializers(tokens())[layer.bias]).max() / scale.max())
    assert max(moved) > 1
    assert result.verification.warnings == ()


def test_bias_that_the_graph_computes_stays_float():
    model = computed_bias()
    data = {n: torch.from_numpy(x) for n, x in feeds(model, 8).items() if n == "input"}
    data["bias"] = torch.linspace(-1, 1, 8)
    stage = simulated(model, {"input": data["input"]} | {"bias": data["bias"]}, range_samples=8)
    result = export(stage.graph, stage.simulation, {})
    onnx.checker.check_model(result.model, full_check=True)
    (found,) = run(result.model, {n: x.numpy() for n, x in data.items()})
    assert sqnr_db(stage.simulation.run(data)["output"].numpy(), found) > 60


# --- the whole way, with images ----------------------------------------------------------------------------------


def test_images_and_preprocessing_are_remembered(tmp_path):
    g = Graph()
    x = g.relu(g.conv(g.input(3, 16), 3, 8))
    model = _tail(g, x)
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
    model = _tail(g, x)
    np.savez(tmp_path / "calib.npz", **feeds(model, 10))
    result = quantize(model, tmp_path / "calib.npz", Settings(method="nearest"))
    assert result.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    assert result.verification.sqnr_db > 60
    assert result.verification.warnings == ()
