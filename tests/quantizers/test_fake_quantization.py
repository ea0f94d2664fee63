"""Fake quantization: codes as ONNX has them, and gradients as LSQ has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.values import BITS, KINDS, SEEDS, values
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from mrecg_onnx.quantizers import fake_quantization
from mrecg_onnx.quantizers.fake_quantization import (
    fake_quantize,
    fake_quantize_weight,
    learnable_fake_quantize,
    limited_,
    quantize_codes,
)
from mrecg_onnx.quantizers.grids import Grid
from mrecg_onnx.quantizers.range_search import search_range

if TYPE_CHECKING:
    from torch import Tensor

NO_DEADLINE = settings(max_examples=40, deadline=None)


# --- codes -------------------------------------------------------------------------------------------------------


def quantize_linear(x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, axis: int) -> onnx.ModelProto:
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape),
        helper.make_tensor_value_info("scale", TensorProto.FLOAT, scale.shape),
        helper.make_tensor_value_info(
            "zero_point", helper.np_dtype_to_tensor_dtype(zero_point.dtype), zero_point.shape
        ),
    ]
    node = helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["codes"], axis=axis)
    output = helper.make_tensor_value_info("codes", inputs[2].type.tensor_type.elem_type, x.shape)
    graph = helper.make_graph([node], "quantize", inputs, [output])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@NO_DEADLINE
@given(bits=BITS, kind=KINDS, seed=SEEDS, axis=st.sampled_from([None, 0, 1]))
def test_codes_are_those_of_quantize_linear(bits, kind, seed, axis):
    x = values(kind, seed, (5, 6, 9))
    grid = search_range(x, bits, axis=axis)
    scale, zero_point = grid.scale.numpy(), grid.zero_point.numpy().astype(np.uint8)
    model = quantize_linear(x.numpy(), scale, zero_point, axis or 0)
    fed = {"x": x.numpy(), "scale": scale, "zero_point": zero_point}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    codes = quantize_codes(x, grid)
    for run in (session.run, ReferenceEvaluator(model).run):
        # The container: uint8 saturates at 0, an integer Clip does the upper bound.
        expected = np.minimum(run(None, fed)[0], 2**bits - 1)
        assert np.array_equal(codes.numpy(), expected.astype(np.float32))


def test_codes_round_halves_to_even():
    grid = Grid(torch.tensor(1.0), torch.tensor(0.0), 4)
    assert quantize_codes(torch.tensor([0.5, 1.5, 2.5, 14.5, 15.5, -0.5, 99.0]), grid).tolist() == [
        0,
        2,
        2,
        14,
        15,
        0,
        15,
    ]


@NO_DEADLINE
@given(bits=BITS, symmetric=st.booleans(), kind=KINDS, seed=SEEDS, axis=st.sampled_from([None, 0, 1]))
def test_fake_quantization_is_the_value_of_the_codes_and_idempotent(bits, symmetric, kind, seed, axis):
    x = values(kind, seed, (4, 5, 7))
    grid = search_range(x, bits, axis=axis, symmetric=symmetric)
    once = fake_quantize(x, grid)
    assert torch.equal(once, fake_quantize_weight(quantize_codes(x, grid), grid))
    assert torch.equal(fake_quantize(once, grid), once)


@NO_DEADLINE
@given(bits=BITS, seed=SEEDS)
def test_error_over_the_whole_range_is_half_a_step_and_what_the_shift_of_zero_cuts_off(bits, seed):
    x = values("normal", seed, (200,))
    grid = search_range(x, bits, candidates=1)
    assert float((fake_quantize(x, grid) - x).abs().max()) <= float(grid.scale) * (0.5 + 0.5 + 1e-4)
    low, high = -grid.zero_point * grid.scale, (grid.qmax - grid.zero_point) * grid.scale
    inside = x[(x >= low) & (x <= high)]
    assert float((fake_quantize(inside, grid) - inside).abs().max()) <= float(grid.scale) * (0.5 + 1e-4)


# --- gradients ---------------------------------------------------------------------------------------------------


def plain_lsq(x: Tensor, scale: Tensor, lower: float, upper: float, keep: Tensor | None) -> Tensor:
    """Esser et al. 2020, eq. 1-2 with the straight-through estimator for the rounding only, drop as Wei et al. 2022."""
    v = torch.clamp(x / scale, lower, upper)
    y = (v + (torch.round(v) - v).detach()) * scale
    return y if keep is None else keep * y + (1 - keep) * x


@NO_DEADLINE
@given(bits=BITS, seed=SEEDS, drop=st.booleans(), channels_last=st.booleans())
def test_gradients_are_those_of_lsq_and_the_straight_through_estimator(bits, seed, drop, channels_last):
    generator = torch.Generator().manual_seed(seed)
    qmax = 2**bits - 1
    zero = float(torch.randint(0, qmax + 1, (), generator=generator))
    start = torch.rand((), generator=generator, dtype=torch.float64) + 0.05
    x0 = torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.float64) * float(start) * qmax / 2
    if channels_last:
        x0 = x0.contiguous(memory_format=torch.channels_last)
    # On the ends of the range the derivative jumps, and both definitions are right.
    assume(float(((x0 / start) - (qmax - zero)).abs().min()) > 1e-9)
    assume(float(((x0 / start) + zero).abs().min()) > 1e-9)
    keep = (torch.rand(x0.shape, generator=generator) < 0.5).double() if drop else None
    weight = torch.randn(x0.shape, generator=generator, dtype=torch.float64)

    def by_operations(x, s):
        """What a GPU runs, and what torch.compile makes one pass of."""
        kernels = fake_quantization._forward_math, fake_quantization._backward_math
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fake_quantization, "_kernels", kernels)
            return learnable_fake_quantize(x, s, zero, qmax, keep)

    found = []
    for function in (
        lambda x, s: learnable_fake_quantize(x, s, zero, qmax, keep),
        by_operations,
        lambda x, s: plain_lsq(x, s, -zero, qmax - zero, keep),
    ):
        x, scale = x0.clone().requires_grad_(), start.clone().requires_grad_()
        y = function(x, scale)
        (y * weight).sum().backward()
        found.append((y.detach(), x.grad, scale.grad))
    for own, operations, plain in zip(*found, strict=True):
        assert torch.allclose(own, plain, rtol=1e-9, atol=1e-9)
        assert torch.allclose(operations, plain, rtol=1e-9, atol=1e-9)


def test_kernels_that_cannot_be_compiled_change_nothing(monkeypatch, caplog):
    def broken(function, **_):
        def call(*_):
            raise RuntimeError("no C++ compiler")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with caplog.at_level("INFO"):
        assert fake_quantization.compile_kernels(torch.device("cpu")) is False
    assert "no C++ compiler" in caplog.text
    assert fake_quantization._kernels is None


def test_compiled_kernels_compute_the_same(monkeypatch):
    """With torch.compile's eager backend, so that no compiler is needed."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compile_(f, backend="eager", **options))
    x, scale, keep = values("normal", 0, (2, 3, 4, 5)), torch.tensor(0.3), torch.ones(2, 3, 4, 5)
    expected = learnable_fake_quantize(x, scale, 2.0, 15, keep)
    try:
        assert fake_quantization.compile_kernels(torch.device("cpu"))
        assert torch.allclose(learnable_fake_quantize(x, scale, 2.0, 15, keep), expected, atol=1e-6)
    finally:
        assert fake_quantization.compile_kernels(torch.device("cpu"), on=False) is False


