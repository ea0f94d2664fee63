"""LAPQ: the vertex of a parabola, steps that are never left worse than they were found, and the file."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.architectures import matmul_add, residual
from helpers.stages import feeds, simulated, tensors
from hypothesis import given, settings
from hypothesis import strategies as st

from mrecg_onnx.commands._unused import unused_options
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.learning import lapq
from mrecg_onnx.learning.lapq import P_VALUES, minimise_steps, vertex
from mrecg_onnx.measures.task import task_loss
from mrecg_onnx.network import Network
from mrecg_onnx.progress import Progress
from mrecg_onnx.quantization import quantize
from mrecg_onnx.settings import Settings


def loss_of(simulation, data) -> float:
    """The task loss as the file would have it, measured without any of the search's shortcuts."""
    return float(task_loss(simulation.run(data), simulation.network.run(data)))


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
    results, counts = [], [0]
    run = Network.run

    def counted(network, values, steps=None, **options):
        counts[0] += len(network.steps if steps is None else steps)
        return run(network, values, steps, **options)

    monkeypatch.setattr(Network, "run", counted)
    for keep in (lapq.KEPT_BYTES, 700_000, 0):
        simulation = simulated(model, data, wbits=3, method="nearest").simulation
        before = counts[0]
        results.append(minimise_steps(simulation, data, images=40, range_samples=16, evaluations=80, keep=keep))
        counts.append(counts[0] - before)
    assert results[0] == results[1] == results[2]
    assert counts[1] < counts[2] < counts[3]


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
    result = quantize(model, path, chosen, progress=seen.append)
    assert not result.verification.warnings
    assert result.verification.sqnr_db > 40 or result.verification.exact > 0.5
    assert result.lapq is not None
    assert result.lapq.loss <= result.lapq.loss_start
    assert result.to_json()["lapq"]["evaluations"] == result.lapq.evaluations
    assert max(p.done for p in seen if p.stage == "lapq") == result.lapq.evaluations
    assert 40 in {p.total for p in seen if p.stage == "lapq" and p.done}
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
