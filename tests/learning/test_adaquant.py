"""AdaQuant: layer by layer, weights move any distance, a layer learns the scale of what it reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.learned import activation_scales, distance, results, small
from helpers.stages import feeds, simulated, tensors

from mrecg_onnx.learning import learner
from mrecg_onnx.learning.prefix import Inputs, Prefix
from mrecg_onnx.machine.cache import Pool, Store
from mrecg_onnx.measures import sqnr_db
from mrecg_onnx.methods import METHODS
from mrecg_onnx.quantization import quantize
from mrecg_onnx.quantizers import search_range
from mrecg_onnx.quantizers.rounding import StraightRounding
from mrecg_onnx.settings import Settings


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    return results(tmp_path_factory.mktemp("adaquant"))


def test_row():
    row = METHODS["adaquant"]
    assert (row.granularity, row.rounding, row.learn_scales, row.input_scales) == ("layer", "ste", True, True)


def test_it_beats_rounding_to_nearest_and_the_file_computes_it(quantized):
    nearest, learned = quantized("nearest"), quantized("adaquant")
    assert [u.layers for u in learned.units] == [(layer.name,) for layer in learned.plan.layers]
    assert distance(learned.model) > distance(nearest.model) + 3
    assert learned.verification.warnings == ()
    assert learned.verification.sqnr_db > 60


def test_weights_move_farther_than_one_step():
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    learned = StraightRounding(weight, search_range(weight, 4, axis=0))
    first = learned.hard_codes()
    scale, zero = learned.grid.along(2)
    target = ((first + 3).clamp(0, 15) - zero) * scale
    optimizer = torch.optim.Adam(learned.variables, lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        ((learned.soft() - target) / scale).square().sum().backward()
        optimizer.step()
    assert torch.equal(learned.hard_codes(), (first + 3).clamp(0, 15))


def test_every_layer_learns_the_scale_of_its_input(quantized, monkeypatch, tmp_path):
    entries = {}
    original = learner.reconstruct_unit

    def spy(unit, simulation, data, **options):
        entries[unit.name] = data.entries
        return original(unit, simulation, data, **options)

    monkeypatch.setattr(learner, "reconstruct_unit", spy)
    result = results(tmp_path)("adaquant", iters=20)
    learned = [name for names in entries.values() for name in names]
    assert len(set(learned)) == len(learned)
    # A tensor that its own unit reads is learned there; the image keeps its range.
    inner = {n for n in activation_scales(result) if n != "input"}
    assert set(learned) <= inner
    assert "a1_relu_out" in entries["a2"]
    searched, found = activation_scales(quantized("nearest")), activation_scales(result)
    assert found["input"] == searched["input"]
    kept = {u.name for u in result.units if u.kept == "learned"}
    assert all(found[n] != searched[n] for unit in kept for n in entries[unit])


def test_deferred_quantizers_make_the_same_network():
    stage = simulated(small(), tensors(small(), 20), wbits=2, abits=4, method="adaquant")
    grids = stage.simulation.activations
    inputs = Inputs(
        {n: Store.of(x) for n, x in stage.data.items()}, {n: Store.of(x, grids[n]) for n, x in stage.data.items()}, 20
    )
    units = stage.plan.units
    prefix = Prefix(stage.simulation, units, inputs, Pool(), quantize_activations=True, input_scales=True)
    assert prefix.deferred
    assert "input" not in prefix.deferred
    whole = stage.simulation.run(stage.data, keep=[n for u in units for n in u.inputs])
    for unit in units:
        targets = prefix.targets(unit)
        data = prefix.data(unit, targets, torch.arange(20), torch.arange(0))
        for name, store in data.quantized.items():
            x = store.read(0, 20)
            if name in data.deferred:  # as it is before its quantizer
                assert not torch.equal(x, whole[name])
                x = stage.simulation.activation_hook()(name, x)
            if name in whole:
                assert sqnr_db(whole[name].numpy(), x.numpy()) > 25
        prefix.advance(unit, targets)


def test_stopped_run_goes_on_with_learned_input_scales(tmp_path):
    np.savez(tmp_path / "calib.npz", **feeds(small(), 48))
    settings = Settings(method="adaquant", wbits=2, iters=15, batch_size=16, equalize="off")
    whole = quantize(small(), tmp_path / "calib.npz", settings)

    def stop(progress):
        if progress.stage == "reconstruct" and progress.done == 3 and progress.result is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(small(), tmp_path / "calib.npz", settings, checkpoint=tmp_path / "work", progress=stop)
    again = quantize(small(), tmp_path / "calib.npz", settings, checkpoint=tmp_path / "work")
    assert again.model.SerializeToString() == whole.model.SerializeToString()


@pytest.mark.parametrize(
    "more", [{"rounding": "adaround"}, {"drop": 0.5}, {"abits": 32}, {"residual": "shared"}], ids=str
)
def test_it_goes_with_other_choices(quantized, more):
    chosen = {k: v for k, v in more.items() if k in {"abits", "residual"}}
    assert distance(quantized("adaquant", **more).model) > distance(quantized("nearest", **chosen).model)