def test_learnable_quantization_gives_the_values_of_fake_quantization():
    x = values("outliers", 3, (2, 8, 6, 6))
    for bits in (2, 4, 8):
        grid = search_range(x, bits)
        assert torch.equal(
            learnable_fake_quantize(x, grid.scale, float(grid.zero_point), grid.qmax), fake_quantize(x, grid)
        )


def test_dropped_elements_stay_float_and_teach_the_scale_nothing():
    x = values("normal", 0, (50,)).requires_grad_()
    scale = torch.tensor(0.3, requires_grad=True)
    y = learnable_fake_quantize(x, scale, 2.0, 3, torch.zeros(50))
    assert torch.equal(y, x)
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones(50))
    assert float(scale.grad) == 0


def test_gradient_of_values_beyond_the_range_goes_to_the_scale_alone():
    x = torch.tensor([-100.0, 100.0], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    learnable_fake_quantize(x, scale, 1.0, 3).sum().backward()
    assert x.grad.tolist() == [0, 0]
    assert float(scale.grad) == pytest.approx(-1 + 2)


def test_layer_without_grad_for_its_input_still_learns_the_scale():
    scale = torch.tensor(0.2, requires_grad=True)
    learnable_fake_quantize(torch.linspace(-1, 1, 33), scale, 2.0, 3).square().sum().backward()
    assert torch.isfinite(scale.grad)
    assert float(scale.grad) != 0


def test_gradient_of_dropped_elements_passes_gradcheck():
    """Where all is dropped the function is smooth; elsewhere it has steps, and plain autograd of the formula is the measure."""
    x = torch.linspace(-2, 2, 12, dtype=torch.float64).view(3, 4).requires_grad_()
    scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, s: learnable_fake_quantize(x, s, 2.0, 3, torch.zeros(3, 4, dtype=torch.float64)), (x, scale)
    )


