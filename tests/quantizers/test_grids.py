"""Grids: the range search, codes, fake quantization and its gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from mrecg_onnx.quantizers import fake_quantization
from mrecg_onnx.quantizers.fake_quantization import (
    fake_quantize,
    fake_quantize_weight,
    learnable_fake_quantize,
    quantize_codes,
)
from mrecg_onnx.quantizers.grids import EPSILON, Grid, grid_from_range, whole_reciprocal
from mrecg_onnx.quantizers.range_search import PER_CHANNEL_CANDIDATES, PER_TENSOR_CANDIDATES, search_range

if TYPE_CHECKING:
    from torch import Tensor

BITS = st.integers(2, 8)
SEEDS = st.integers(0, 2**32 - 1)
KINDS = st.sampled_from(["normal", "positive", "negative", "outliers", "shifted", "constant"])
NO_DEADLINE = settings(max_examples=40, deadline=None)


def values(kind: str, seed: int, shape: tuple[int, ...]) -> Tensor:
    """Values of one of the shapes that weights and activations come in."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    return {
        "normal": x,
        "positive": x.relu(),
        "negative": -x.abs(),
        "outliers": torch.where(torch.rand(shape, generator=generator) < 0.02, x * 30, x),
        "shifted": x + 3,
        "constant": torch.full(shape, 0.7),
    }[kind]


def error(x: Tensor, scale: float, zero: float, bits: int, p: float = 2.4, *, symmetric: bool = False) -> float:
    """Mean |x - Q(x)|^p in float64."""
    top = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
    values, scale = x.double().numpy().ravel(), float(scale)
    codes = np.clip(np.round(values / scale) + float(zero), -top if symmetric else 0, top)
    return float(np.mean(np.abs((codes - float(zero)) * scale - values) ** p))


def shrunk_together(x: Tensor, bits: int, candidates: int, p: float = 2.4, *, symmetric: bool = False) -> float:
    """Least error of the ranges whose ends shrink together (docs/method.md 1), as a loop."""
    top = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
    least, most = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    found = []
    for i in range(candidates):
        low, high = least * (1 - 0.01 * i), most * (1 - 0.01 * i)
        scale = max(max(-low, high) / top if symmetric else (high - low) / top, EPSILON)
        zero = 0.0 if symmetric else min(max(np.round(-low / scale), 0), top)
        found.append(error(x, scale, zero, bits, p, symmetric=symmetric))
    return min(found)


def all_pairs(x: Tensor, bits: int, p: float = 2.4, steps: int = 100) -> float:
    """Least error over scales of 6 to 100 % and all zero points, as QDrop's observer tries them."""
    full = (max(float(x.max()), 0.0) - min(float(x.min()), 0.0)) / (2**bits - 1)
    scales = [full * i / steps for i in range(6, steps + 1)]
    return min(error(x, scale, zero, bits, p) for scale in scales for zero in range(2**bits))


# --- range search ------------------------------------------------------------------------------------------------

NORMS = st.sampled_from([1.0, 1.5, 2.0, 2.4, 4.0])
#: What float32 leaves of values around 1 that are on the grid.
NOISE = 1e-6


@NO_DEADLINE
@given(bits=BITS, symmetric=st.booleans(), kind=KINDS, seed=SEEDS, p=NORMS)
def test_range_search_is_never_worse_than_ends_that_shrink_together(bits, symmetric, kind, seed, p):
    x = values(kind, seed, (7, 41))
    grid = search_range(x, bits, symmetric=symmetric, p=p)
    assert grid.scale.shape == grid.zero_point.shape == ()
    assert (grid.bits, grid.axis, grid.symmetric) == (bits, None, symmetric)
    found = error(x, grid.scale, grid.zero_point, bits, p, symmetric=symmetric)
    before = shrunk_together(x, bits, PER_TENSOR_CANDIDATES, p, symmetric=symmetric)
    assert found <= before * (1 + 1e-3) + NOISE
    if symmetric or kind in {"positive", "negative", "constant"}:
        # The zero point is given: there is nothing else to try.
        assert found == pytest.approx(before, rel=1e-3, abs=NOISE)


@settings(max_examples=15, deadline=None)
@given(bits=st.integers(2, 8), kind=KINDS, seed=SEEDS, p=NORMS)
def test_summaries_of_many_values_find_what_the_values_do(bits, kind, seed, p):
    x = values(kind, seed, (30_000,))
    grid = search_range(x, bits, p=p)
    before = shrunk_together(x, bits, PER_TENSOR_CANDIDATES, p)
    assert error(x, grid.scale, grid.zero_point, bits, p) <= before * (1 + 1e-3) + NOISE


@settings(max_examples=15, deadline=None)
@given(bits=st.integers(2, 5), kind=KINDS, seed=SEEDS, p=st.sampled_from([1.0, 2.4]), size=st.sampled_from([60, 3000]))
def test_search_from_coarse_to_fine_is_as_good_as_trying_all_pairs(bits, kind, seed, p, size):
    x = values(kind, seed, (size,))
    grid = search_range(x, bits, p=p)
    # The steps of both nets differ: on few values, where the error is ragged, by more.
    assert (
        error(x, grid.scale, grid.zero_point, bits, p) <= all_pairs(x, bits, p) * (1.01 if size > 1000 else 1.1) + NOISE
    )


