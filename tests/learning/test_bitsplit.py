"""Bit-split: ternary planes in closed form, and whole runs."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from helpers.architectures import Graph, conv_transpose, depthwise, matmul_add, residual
from helpers.matrices import LAYERS, equations_of, normal
from helpers.stages import feeds
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from onnx import numpy_helper

from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.converters.ops.weighted import OnnxGemm
from mrecg_onnx.learning.bitsplit import Objective, Planes, alternate, split_responses, split_weight
from mrecg_onnx.learning.responses import layout_of
from mrecg_onnx.measures import sqnr_db
from mrecg_onnx.planning import BitRule
from mrecg_onnx.quantization import QuantizationResult, quantize
from mrecg_onnx.quantizers import quantize_codes, search_range
from mrecg_onnx.running import open_session, run_padded
from mrecg_onnx.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path


# --- planes ------------------------------------------------------------------------------------------------------


@given(bits=st.integers(3, 8), data=st.data())
@hypothesis_settings(max_examples=30, deadline=None)
def test_planes_stitch_back_into_their_codes(bits, data):
    most = 2 ** (bits - 1) - 1
    codes = torch.tensor(data.draw(st.lists(st.integers(-most, most), min_size=6, max_size=6)), dtype=torch.float64)
    planes = Planes.of(codes.view(1, 2, 3), torch.ones(1, 2, dtype=torch.float64), bits)
    assert len(planes.planes) == bits - 1
    assert set(planes.planes.unique().tolist()) <= {-1.0, 0.0, 1.0}
    assert torch.equal(planes.codes.flatten(), codes)


def layer_of(weight: torch.Tensor):
    return layout_of(OnnxGemm(weight, trans_b=True))


@given(bits=st.integers(3, 8), seed=st.integers(0, 1000))
@hypothesis_settings(max_examples=25, deadline=None)
def test_splitting_weights_is_no_worse_than_the_best_symmetric_range(bits, seed):
    weight = normal(4, 24, seed=seed)
    state = split_weight(weight, bits, 0, layer_of(weight))
    grid = search_range(weight, bits, axis=0, symmetric=True, p=2.0)
    nearest = quantize_codes(weight, grid) * grid.scale[:, None]
    errors = [(w - weight).double().square().sum(1) for w in (state.matrix[0], nearest)]
    assert torch.all(errors[0] <= errors[1] * (1 + 1e-5))  # scales are single precision: 6e-8 of a weight of 127 steps
    assert torch.all(state.alpha > 0)
    assert float(state.codes.abs().max()) <= 2 ** (bits - 1) - 1
    # alpha is <W, S> / <S, S>.
    codes = state.codes[0]
    torch.testing.assert_close(state.alpha[0], (weight.double() * codes).sum(1) / codes.square().sum(1))


@given(seed=st.integers(0, 1000))
@hypothesis_settings(max_examples=15, deadline=None)
def test_every_round_lowers_the_error_of_the_responses(seed):
    x, weight = normal(200, 12, seed=seed) @ normal(12, 12, seed=seed + 1), normal(3, 12, seed=seed + 2)
    gram = (x.T @ x).double()[None] / 200
    objective = Objective(weight.double()[None] @ gram, gram)
    state = split_weight(weight, 3, 0, layer_of(weight))

    def error(w: torch.Tensor) -> torch.Tensor:
        difference = w - weight.double()[None]
        return (difference @ gram * difference).sum()

    errors = [float(error(state.matrix))]
    alternate(state, objective, lambda now: errors.append(float(error(now.matrix))))
    assert all(b <= a * (1 + 1e-9) + 1e-12 for a, b in itertools.pairwise(errors))


def test_no_single_plane_element_can_be_improved_at_the_end():
    x, weight = normal(300, 10) @ normal(10, 10, seed=1), normal(2, 10, seed=2)
    gram = (x.T @ x).double()[None] / 300
    cross = weight.double()[None] @ gram
    state = split_weight(weight, 4, 0, layer_of(weight))
    alternate(state, Objective(cross, gram))

    def error(codes: torch.Tensor) -> float:
        w = codes * state.alpha[:, :, None]
        return float((w @ gram * w).sum() - 2 * (cross * w).sum())

    least = error(state.codes)
    for m, row, column in itertools.product(range(3), range(2), range(10)):
        for value in (-1.0, 0.0, 1.0):
            other = Planes(state.planes.clone(), state.alpha)
            other.planes[m, 0, row, column] = value
            assert error(other.codes) >= least - 1e-9


def test_blocks_of_columns_change_nothing(monkeypatch):
    x, weight = normal(400, 20) @ normal(20, 20, seed=1), normal(3, 20, seed=2)
    gram = (x.T @ x).double()[None] / 400
    found = []
    for block in (128, 7, 1):
        monkeypatch.setattr("mrecg_onnx.learning.bitsplit.BLOCK", block)
        state = split_weight(weight, 4, 0, layer_of(weight))
        alternate(state, Objective(weight.double()[None] @ gram, gram))
        found.append(state.codes)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_dead_inputs_and_dead_channels_stay_finite():
    weight = normal(3, 6)
    weight[1] = 0
    x = normal(50, 6, seed=1)
    x[:, 2:] = 0
    module = OnnxGemm(weight, trans_b=True)
    state = split_weight(weight, 3, 0, layer_of(weight))
    split_responses(state, weight[None], equations_of(module, x, x))
    assert torch.isfinite(state.matrix).all()
    assert not state.matrix[0, 1].any()
    # Inputs that calibration never shows keep the codes that the weight itself asks for.
    assert torch.all((state.matrix[0, :, 2:] - weight[:, 2:]).abs() <= state.alpha[0][:, None] / 2 + 0.2)


def test_groups_of_a_transposed_convolution_share_their_scales():
    module, x, axis = LAYERS["transposed in groups"]
    layout = layout_of(module)
    state = split_weight(module.weight, 4, axis, layout)
    split_responses(state, layout.matrix(module.weight), equations_of(module, x, x))
    assert state.alpha.shape == (1, 3)
    assert torch.all(state.alpha > 0)


# --- whole runs --------------------------------------------------------------------------------------------------


def noisy_bottom() -> onnx.ModelProto:
    g = Graph(seed=3)
    x = g.relu(g.conv(g.input(4), 4, 8, "stem"), "stem_relu")
    y = g.relu(g.conv(x, 8, 8, "a1"), "a1_relu")
    x = g.relu(g.op("Add", [g.conv(y, 8, 8, "a2"), x], "a_add"), "a_out")
    y = g.clip(g.conv(x, 8, 16, "b1", kernel=1), "b1_clip")
    y = g.clip(g.conv(y, 16, 16, "b2", stride=2, groups=16), "b2_clip")
    g.classifier(g.relu(g.conv(y, 16, 16, "c1", kernel=1), "c1_relu"), 16)
    return g.model()


def run(model: onnx.ModelProto, folder: Path, **settings: Any) -> QuantizationResult:
    np.savez(folder / "calib.npz", **feeds(model, 64))
    chosen: dict[str, Any] = {"method": "bit-split", "wbits": 3, "abits": 4, "equalize": "off", "range": "mse"}
    return quantize(model, folder / "calib.npz", Settings(**chosen | settings))


def distance(model: onnx.ModelProto, quantized: onnx.ModelProto) -> float:
    """Output SQNR on inputs that were not seen, in dB."""
    fed = feeds(model, 64, seed=99)
    return sqnr_db(*(run_padded(open_session(m, level="off"), fed)["output"] for m in (model, quantized)))


@pytest.mark.parametrize("wbits", [3, 4])
def test_bit_split_beats_rounding_to_nearest(tmp_path, wbits):
    model = noisy_bottom()
    split, nearest = (run(model, tmp_path, wbits=wbits, method=m) for m in ("bit-split", "nearest"))
    assert distance(model, split.model) > distance(model, nearest.model) + 1.0
    assert all(unit.loss < unit.loss_nearest for unit in split.units if unit.kept == "learned")
    assert sum(unit.kept == "learned" for unit in split.units) >= len(split.units) - 1
    assert [unit.layers for unit in split.units] == [(layer.name,) for layer in split.plan.layers]


def test_the_file_agrees_with_the_simulation_and_keeps_to_ternary_planes(tmp_path):
    result = run(noisy_bottom(), tmp_path)
    assert result.verification.sqnr_db > 30
    assert result.verification.warnings == ()
    values = {t.name: numpy_helper.to_array(t) for t in result.model.graph.initializer}
    kept = {unit.layers[0] for unit in result.units if unit.kept == "learned"}
    for layer in result.plan.layers:
        codes = values[f"{layer.weight}_quantized"].astype(int)
        most = 2 ** (layer.wbits - 1) - 1
        assert layer.name not in kept or np.abs(codes).max() <= most


@pytest.mark.parametrize("build", [conv_transpose, depthwise, matmul_add, residual])
def test_all_kinds_of_layers(tmp_path, build):
    model = build()
    result = run(model, tmp_path)
    assert result.verification.warnings == ()
    assert distance(model, result.model) >= distance(model, run(model, tmp_path, method="nearest").model) - 0.5


def test_biases_take_up_the_mean_error(tmp_path):
    model = noisy_bottom()
    moved, fixed = (run(model, tmp_path, learn_bias=learn, wbits=3) for learn in (True, False))
    assert distance(model, moved.model) > distance(model, fixed.model)


def test_the_same_run_gives_the_same_file(tmp_path):
    first, second = (run(residual(), tmp_path).model.SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_finished_units_are_kept(tmp_path):
    model = residual()
    whole = run(model, tmp_path)
    np.savez(tmp_path / "calib.npz", **feeds(model, 64))
    settings = Settings(method="bit-split", wbits=3, abits=4, equalize="off", range="mse")
    for _ in range(2):
        again = quantize(model, tmp_path / "calib.npz", settings, checkpoint=tmp_path / "kept")
        assert again.model.graph == whole.model.graph
    assert len(list((tmp_path / "kept").glob("reconstruct-*.pt"))) == len(whole.units)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"wbits": 2}, "wbits"),
        ({"first_last_bits": 2}, "first_last_bits"),
        ({"bits": (BitRule.parse("conv1=W2"),)}, "conv1"),
    ],
)
def test_two_bits_are_refused_by_name(settings, said):
    with pytest.raises(SettingsError, match=rf"bit-split needs weights of 3 bits or more, .*{said}.* 2"):
        Settings(method="bit-split", **settings)


def test_excluded_layers_stay_in_float(tmp_path):
    result = run(noisy_bottom(), tmp_path, exclude=("a2",))
    names = {t.name for t in result.model.graph.initializer}
    assert "a2.weight" in names
    assert "a1.weight_quantized" in names