def test_gradient_of_the_scale_beyond_the_range_passes_gradcheck():
    """There the value is the end of the range times the scale: no step is in the way."""
    x = torch.tensor([-5.0, 7.0, 9.0, -3.0], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, s: learnable_fake_quantize(x, s, 2.0, 7), (x, scale))


@pytest.mark.parametrize("kernels", [False, True])
def test_gradients_at_known_values(kernels, monkeypatch):
    """LSQ, eq. 3: q - x / s inside, the clipped code outside."""
    if kernels:
        pair = fake_quantization._forward_math, fake_quantization._backward_math
        monkeypatch.setattr(fake_quantization, "_kernels", pair)
    x = torch.tensor([[0.7, -0.2], [-9.0, 9.0]], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    y = learnable_fake_quantize(x, scale, 1.0, 3)
    assert y.tolist() == [[0.5, 0.0], [-0.5, 1.0]]
    (y * torch.tensor([[1.0, 10.0], [100.0, 1000.0]])).sum().backward()
    assert x.grad.tolist() == [[1.0, 10.0], [0.0, 0.0]]
    assert float(scale.grad) == pytest.approx((1 - 1.4) + 10 * (0 + 0.4) - 100 + 2 * 1000)


def test_values_that_are_not_in_one_piece_are_quantized_all_the_same():
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))[:, ::2].requires_grad_()
    scale = torch.tensor(0.3, requires_grad=True)
    y = learnable_fake_quantize(x, scale, 2.0, 7)
    assert torch.equal(y, fake_quantize(x.detach(), Grid(scale.detach(), torch.tensor(2.0), 3)))
    slope = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(y, (x, scale), slope)
    expected = torch.autograd.grad(plain_lsq(x, scale, -2.0, 5.0, None), (x, scale), slope)
    torch.testing.assert_close(found, expected)


def test_codes_end_at_the_largest_code_of_each_channel():
    grid = Grid(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 1.0]), 4, 1, ceiling=torch.tensor([3.0, 15.0]))
    x = torch.tensor([[-9.0, -9.0], [0.6, 0.6], [99.0, 99.0]])
    assert quantize_codes(x, grid).tolist() == [[0.0, 0.0], [2.0, 2.0], [3.0, 15.0]]
    assert fake_quantize(x, grid).tolist() == [[-0.5, -0.5], [0.5, 0.5], [1.0, 7.0]]


def test_gradient_on_the_ends_of_the_range_is_that_of_torchs_clamp(monkeypatch):
    """Where the operations themselves are differentiated the ends belong to the inside."""
    pair = fake_quantization._forward_math, fake_quantization._backward_math
    monkeypatch.setattr(fake_quantization, "_kernels", pair)
    x = torch.tensor([-0.5, 1.0, -0.75, 1.25], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    learnable_fake_quantize(x, scale, 1.0, 3).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert float(scale.grad) == -1 + 2


@pytest.mark.parametrize("zero", [5.0, [5.0], [5.0] * 6])
def test_one_zero_point_does_for_scales_of_many_channels(zero):
    x = values("normal", 0, (4, 6, 3, 3)) * 3
    scale = torch.linspace(0.1, 0.6, 6)
    found = fake_quantize(x, Grid(scale, torch.tensor(zero), 4, axis=1))
    each = [fake_quantize(x[:, c], Grid(scale[c], torch.tensor(5.0), 4)) for c in range(6)]
    assert torch.equal(found, torch.stack(each, 1))


def test_limits_are_those_of_clamp():
    x = values("outliers", 0, (5, 7, 40))
    lower, upper = -torch.rand(5, 7, 1), torch.rand(5, 7, 1)
    expected = x.clamp(lower, upper)
    assert torch.equal(limited_(x, lower, upper), expected)
    assert torch.equal(x, expected)
