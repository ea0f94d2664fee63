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
from mrecg_onnx.quantizers.grids import Grid, symmetric_eight, whole_reciprocal

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


# --- gradients ---------------------------------------------------------------------------------------------------


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
