"""Range estimators: known clipping values, what each keeps of a tensor, and the way from the option to the file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.architectures import residual
from helpers.stages import feeds, simulated
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from scipy.integrate import quad
from scipy.stats import norm

from mrecg_onnx.calibrating import activation_grids
from mrecg_onnx.commands._unused import unused_options
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.data import open_calibration
from mrecg_onnx.data.preprocess import InputSpec, Preprocess
from mrecg_onnx.methods import METHODS, RANGE_NAMES
from mrecg_onnx.preparation import calibrate
from mrecg_onnx.quantization import quantize
from mrecg_onnx.quantizers.fake_quantization import fake_quantize
from mrecg_onnx.quantizers.grids import EPSILON, Grid
from mrecg_onnx.quantizers.range_search import search_range
from mrecg_onnx.quantizers.ranges import (
    NORMS,
    RANGES,
    Estimator,
    aciq,
    entropy,
    gauss_clip,
    is_laplace,
    laplace_clip,
    min_max,
    percentile,
    ranges_of,
)
from mrecg_onnx.settings import Settings

ESTIMATORS = [entry for row in RANGES.values() for entry in row.proposals]


def ends(grid: Grid) -> tuple[float, float]:
    """Smallest and largest value on the grid."""
    scale, zero = float(grid.scale), float(grid.zero_point)
    return (grid.qmin - zero) * scale, (grid.qmax - zero) * scale


def estimate(estimator: Estimator, x: torch.Tensor, bits: int) -> Grid:
    return estimator(x, bits, x.amin(), x.amax())


def laplace(count: int = 100_000, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).laplace(size=count).astype(np.float32))


def normal(count: int = 100_000, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(count).astype(np.float32))


# --- analytic clipping -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "b", "sigma"), [(2, 2.83, 1.71), (3, 3.89, 2.15), (4, 5.03, 2.55)])
def test_clipping_values_are_the_published_ones(bits, b, sigma):
    assert laplace_clip(bits) == pytest.approx(b, abs=0.01)
    assert gauss_clip(bits) == pytest.approx(sigma, abs=0.01)


@pytest.mark.parametrize("bits", range(1, 10))
def test_clipping_values_minimise_the_noise_they_are_derived_from(bits):
    def laplace_noise(t: float) -> float:
        return 2 * np.exp(-t) + t**2 / (3 * 4**bits)

    def gauss_noise(t: float) -> float:
        return 2 * quad(lambda x: (x - t) ** 2 * norm.pdf(x), t, 12)[0] + t**2 / (3 * 4**bits)

    for noise, t in ((laplace_noise, laplace_clip(bits)), (gauss_noise, gauss_clip(bits))):
        assert noise(t) <= min(noise(t * 0.99), noise(t * 1.01))


def test_the_density_is_told_by_likelihood():
    for x, expected in ((laplace(), True), (normal(), False)):
        assert bool(is_laplace(x.abs().mean(), x.std())) is expected


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_analytic_range_of_two_sided_and_of_rectified_values(bits):
    for x, alpha in ((laplace(), laplace_clip), (normal(), gauss_clip)):
        low, high = ends(estimate(aciq, x, bits))
        # Zero points are whole numbers: both ends may lie half a step off.
        assert high - low == pytest.approx(2 * alpha(bits), rel=0.02)
        rectified = ends(estimate(aciq, x.relu(), bits))
        # On one side a step covers half as much: the value of one bit more.
        assert rectified == pytest.approx((0.0, alpha(bits + 1)), rel=0.02)
        negative = ends(estimate(aciq, -x.relu(), bits))
        assert negative == pytest.approx((-alpha(bits + 1), 0.0), rel=0.02)


# --- all estimators ----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    estimator=st.sampled_from(ESTIMATORS),
    bits=st.integers(2, 8),
    seed=st.integers(0, 2**32 - 1),
    size=st.floats(1e-6, 1e6),
    kind=st.sampled_from(["normal", "relu", "negative", "tails", "constant", "zero", "few"]),
)
def test_no_range_is_wider_than_the_values_and_zero_is_on_every_grid(estimator, bits, seed, size, kind):
    x = normal(2_000, seed) * size
    x = {
        "normal": x,
        "relu": x.relu(),
        "negative": -x.relu(),
        "tails": x**3 / size**2,
        "constant": torch.full((50,), size),
        "zero": torch.zeros(50),
        "few": x[:3],
    }[kind]
    grid = estimate(estimator, x, bits)
    low, high = ends(grid)
    step = float(grid.scale) + EPSILON * grid.qmax  # no scale is below epsilon, for zeros neither
    assert low <= 0 <= high
    assert low >= min(float(x.amin()), 0) - step
    assert high <= max(float(x.amax()), 0) + step
    assert 0 <= float(grid.zero_point) == round(float(grid.zero_point)) <= grid.qmax
    assert torch.equal(fake_quantize(torch.zeros(1), grid), torch.zeros(1))


def test_min_max_takes_the_true_ends_and_the_percentile_leaves_outliers_out():
    x = normal(100_000).clamp(-3, 3)
    low, high = torch.tensor(-7.0), torch.tensor(9.0)
    assert ends(min_max(x, 8, low, high)) == pytest.approx((-7, 9), abs=0.04)
    outliers = torch.cat([x, torch.full((5,), 100.0)])
    assert ends(estimate(percentile, outliers, 8))[1] == pytest.approx(3, abs=0.1)
    assert ends(estimate(min_max, outliers, 8))[1] == pytest.approx(100, abs=0.5)
    row = ranges_of("percentile", 90.0).proposals[0]
    assert ends(estimate(row, normal(), 8)) == pytest.approx((-1.2816, 1.2816), abs=0.03)


def test_entropy_keeps_a_flat_histogram_and_cuts_a_long_tail():
    flat = torch.linspace(0, 1, 100_000)
    assert ends(estimate(entropy, flat, 4))[1] == pytest.approx(1, abs=0.02)
    tail = torch.cat([normal().abs(), torch.full((10,), 50.0)])
    high = ends(estimate(entropy, tail, 4))[1]
    assert 1.5 < high < 10
    # Zeros are on every grid: how many of them there are decides nothing.
    assert ends(estimate(entropy, torch.cat([tail, torch.zeros(300_000)]), 4))[1] == high


def test_entropy_keeps_a_small_negative_lobe():
    """Ends that shrink together cut the lobe, where most values are, as soon as they cut the tail."""
    x = torch.nn.functional.silu(2 * normal())
    grid = estimate(entropy, x, 4)
    low, high = ends(grid)
    assert low < 0
    assert high < 0.6 * float(x.amax())
    nearest = Grid(grid.scale, torch.zeros(()), 4)
    assert float((fake_quantize(x, grid) - x).abs().mean()) < 0.9 * float((fake_quantize(x, nearest) - x).abs().mean())


def test_each_estimator_beats_min_max_on_heavy_tails_at_four_bits():
    x = laplace() ** 3
    worst = float((fake_quantize(x, estimate(min_max, x, 4)) - x).abs().mean())
    for estimator in ESTIMATORS:
        if estimator is not min_max:
            assert float((fake_quantize(x, estimate(estimator, x, 4)) - x).abs().mean()) < worst


# --- from the option to the file ---------------------------------------------------------------------------------


def test_the_table_has_the_names_that_the_command_line_offers():
    assert tuple(RANGES) == RANGE_NAMES
    assert len(RANGES["output"].proposals) == len(NORMS)
    assert {row.ranges for row in METHODS.values()} <= set(RANGES)


def test_unknown_range_and_percentile_out_of_bounds_are_refused():
    with pytest.raises(SettingsError, match="range is 'max': choose among auto, output"):
        Settings(range="max")
    with pytest.raises(SettingsError, match="percentile"):
        Settings(percentile=40.0)


def test_auto_is_the_methods_own_row_and_min_max_covers_the_weights_too():
    stage = simulated(residual(), range="output")
    for method, same in (("nearest", "output"), ("aciq", "aciq")):
        auto = calibrate(stage.network, stage.plan, stage.data, Settings(method=method)).activations
        own = calibrate(stage.network, stage.plan, stage.data, Settings(method=method, range=same)).activations
        assert {n: float(g.scale) for n, g in auto.items()} == {n: float(g.scale) for n, g in own.items()}
    found = calibrate(stage.network, stage.plan, stage.data, Settings(range="minmax")).weights["conv2"].grid
    weight = stage.network.step("conv2").module.weight
    assert torch.equal(found.scale, search_range(weight, 4, axis=0, candidates=1).scale)
    searched = stage.simulation.weights["conv2"].grid
    # Where no whole zero point fits the range, that which fits both ends has steps up to 1 / (2^b - 2) larger.
    assert bool((searched.scale <= found.scale * 15 / 14).all())
    assert bool((searched.scale < found.scale).any())


@pytest.mark.parametrize("name", RANGE_NAMES)
def test_every_range_reaches_the_file_and_the_file_agrees_with_the_simulation(name, tmp_path):
    model, path = residual(), tmp_path / "calib.npz"
    np.savez(path, **feeds(model, 16))
    result = quantize(model, path, Settings(method="nearest", range=name, threads=1, range_samples=16, equalize="off"))
    assert result.verification.sqnr_db > 40 or result.verification.exact > 0.5
    assert not result.verification.warnings


def test_a_percentile_without_its_range_is_said_to_have_no_effect():
    assert unused_options(Settings(range="mse"), ["percentile"]) == ["--percentile has no effect with --range mse"]
    assert not unused_options(Settings(range="percentile"), ["percentile", "range"])


# --- how many images ---------------------------------------------------------------------------------------------


#: Image 100 of 128: of each two images the default takes the other one.
OUTLIER = 100


@pytest.fixture(scope="module")
def outlier(tmp_path_factory):
    """A model and 128 inputs, one of them 100 times as large."""
    model, path = residual(), tmp_path_factory.mktemp("outlier") / "calib.npz"
    data = feeds(model, 128)
    data["input"][OUTLIER] *= 100
    np.savez(path, **data)
    return model, path


def scales(given, **options) -> dict[str, float]:
    model, path = given
    result = quantize(model, path, Settings(range="minmax", threads=1, equalize="off", **options))
    held = {i.name: numpy_helper.to_array(i) for i in result.model.graph.initializer}
    found = {n.input[1]: held[n.input[1]] for n in result.model.graph.node if n.op_type == "QuantizeLinear"}
    assert found
    return {name: float(scale) for name, scale in found.items()}


def test_ranges_see_all_images_that_the_user_asks_for(outlier):
    default = scales(outlier, method="nearest")
    assert default == scales(outlier, method="nearest", range_samples=64)
    asked = scales(outlier, method="nearest", samples=128)
    assert all(asked[name] > 10 * default[name] for name in default)
    assert scales(outlier, method="nearest", samples=1_000) == asked  # there are no more
    assert scales(outlier, method="nearest", samples=128, range_samples=64) == default


@pytest.mark.parametrize("method", ["aciq", "lapq"])
def test_ranges_of_other_methods_are_read_from_all_images_too(outlier, method):
    quick = {"method": method, "lapq_evaluations": 2, "lapq_images": 16, "samples": 128}
    few, many = scales(outlier, range_samples=64, **quick), scales(outlier, **quick)
    assert max(many[name] / few[name] for name in few) > 5


def test_a_data_set_is_read_in_batches_for_ranges_and_gives_what_held_images_give(outlier, monkeypatch):
    model, path = outlier
    spec = InputSpec("input", (None, *feeds(model, 1)["input"].shape[1:]), np.dtype("f4"))
    dataset = open_calibration(path, [spec], Preprocess())
    stage = simulated(model)
    held = {name: torch.from_numpy(array) for name, array in dataset.load().items()}
    expected = activation_grids(stage.network, stage.plan.activations, held, images=128)
    sizes: list[int] = []
    read = dataset._read
    monkeypatch.setattr(dataset, "_read", lambda wanted: sizes.append(len(wanted)) or read(wanted))
    found = activation_grids(stage.network, stage.plan.activations, held, images=128, dataset=dataset)
    assert sizes == [16] * 8
    assert {n: (float(g.scale), float(g.zero_point)) for n, g in found.items()} == {
        n: (float(g.scale), float(g.zero_point)) for n, g in expected.items()
    }
