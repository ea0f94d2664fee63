"""LAPQ: the vertex of a parabola, steps that are never left worse than they were found, and the file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.architectures import matmul_add, residual
from helpers.stages import feeds, simulated, tensors
from hypothesis import given, settings
from hypothesis import strategies as st

from mrecg_onnx.commands._options import unused_options
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.learning import lapq
from mrecg_onnx.learning.lapq import P_VALUES, minimise_steps, vertex
from mrecg_onnx.measures.output_errors import OutputScales, output_sums
from mrecg_onnx.measures.task import task_loss
from mrecg_onnx.progress import Progress
from mrecg_onnx.quantization import quantize
from mrecg_onnx.settings import Settings


def loss_of(simulation, data) -> float:
    """The task loss as the file would have it, measured without any of the search's shortcuts."""
    return float(task_loss(simulation.run(data), simulation.network.run(data)))


# --- the loss ----------------------------------------------------------------------------------------------------


def test_task_loss_is_the_divergence_of_class_scores_and_else_the_relative_error():
    reference = {"scores": torch.tensor([[0.0, 0.0], [0.0, 0.0]]), "index": torch.tensor([0, 0])}
    outputs = {"scores": torch.log(torch.tensor([[0.25, 0.75], [0.5, 0.5]])), "index": torch.tensor([1, 0])}
    # Half of KL(1/2, 1/2 || 1/4, 3/4): the other row has none.
    expected = 0.5 * (0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75))
    assert float(task_loss(outputs, reference)) == pytest.approx(expected, rel=1e-5)
    images = {"image": torch.tensor([[0.0, 2.0, 4.0]])[None]}  # variance 8/3
    assert float(task_loss({"image": images["image"] + 1.0}, images)) == pytest.approx(3 / 8)
    # Beside another output scores are an output like any other: neither decides alone.
    heads = {"scores": torch.tensor([[1.0, -1.0]]), "boxes": torch.tensor([[0.0, 400.0]])}
    moved = {"scores": heads["scores"] + 0.2, "boxes": heads["boxes"] + 20.0}
    assert float(task_loss(moved, heads)) == pytest.approx((0.04 + 0.01) / 2)
    for exact in (reference, images, heads):
        assert float(task_loss(exact, exact)) == pytest.approx(0.0, abs=1e-7)


def test_task_loss_has_gradients():
    scores = torch.randn(4, 5, requires_grad=True)
    task_loss({"y": scores}, {"y": torch.randn(4, 5)}).backward()
    assert bool(scores.grad.abs().sum() > 0)


# --- the start ---------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(place=st.floats(2.1, 3.9), height=st.floats(-5, 5), bend=st.floats(0.01, 100))
def test_vertex_of_a_parabola(place, height, bend):
    assert vertex(P_VALUES, [bend * (p - place) ** 2 + height for p in P_VALUES]) == pytest.approx(place, abs=1e-3)


def test_vertex_stays_within_the_norms_tried_and_needs_a_minimum():
    assert vertex(P_VALUES, [(p - 7) ** 2 for p in P_VALUES]) == 4.0
    assert vertex(P_VALUES, [-((p - 3) ** 2) for p in P_VALUES]) is None
    assert len(P_VALUES) == 10
    assert (P_VALUES[0], P_VALUES[-1]) == (2.0, 4.0)


# --- the search --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("build", "evaluations"), [(residual, 1), (residual, 60), (matmul_add, 200)])
def test_the_result_is_what_it_says_and_never_worse_than_any_start(build, evaluations):
    model = build()
    data = tensors(model, 40)
    simulation = simulated(model, data, wbits=2, method="nearest").simulation
    begin = loss_of(simulation, data)
    steps = []
    found = minimise_steps(
        simulation,
        data,
        images=40,
        range_samples=40,
        evaluations=evaluations,
        report=lambda done, total, loss: steps.append((done, total, loss)),
    )
    assert found.loss == pytest.approx(loss_of(simulation, data), rel=1e-3, abs=1e-6)
    assert found.loss <= found.loss_start <= min(begin, *found.losses) * (1 + 1e-6)
    assert found.evaluations <= evaluations
    assert [s[0] for s in steps] == list(range(1, len(steps) + 1))
    assert all(later[2] <= earlier[2] for earlier, later in zip(steps, steps[1:], strict=False))
    if evaluations > 1:
        assert found.loss < found.loss_start


