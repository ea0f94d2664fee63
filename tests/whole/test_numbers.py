"""Numbers of any size: every scale is a number, every code in its range, and all executions agree.

Small networks of one layer of each kind that is quantized and a layer that brings its outputs back to ordinary size, from
calibration to the file in its container: the simulation in torch, the graph run as written and at ONNX Runtime's default level
are compared, as every run does it (docs/method.md 21).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers.stages import Stage, simulated
from helpers.versions import older_runtime
from helpers.written import initializers
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from mrecg_onnx import Settings, quantize
from mrecg_onnx.checking import Verification, verify
from mrecg_onnx.converters import normalize
from mrecg_onnx.methods import METHODS, RANGE_NAMES
from mrecg_onnx.targets import load_target
from mrecg_onnx.writing import Exported, contained, export, retarget, runnable

TINY = float(np.finfo(np.float32).tiny)
#: Values of a channel, or of an activation.
KINDS = ("normal", "zero", "constant", "positive", "negative", "outliers")
#: Shape of the weight of one output channel, where that axis stands, and attributes.
LAYERS: dict[str, tuple[str, tuple[int, ...], int, dict[str, Any]]] = {
    "Conv": ("Conv", (4, 3, 3), 0, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "depthwise": ("Conv", (1, 3, 3), 0, {"kernel_shape": [3, 3], "group": 4}),
    "groups": ("Conv", (2, 3, 3), 0, {"kernel_shape": [3, 3], "strides": [2, 2], "group": 2}),
    "ConvTranspose": ("ConvTranspose", (4, 3, 3), 1, {"kernel_shape": [3, 3], "strides": [2, 2]}),
    "ConvTranspose in groups": ("ConvTranspose", (4, 2, 2), 1, {"kernel_shape": [2, 2], "group": 2}),
    "Gemm": ("Gemm", (12,), 1, {}),
    "Gemm, transB": ("Gemm", (12,), 0, {"transB": 1}),
    "MatMul": ("MatMul", (12,), 1, {}),
}
#: Targets with their containers; those that bound values and not codes are given ordinary sizes, as ONNX Runtime takes a Clip
#: of values narrower than 1.2e-7 for none (docs/method.md 6).
FORMS = [
    ("ort", "int8"), ("ort", "packed"), ("ort", "typed"), ("openvino", "int8"), ("openvino", "packed"), ("tensorrt", "int8"),
    ("qnn", "int8"), ("portable", "int8"), ("qonnx", "int8"), ("qonnx", "qonnx"),
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One network; sizes are exponents of ten."""

    layer: str
    kinds: tuple[str, ...]
    activation: str
    images: int
    weights: int
    inputs: int
    bias: int | None
    spread: int
    relu: bool
    seed: int


