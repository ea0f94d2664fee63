"""Grids: their ends, and scales that are a fraction of 1."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from mrecg_onnx.quantizers.fake_quantization import fake_quantize, quantize_codes
from mrecg_onnx.quantizers.grids import EPSILON, Grid, grid_from_range, symmetric_eight, whole_reciprocal

NO_DEADLINE = settings(max_examples=40, deadline=None)


# --- codes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "symmetric", "ends"),
    [(2, False, (0, 3)), (8, False, (0, 255)), (8, True, (-127, 127)), (4, True, (-7, 7))],
)
def test_codes_stay_between_the_ends_of_the_grid(bits, symmetric, ends):
    grid = Grid(torch.tensor(0.5), torch.tensor(0.0 if symmetric else 1.0), bits, symmetric=symmetric)
    assert (grid.qmin, grid.qmax) == ends
    codes = quantize_codes(torch.linspace(-1000, 1000, 999), grid)
    assert (float(codes.min()), float(codes.max())) == ends


def test_values_of_a_scale_are_shaped_along_their_axis():
    grid = Grid(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), 4, 1)
    assert [t.shape for t in grid.along(3)] == [(1, 2, 1)] * 2
    assert grid.top(4) == 15
    assert Grid(torch.tensor(1.0), torch.tensor(0.0), 4).along(3)[0].shape == ()
    for axis, shape in ((None, (1, 2, 1)), (0, (2, 1, 1)), (2, (1, 1, 2))):
        ceilings = Grid(torch.ones(2), torch.zeros(2), 4, axis, ceiling=torch.tensor([3.0, 7.0]))
        assert ceilings.top(3).shape == shape


@pytest.mark.parametrize(
    ("low", "high", "bits", "scale", "zero"),
    [
        (-1.0, 2.0, 2, 1.0, 1.0),
        (-0.4, 2.6, 2, 1.0, 0.0),  # -0.4 is nearer to no step than to one
        (-0.6, 2.4, 2, 1.0, 1.0),
        (0.5, 3.0, 2, 1.0, 0.0),  # 0 is always on the grid
        (-3.0, -1.0, 2, 1.0, 3.0),
        (-5.0, 250.0, 8, 1.0, 5.0),
    ],
)
def test_grid_of_a_range_has_its_steps_and_the_nearest_code_of_zero(low, high, bits, scale, zero):
    found = grid_from_range(torch.tensor(low), torch.tensor(high), bits, symmetric=False)
    assert [float(t) for t in found] == [scale, zero]


@pytest.mark.parametrize(
    ("low", "high", "scale"), [(-14.0, 3.0, 2.0), (-3.0, 7.0, 1.0), (1.0, 7.0, 1.0), (0.0, 0.0, None)]
)
def test_symmetric_grid_reaches_the_end_that_is_farther_away(low, high, scale):
    found = grid_from_range(torch.tensor(low), torch.tensor(high), 4, symmetric=True)
    assert [float(t) for t in found] == [pytest.approx(EPSILON if scale is None else scale), 0.0]


def test_the_scale_of_nothing_leaves_the_product_of_two_a_normal_number():
    found = grid_from_range(torch.tensor(0.0), torch.tensor(0.0), 4, symmetric=False)[0]
    assert float(found) == pytest.approx(EPSILON) == pytest.approx(1e-16)
    assert float(found * found) > torch.finfo(torch.float32).tiny


@NO_DEADLINE
@given(
    bits=st.sampled_from([*range(2, 9), 16]),
    ends=st.tuples(*[st.floats(-(2.0**127), 2.0**127, width=32) | st.floats(-(2.0**-100), 2.0**-100, width=32)] * 2),
    symmetric=st.booleans(),
    full=st.booleans(),
)
def test_scales_of_all_ranges_are_normal_numbers(bits, ends, symmetric, full):
    """Ranges of float32 whose width is none, and such as no float32 has a step for, among them."""
    low, high = (torch.tensor([end], dtype=torch.float32) for end in (min(ends), max(ends)))
    scale, zero = grid_from_range(low, high, bits, symmetric=symmetric, full=symmetric and full)
    grid = Grid(scale, zero, bits, 0, symmetric, full=symmetric and full)
    assert torch.isfinite(scale).all()
    assert float(scale) > torch.finfo(torch.float32).tiny
    assert 0 <= float(zero) == round(float(zero)) <= (0 if symmetric else grid.qmax)
    for end in (low.clamp(max=0.0), high.clamp(min=0.0)):
        far = float((fake_quantize(end, grid).double() - end.double()).abs() / scale.double())
        assert far <= 1.01, "the range's ends are on the grid"


def test_eight_bits_in_int8_cover_the_same_range():
    positive = symmetric_eight(Grid(torch.tensor(0.5), torch.tensor(0.0), 8))
    assert (float(positive.scale), float(positive.zero_point), positive.bits) == (pytest.approx(127.5 / 127), 0.0, 7)
    # From -50 to 77.5: the upper end needs the larger step; from -100 to 27.5 the lower one.
    for zero, scale in ((100.0, 77.5 / 127), (200.0, 100 / 128), (255.0, 127.5 / 128)):
        found = symmetric_eight(Grid(torch.tensor(0.5), torch.tensor(zero), 8, None))
        assert (float(found.scale), float(found.zero_point), found.bits) == (pytest.approx(scale), 128.0, 8)
    for other in (
        Grid(torch.tensor(0.5), torch.tensor(1.0), 7),
        Grid(torch.tensor(0.5), torch.tensor(0.0), 8, symmetric=True),
    ):
        assert symmetric_eight(other) is other
    channels = symmetric_eight(Grid(torch.tensor([0.5, 1.0]), torch.tensor([100.0, 0.0]), 8, 0))
    torch.testing.assert_close(channels.scale, torch.tensor([77.5 / 127, 255 / 127]))
    assert (channels.axis, channels.zero_point.tolist()) == (0, [128.0, 128.0])
    nothing = symmetric_eight(Grid(torch.tensor(0.0), torch.tensor(1.0), 8))
    assert float(nothing.scale) == pytest.approx(EPSILON)


# --- scales that are a fraction of 1 -----------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "whole"), [(0.3, 3), (0.4, 2), (1 / 255, 255), (0.9, 1), (3.0, 1), (0.0123, 81)])
def test_nearest_whole_reciprocal(scale, whole):
    found = whole_reciprocal(Grid(torch.tensor(scale), torch.tensor(5.0), 8))
    assert float(found.scale) == pytest.approx(1 / whole, rel=2e-7)
    assert np.floor(np.float32(1) / np.float32(found.scale)) == whole
    assert (float(found.zero_point), found.bits) == (5.0, 8)


def test_every_whole_number_up_to_a_thousand_has_its_reciprocal():
    """In float32 1 / (1 / k) is below k for some k: their scale is one step smaller."""
    whole = torch.arange(1.0, 1001.0)
    found = whole_reciprocal(Grid(1.0 / whole, torch.zeros(1000), 8, 0)).scale
    assert torch.equal(torch.floor(1.0 / found), whole)
    short = torch.floor(1.0 / (1.0 / whole)) < whole
    assert short.any()
    assert torch.equal(found[~short], (1.0 / whole)[~short])
    torch.testing.assert_close(found, 1.0 / whole, rtol=2e-7, atol=0)


@NO_DEADLINE
@given(scale=st.floats(2**-13, 0.125, width=32))
def test_scale_of_a_whole_reciprocal_is_near_and_exact_in_float32(scale):
    grid = whole_reciprocal(Grid(torch.tensor(scale), torch.tensor(0.0), 8))
    found = np.float32(grid.scale)
    steps = np.floor(np.float32(1) / found)
    assert abs(steps * float(found) - 1) < 1e-6
    assert abs(float(found) / scale - 1) <= 0.51 / (steps - 0.5)
    assert whole_reciprocal(grid).scale == grid.scale


@pytest.mark.parametrize("scale", [1 / 255, 0.0031, 0.00079, 0.0123])
def test_softmax_on_codes_equals_the_float_one_at_such_a_scale(scale):
    found = whole_reciprocal(Grid(torch.tensor(scale), torch.tensor(0.0), 8)).scale
    constants = {"xs": np.float32(0.02), "xz": np.uint8(128), "ys": np.float32(found), "yz": np.uint8(0)}
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "xs", "xz"], ["x"]),
        helper.make_node("Softmax", ["x"], ["p"]),
        helper.make_node("QuantizeLinear", ["p", "ys", "yz"], ["codes"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.UINT8, [400, 17]) for n in ("q", "codes")]
    tensors = [onnx.numpy_helper.from_array(v, n) for n, v in constants.items()]
    graph = helper.make_graph(nodes, "softmax", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    q = np.random.default_rng(0).integers(0, 256, (400, 17)).astype(np.uint8)
    made = []
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        made.append(session.run(None, {"q": q})[0])
    assert np.array_equal(*made)


@given(st.floats(0.01, 10.0), st.integers(0, 255), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_symmetric_grids_cover_the_range_and_fit_int8(scale: float, zero: int, seed: int) -> None:
    grid = Grid(torch.tensor(scale), torch.tensor(float(zero)), 8)
    found = symmetric_eight(grid)
    assert found.qmin - float(found.zero_point) >= -128
    assert found.qmax - float(found.zero_point) <= 127
    random = np.random.default_rng(seed)
    x = torch.from_numpy(random.uniform(-zero * scale, (255 - zero) * scale, 100).astype(np.float32))
    error = (fake_quantize(x, found) - x).abs().max()
    assert float(error) <= float(found.scale) * 0.502  # nothing is clipped
    narrow = Grid(torch.tensor(scale), torch.tensor(float(zero % 16)), 4)
    assert symmetric_eight(narrow) is narrow
