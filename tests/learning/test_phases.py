"""Methods of several phases: each learns its own, and a stopped run goes on in its phase."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.learned import activation_scales, codes, distance, results, small
from helpers.scarce import cache_nothing
from helpers.stages import feeds

from mrecg_onnx.learning import learner
from mrecg_onnx.methods import METHODS, Method, Phase
from mrecg_onnx.quantization import quantize
from mrecg_onnx.settings import Settings

PAPER = {"method": "brecq-paper", "wbits": 2, "abits": 4, "iters": 20, "batch_size": 16, "equalize": "off"}


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    return results(tmp_path_factory.mktemp("phases"))


def test_rows_without_phases_have_one_of_their_own_choices():
    assert Method("block", keep_quantized=0.5, learn_scales=True).passes == (
        Phase("reconstruct", keep_quantized=0.5, learn_scales=True),
    )
    assert [p.stage for p in METHODS["brecq-paper"].passes] == ["weights", "steps"]
    assert all(len({p.stage for p in row.passes}) == len(row.passes) for row in METHODS.values())


@pytest.mark.parametrize("loss", ["mse", "fisher"])
def test_published_brecq_beats_rounding_to_nearest(quantized, loss):
    result = quantized("brecq-paper", loss=loss)
    assert distance(result.model) > distance(quantized("nearest").model) + 2
    assert result.verification.warnings == ()
    assert result.verification.sqnr_db > 60
    assert list(result.phases) == ["weights", "steps"]
    assert result.units == result.phases["weights"]
    assert [u.iters for u in result.phases["weights"]] == [80] * len(result.units)
    assert [u.iters for u in result.phases["steps"]] == [20] * len(result.units)
    assert {"weights", "steps"} <= result.seconds.keys()


def test_each_phase_learns_its_own(quantized, monkeypatch, tmp_path):
    states = {}
    original = learner.reconstruct

    def spy(prefix, lessons, phase, iters):
        found = original(prefix, lessons, phase, iters)
        states[phase.stage] = prefix.simulation.state()
        return found

    monkeypatch.setattr(learner, "reconstruct", spy)
    result = results(tmp_path)("brecq-paper", iters=120)
    weights, steps = states["weights"], states["steps"]
    searched = activation_scales(quantized("nearest"))
    assert {n: float(g.scale) for n, g in weights.activations.items()} == searched
    assert all(torch.equal(weights.weights[n].codes, w.codes) for n, w in steps.weights.items())
    assert weights.biases == steps.biases == {}
    assert activation_scales(result) != searched
    nearest = codes(quantized("nearest"))
    assert any((codes(result)[n] != nearest[n]).any() for n in nearest)


def test_stopped_run_goes_on_in_its_phase(tmp_path, monkeypatch):
    np.savez(tmp_path / "calib.npz", **feeds(small(), 48))
    settings, trained = Settings(**PAPER), []
    whole = quantize(small(), tmp_path / "calib.npz", settings)
    units = [u.name for u in whole.units]
    original = learner.reconstruct_unit

    def spy(unit, *arguments, **options):
        trained.append(unit.name)
        return original(unit, *arguments, **options)

    def stop(progress):
        if progress.stage == "steps" and progress.done == 1 and progress.result is not None:
            raise KeyboardInterrupt

    monkeypatch.setattr(learner, "reconstruct_unit", spy)
    with pytest.raises(KeyboardInterrupt):
        quantize(small(), tmp_path / "calib.npz", settings, checkpoint=tmp_path / "work", progress=stop)
    assert trained == [*units, units[0]]
    trained.clear()
    again = quantize(small(), tmp_path / "calib.npz", settings, checkpoint=tmp_path / "work")
    assert trained == units[1:]
    assert again.model.SerializeToString() == whole.model.SerializeToString()
    kept = sorted(path.name for path in (tmp_path / "work").iterdir())
    assert kept == sorted(
        [f"{s}-{i:04d}.pt" for s in ("weights", "steps") for i in range(len(units))] + ["prepared", "run.json"]
    )


def test_activations_on_disk_give_the_same_file(tmp_path, monkeypatch):
    np.savez(tmp_path / "calib.npz", **feeds(small(), 48))
    settings = Settings(**PAPER | {"loss": "fisher", "iters": 8})
    made = [quantize(small(), tmp_path / "calib.npz", settings)]
    cache_nothing(monkeypatch)
    made.append(quantize(small(), tmp_path / "calib.npz", settings))
    assert made[0].phases.keys() == made[1].phases.keys()
    first, second = ({t.name: t.SerializeToString() for t in m.model.graph.initializer} for m in made)
    assert first == second