@NO_DEADLINE
@given(bits=BITS, symmetric=st.booleans(), kind=KINDS, seed=SEEDS, axis=st.integers(0, 2))
def test_range_search_per_channel_is_the_search_of_each_channel(bits, symmetric, kind, seed, axis):
    # Channels of very different size and both kinds of sign: each has to make its own choice.
    x = (values(kind, seed, (3, 4, 25)) * torch.tensor([0.01, 1.0, 100.0]).view(3, 1, 1)).movedim(0, axis)
    x.select(axis, 1).abs_()
    grid = search_range(x, bits, axis=axis, symmetric=symmetric)
    assert grid.scale.shape == grid.zero_point.shape == (3,)
    for channel in range(3):
        alone = search_range(x.select(axis, channel), bits, symmetric=symmetric, candidates=PER_CHANNEL_CANDIDATES)
        found, expected = (
            error(x.select(axis, channel), s, z, bits, symmetric=symmetric)
            for s, z in ((grid.scale[channel], grid.zero_point[channel]), (alone.scale, alone.zero_point))
        )
        # Of grids that float32 cannot tell apart either may be taken.
        assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("function", "spread"),
    [(torch.nn.functional.silu, 2.5), (torch.nn.functional.hardswish, 3.0), (torch.nn.functional.gelu, 1.7)],
)
def test_small_negative_lobe_is_kept_at_four_bits(function, spread):
    """Ends that shrink together round the zero point of the whole range to 0, and everything below is cut."""
    x = function(spread * values("normal", 0, (100_000,)))
    assert float(grid_from_range(x.amin(), x.amax(), 4, symmetric=False)[1]) == 0
    grid = search_range(x, 4, p=1.0)
    assert float(grid.zero_point) >= 1
    assert error(x, grid.scale, grid.zero_point, 4, 1.0) < 0.99 * shrunk_together(x, 4, PER_TENSOR_CANDIDATES, 1.0)


def test_ends_are_cut_apart_where_tails_differ():
    x = values("normal", 0, (20_000,)) + 1
    grid = search_range(x, 4)
    low, high = -grid.zero_point * grid.scale, (15 - grid.zero_point) * grid.scale
    # Together they would keep the ratio of the minimum to the maximum.
    assert 0 < float(-low / high) < 0.8 * float(-x.amin() / x.amax())
    assert error(x, grid.scale, grid.zero_point, 4) < 0.9 * shrunk_together(x, 4, PER_TENSOR_CANDIDATES)


def test_whole_range_has_the_better_of_both_zero_points():
    x = torch.tensor([-0.4] * 50 + [1.0, 10.0])
    whole = search_range(x, 4, candidates=1)
    assert float(whole.scale) == pytest.approx(10.4 / 15)
    assert float(whole.zero_point) == 1  # -0.4 / 0.69 is nearer to -1 than to 0


@pytest.mark.parametrize("axis", [None, 0])
def test_large_tensor_is_searched_a_few_candidates_at_a_time(axis):
    base = values("outliers", 0, (4, 5_000))
    # Copies change no mean, but from 4 million values on each candidate is taken alone.
    large, small = search_range(base.repeat(1, 210), 4, axis=axis), search_range(base, 4, axis=axis)
    for channel in range(1 if axis is None else 4):
        part = base if axis is None else base[channel]
        found = [error(part, *(t.reshape(-1)[channel] for t in (g.scale, g.zero_point)), 4) for g in (large, small)]
        assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_true_range_of_a_sample_is_what_shrinks():
    sample = values("normal", 0, (1000,)).clamp(-1, 1)
    low, high = torch.tensor(-2.0), torch.tensor(2.0)
    whole = search_range(sample, 8, low=low, high=high, candidates=1)
    assert float(whole.scale) == pytest.approx(4 / 255)
    free = search_range(sample, 8, low=low, high=high)
    assert float(free.scale) == pytest.approx(2 / 255, rel=0.03)


def test_outlier_is_clipped_at_few_bits_and_kept_at_eight():
    x = torch.cat([values("normal", 0, (10_000,)), torch.tensor([8.0])])
    clipped, kept = search_range(x, 3), search_range(x, 8)
    assert float(fake_quantize(x, clipped)[-1]) < 5
    assert float(fake_quantize(x, kept)[-1]) > 7


@NO_DEADLINE
@given(bits=BITS, symmetric=st.booleans(), kind=KINDS, seed=SEEDS)
def test_zero_has_a_code_of_its_own(bits, symmetric, kind, seed):
    grid = search_range(values(kind, seed, (4, 30)), bits, axis=0, symmetric=symmetric)
    zeros = torch.zeros(4, 3)
    assert torch.equal(quantize_codes(zeros, grid), grid.zero_point[:, None].expand(4, 3))
    assert not fake_quantize(zeros, grid).any()
    assert torch.equal(grid.zero_point, grid.zero_point.round())
    assert ((grid.zero_point >= 0) & (grid.zero_point <= 2**bits - 1)).all()


@pytest.mark.parametrize("symmetric", [False, True])
def test_tensor_of_zeros_has_a_grid(symmetric):
    grid = search_range(torch.zeros(3, 5), 4, axis=0, symmetric=symmetric)
    assert torch.equal(grid.scale, torch.full((3,), EPSILON))
    assert not fake_quantize(torch.zeros(3, 5), grid).any()


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


@pytest.mark.parametrize(
    ("bits", "symmetric", "ends"),
    [(2, False, (0, 3)), (8, False, (0, 255)), (8, True, (-127, 127)), (4, True, (-7, 7))],
)
def test_codes_stay_between_the_ends_of_the_grid(bits, symmetric, ends):
    grid = Grid(torch.tensor(0.5), torch.tensor(0.0 if symmetric else 1.0), bits, symmetric=symmetric)
    assert (grid.qmin, grid.qmax) == ends
    codes = quantize_codes(torch.linspace(-1000, 1000, 999), grid)
    assert (float(codes.min()), float(codes.max())) == ends


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