def test_what_is_kept_between_evaluations_changes_nothing(monkeypatch):
    model = residual()
    data = tensors(model, 40)
    results = []
    for kept in (lapq.KEPT_BYTES, 0):
        monkeypatch.setattr(lapq, "KEPT_BYTES", kept)
        simulation = simulated(model, data, wbits=3, method="nearest").simulation
        results.append(minimise_steps(simulation, data, images=40, range_samples=16, evaluations=80))
    assert results[0] == results[1]


def test_a_search_without_anything_to_gain_returns_its_start(monkeypatch):
    model = residual()
    data = tensors(model, 8)
    simulation = simulated(model, data, wbits=4, method="nearest").simulation

    def worse(search, _x):
        worse.calls += 1
        return 1e9 + worse.calls

    worse.calls = 0
    monkeypatch.setattr(lapq._Search, "loss", worse)
    found = minimise_steps(simulation, data, images=8, range_samples=8, evaluations=30)
    assert worse.calls == found.evaluations == 30
    assert found.loss == found.loss_start
    assert found.loss == pytest.approx(loss_of(simulation, data), rel=1e-4)


# --- the whole way -----------------------------------------------------------------------------------------------


def test_the_file_agrees_with_the_simulation_and_the_same_seed_gives_the_same_file(tmp_path):
    model, path = residual(), tmp_path / "calib.npz"
    np.savez(path, **feeds(model, 32))
    chosen = Settings(method="lapq", wbits=3, threads=1, lapq_evaluations=40, lapq_images=16, range_samples=16)
    seen: list[Progress] = []
    result = quantize(model, path, chosen, report=seen.append)
    assert not result.verification.warnings
    assert result.verification.sqnr_db > 40 or result.verification.exact > 0.5
    assert result.lapq is not None
    assert result.lapq.loss <= result.lapq.loss_start
    assert result.to_json()["lapq"]["evaluations"] == result.lapq.evaluations
    assert max(p.done for p in seen if p.stage == "lapq") == result.lapq.evaluations
    assert {p.total for p in seen if p.stage == "lapq" and p.done} == {40}
    again = quantize(model, path, chosen)
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(deterministic=True)


def test_weights_alone_can_be_searched(tmp_path):
    model, path = residual(), tmp_path / "calib.npz"
    np.savez(path, **feeds(model, 16))
    result = quantize(model, path, Settings(method="lapq", abits=32, threads=1, lapq_evaluations=10, lapq_images=16))
    assert not result.verification.warnings


def test_its_options_are_checked_and_idle_elsewhere():
    for name in ("lapq_evaluations", "lapq_images"):
        with pytest.raises(SettingsError, match=name):
            Settings(**{name: 0})
        option = "--" + name.replace("_", "-")
        assert unused_options(Settings(method="nearest"), [name]) == [f"{option} has no effect with --method nearest"]
    assert unused_options(Settings(method="lapq"), ["iters", "lapq_images"]) == [
        "--iters has no effect with --method lapq"
    ]


def test_a_reconstruction_is_not_judged_as_class_scores() -> None:
    inputs, rebuilt = {"x": torch.randn(4, 3, 2, 2)}, {"y": torch.randn(4, 12)}
    scales = OutputScales.of(output_sums(rebuilt, rebuilt), rebuilt, inputs)
    assert scales.scores is None
    moved = {"y": rebuilt["y"] + 0.1}  # a shift of all scores is none to a softmax
    assert float(task_loss(moved, rebuilt, scales)) == pytest.approx(
        0.01 / float(rebuilt["y"].var(correction=0)), rel=1e-4
    )
    assert OutputScales.of(output_sums(rebuilt, rebuilt), rebuilt, {"x": torch.randn(4, 3, 8, 8)}).scores == "y"