def values(random: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    x = random.standard_normal(shape)
    return {
        "normal": x,
        "zero": np.zeros(shape),
        "constant": np.full(shape, 0.7),
        "positive": np.abs(x),
        "negative": -np.abs(x),
        "outliers": np.where(random.random(shape) < 0.1, 30 * x, x),
    }[kind]


def network(case: Case) -> tuple[onnx.ModelProto, torch.Tensor]:
    """The layer, with or without bias and Relu, and one behind it whose weights undo its gain; images."""
    random = np.random.default_rng(case.seed)
    op, shape, axis, attributes = LAYERS[case.layer]
    groups = attributes.get("group", 1)
    kinds = case.kinds[:4] if case.layer == "depthwise" else case.kinds
    sizes = 10.0 ** (case.weights + case.spread * random.uniform(-1, 1, len(kinds)))
    weight = np.stack([values(random, k, shape) * size for k, size in zip(kinds, sizes, strict=True)], axis)
    channels = len(kinds) * (groups if op == "ConvTranspose" else 1)
    constants = {"w": weight}
    if case.bias is not None:
        constants["b"] = random.standard_normal(channels) * 10.0**case.bias
    nodes = []
    if op == "MatMul":
        nodes.append(helper.make_node("MatMul", ["x", "w"], ["m"], "layer"))
        if case.bias is not None:
            nodes.append(helper.make_node("Add", ["m", "b"], ["h"], "add"))
        else:
            nodes[0].output[0] = "h"
    else:
        nodes.append(helper.make_node(op, ["x", *constants], ["h"], "layer", **attributes))
    if case.relu:
        nodes.append(helper.make_node("Relu", ["h"], ["r"], "relu"))
    gain = max(case.weights + case.inputs, -99 if case.bias is None else case.bias)
    head, image = random.standard_normal((5, channels)) * 10.0**-gain, len(shape) == 3
    constants |= {"v": head[:, :, None, None] if image else head, "c": random.standard_normal(5)}
    last: dict[str, Any] = {"kernel_shape": [1, 1]} if image else {"transB": 1}
    nodes.append(helper.make_node("Conv" if image else "Gemm", [nodes[-1].output[0], "v", "c"], ["y"], "head", **last))
    sides = (4, 5, 5) if image else (12,)
    graph = helper.make_graph(
        nodes,
        "numbers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *sides])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5, *(("H", "W") if image else ())])],
        [numpy_helper.from_array(np.ascontiguousarray(x, np.float32), name) for name, x in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    images = values(random, case.activation, (case.images, *sides)) * 10.0**case.inputs
    return model, torch.from_numpy(images.astype(np.float32))


@st.composite
def cases(draw, least: int = -30, most: int = 30) -> Case:
    """Networks whose tensors are float32 in front of the quantizer, with inputs, weights and outputs within the exponents."""
    weights = draw(st.integers(least, most))
    inputs = draw(st.just(0) | st.integers(max(least, least - weights), min(most, most - weights)))
    made = weights + inputs
    spread = draw(st.sampled_from([0, 1, 5]))
    return Case(
        draw(st.sampled_from(sorted(LAYERS))),
        tuple(draw(st.lists(st.sampled_from(KINDS), min_size=6, max_size=6))),
        draw(st.sampled_from(KINDS)),
        draw(st.sampled_from([2, 3, 5])),
        weights,
        inputs,
        draw(st.none() | st.integers(max(-30, made - 20), min(30, made + 20))),
        spread if least - 2 <= made - spread and made + spread <= most + 2 else 0,
        draw(st.booleans()),
        draw(st.integers(0, 2**32 - 1)),
    )


def require_numbers(stage: Stage) -> None:
    """Scales are normal float32, codes and zero points in range."""
    simulation = stage.simulation
    grids = {**simulation.activations, **{n: w.grid for n, w in simulation.weights.items()}}
    for name, grid in grids.items():
        assert torch.isfinite(grid.scale).all(), name
        assert (grid.scale >= TINY).all(), name
        least, highest = (0, 0) if grid.symmetric else (0, grid.qmax)
        assert ((grid.zero_point >= least) & (grid.zero_point <= highest)).all(), name
    for name, weight in simulation.weights.items():
        assert ((weight.codes >= weight.grid.qmin) & (weight.codes <= weight.grid.qmax)).all(), name


def require_written(model: onnx.ModelProto, stage: Stage) -> None:
    """The file's scales are normal float32, also those of biases, whose codes are what the bias is in steps of them."""
    known = initializers(model)
    for node in model.graph.node:
        if node.op_type not in {"QuantizeLinear", "DequantizeLinear"}:
            continue
        scale, codes = known[node.input[1]], known.get(node.input[0])
        assert np.isfinite(scale).all(), node.name
        assert (scale >= TINY).all(), node.name
        if codes is not None and codes.dtype == np.int32:
            name = node.input[0].removesuffix("_quantized")
            layer = next(entry for entry in stage.plan.layers if name in {entry.bias, f"{entry.name}_bias"})
            bias = stage.simulation.bias(stage.network.step(layer.name)).double().numpy().reshape(-1)
            steps = np.abs(codes.reshape(-1) - bias / scale.astype(np.float64))
            assert (steps <= 0.5 + 1e-6 * np.abs(codes.reshape(-1))).all(), "rounded, not wrapped"


def faults(verification: Verification) -> list[str]:
    """What the checks warn of, but for a bias that is in float and kernels that are."""
    harmless = ("does not fit int32", "expected, ONNX Runtime runs")
    return [line for line in verification.warnings if not any(text in line for text in harmless)]


def checked(case: Case, target: str, container: str, **options: Any) -> tuple[Stage, Exported, Verification]:
    """Calibrated, written and compared; OpenVINO's and qonnx's own runtimes have tests of their own."""
    model, images = network(case)
    stage = simulated(normalize(model), {"x": images}, target=target, container=container, **options)
    require_numbers(stage)
    made = export(stage.graph, stage.simulation, {"mrecg_onnx.version": "test"})
    require_written(made.model, stage)
    rules = load_target(target)
    aimed = retarget(made.model, rules)
    held = contained(aimed, container, highest=rules.opset[1], zero_points=rules.typed_weights == "any")
    require_written(runnable(held.model), stage)
    found = verify(made, stage.simulation, {"x": images}, held=held, target=load_target("ort"))
    assert faults(found) == []
    return stage, made, found


FEW = settings(max_examples=25)
MANY = settings(max_examples=500)
WIDTHS = {"wbits": st.integers(2, 8), "abits": st.integers(2, 8), "symmetric_weights": st.booleans()}


def agree_on_the_default_target(case: Case, container: str, ranges: str, **widths: Any) -> None:
    checked(case, "ort", container, range=ranges, **widths)


def agree_for_every_target(case: Case, form: tuple[str, str], **widths: Any) -> None:
    if form[0] == "tensorrt":
        widths |= {"wbits": 8, "abits": 8}
    if form[0] == "qonnx":
        # Files made for it are symmetric. Others keep their zero points: QLinearConv before 1.27 wants one for all channels.
        widths["symmetric_weights"] |= older_runtime("1.27")
    checked(case, *form, first_last_bits=widths["wbits"], **widths)


ANY = given(
    case=cases(), container=st.sampled_from(["int8", "packed", "typed"]), ranges=st.sampled_from(RANGE_NAMES), **WIDTHS
)
ORDINARY = given(case=cases(-4, 8), form=st.sampled_from(FORMS), **WIDTHS)

test_all_executions_agree_on_numbers_of_any_size = FEW(ANY(agree_on_the_default_target))
test_all_executions_agree_for_every_target = FEW(ORDINARY(agree_for_every_target))
test_all_executions_agree_on_many_numbers_of_any_size = pytest.mark.slow(MANY(ANY(agree_on_the_default_target)))
test_all_executions_agree_for_every_target_on_many = pytest.mark.slow(MANY(ORDINARY(agree_for_every_target)))


@settings(max_examples=10)
@given(case=cases(-4, 8))
def test_sixteen_bits_agree(case):
    checked(case, "qnn", "int8", wbits=8, abits=16)


def plain(layer: str, **changes: Any) -> Case:
    given: dict[str, Any] = {"images": 5, "weights": 0, "inputs": 0, "bias": None, "spread": 0, "relu": True, "seed": 1}
    return Case(layer, KINDS, "normal", **given | changes)


@pytest.mark.parametrize("layer", sorted(LAYERS))
@pytest.mark.parametrize("size", [-30, -18, 18, 30])
def test_small_and_large_weights_are_as_exact_as_others(layer, size):
    """Eight bits leave an error of a few tenths of a percent at any size."""
    ordinary = checked(plain(layer), "ort", "int8", wbits=8, abits=8)[2].outputs[0].written_db
    assert checked(plain(layer, weights=size), "ort", "int8", wbits=8, abits=8)[2].outputs[0].written_db > ordinary - 3


@pytest.mark.parametrize("layer", sorted(LAYERS))
@pytest.mark.parametrize("bias", [1, 6, 12, 20])
def test_a_bias_beyond_int32_makes_the_weights_coarser_and_wraps_nowhere(layer, bias):
    stage, made, _ = checked(plain(layer, bias=bias), "ort", "int8", wbits=8, abits=8)
    assert made.float_biases == []
    grid = stage.simulation.input_grid(stage.plan.layers[0])
    weight = stage.simulation.weights["layer"]
    size = float(stage.simulation.bias(stage.network.step("layer")).abs().amax())
    assert size / float((grid.scale * weight.grid.scale).amax()) <= 2**30 * (1 + 1e-6)


@pytest.mark.parametrize("layer", ["Conv", "Gemm", "ConvTranspose in groups"])
def test_a_bias_that_no_scale_fits_stays_in_float(layer):
    """1e30 in steps of 1e-28 would need a weight scale of 1e49."""
    _, made, found = checked(plain(layer, weights=-10, inputs=-15, bias=30), "ort", "int8", wbits=8, abits=8)
    assert made.float_biases == ["layer"]
    assert any("does not fit int32" in line for line in found.warnings)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [-25, 25])
@pytest.mark.parametrize("images", [2, 3])
def test_every_method_takes_them_on_few_images(tmp_path, method, size, images):
    model, data = network(plain("Conv", weights=size, bias=size, inputs=-size // 5, images=images))
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "calib.npz", x=data.numpy())
    given = Settings(method=method, wbits=4, abits=4, iters=3, batch_size=2, threads=1, lapq_evaluations=20)
    result = quantize(tmp_path / "model.onnx", tmp_path / "calib.npz", given)
    assert faults(result.verification) == []
    for name, array in initializers(result.model).items():
        assert np.isfinite(array).all(), name
        assert not name.endswith("_scale") or (array >= TINY).all(), name
