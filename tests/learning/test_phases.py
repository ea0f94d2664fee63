"""Methods of several phases, Fisher-weighted losses and bias correction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.architectures import Graph
from helpers.learned import activation_scales, codes, distance, results, small
from helpers.stages import feeds, simulated, tensors

from mrecg_onnx import quantization
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.learning.bias_correction import _clamp_behind, correct_biases
from mrecg_onnx.learning.losses import reconstruction_loss
from mrecg_onnx.learning.prefix import Inputs, Prefix
from mrecg_onnx.machine.cache import Pool, Store
from mrecg_onnx.measures.task import task_loss
from mrecg_onnx.methods import METHODS, Method, Phase
from mrecg_onnx.quantization import quantize
from mrecg_onnx.settings import Settings

PAPER = {"method": "brecq-paper", "wbits": 2, "abits": 4, "iters": 20, "batch_size": 16, "equalize": "off"}


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    return results(tmp_path_factory.mktemp("phases"))


def prefix_of(stage, **options) -> Prefix:
    count, grids = len(stage.data["input"]), stage.simulation.activations
    inputs = Inputs(
        {n: Store.of(x) for n, x in stage.data.items()},
        {n: Store.of(x, grids.get(n)) for n, x in stage.data.items()},
        count,
    )
    chosen = {"quantize_activations": True} | options
    return Prefix(stage.simulation, stage.plan.units, inputs, Pool(), **chosen)


# --- phases ------------------------------------------------------------------------------------------------------


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
    original = quantization.reconstruct

    def spy(prefix, run, iters, phase):
        found = original(prefix, run, iters, phase)
        states[phase.stage] = prefix.simulation.state()
        return found

    monkeypatch.setattr(quantization, "reconstruct", spy)
    result = results(tmp_path)("brecq-paper", iters=120)
    weights, steps = states["weights"], states["steps"]
    searched = activation_scales(quantized("nearest"))
    assert {n: float(g.scale) for n, g in weights.activations.items()} == searched
    assert all(torch.equal(weights.weights[n].codes, w.codes) for n, w in steps.weights.items())
    assert weights.biases == steps.biases == {}
    assert activation_scales(result) != searched
    nearest = codes(quantized("nearest"))
    assert any((codes(result)[n] != nearest[n]).any() for n in nearest)


def test_second_phase_reads_what_the_float_network_makes():
    stage = simulated(small(), tensors(small(), 12), wbits=2, abits=4)
    prefix = prefix_of(stage, float_inputs=True)
    wanted = stage.network.run(stage.data, keep=[n for u in stage.plan.units for n in u.inputs])
    for unit in stage.plan.units:
        targets = prefix.targets(unit)
        data = prefix.data(unit, targets, torch.arange(12), torch.arange(0))
        for name in unit.inputs:
            assert torch.allclose(
                data.quantized[name].read(0, 12), wanted[name], atol=2e-3 * float(wanted[name].abs().max())
            )
        prefix.advance(unit, targets)


def test_stopped_run_goes_on_in_its_phase(tmp_path, monkeypatch):
    np.savez(tmp_path / "calib.npz", **feeds(small(), 48))
    settings, trained = Settings(**PAPER), []
    whole = quantize(small(), tmp_path / "calib.npz", settings)
    units = [u.name for u in whole.units]
    original = quantization.reconstruct_unit

    def spy(unit, *arguments, **options):
        trained.append(unit.name)
        return original(unit, *arguments, **options)

    def stop(progress):
        if progress.stage == "steps" and progress.done == 1 and progress.result is not None:
            raise KeyboardInterrupt

    monkeypatch.setattr(quantization, "reconstruct_unit", spy)
    with pytest.raises(KeyboardInterrupt):
        quantize(small(), tmp_path / "calib.npz", settings, checkpoint=tmp_path / "work", report=stop)
    assert trained == [*units, units[0]]
    trained.clear()
    again = quantize(small(), tmp_path / "calib.npz", settings, checkpoint=tmp_path / "work")
    assert trained == units[1:]
    assert again.model.SerializeToString() == whole.model.SerializeToString()
    kept = sorted(path.name for path in (tmp_path / "work").iterdir())
    assert kept == sorted([f"{s}-{i:04d}.pt" for s in ("weights", "steps") for i in range(len(units))] + ["run.json"])


def test_activations_on_disk_give_the_same_file(tmp_path):
    np.savez(tmp_path / "calib.npz", **feeds(small(), 48))
    settings = PAPER | {"loss": "fisher", "iters": 8}
    made = [quantize(small(), tmp_path / "calib.npz", Settings(**settings, memory=m)) for m in (None, 1)]
    assert made[0].phases.keys() == made[1].phases.keys()
    # The settings in the files differ, the constants do not.
    first, second = ({t.name: t.SerializeToString() for t in m.model.graph.initializer} for m in made)
    assert first == second


# --- losses ------------------------------------------------------------------------------------------------------


def test_losses_of_exponents_and_gradients():
    output, target = torch.tensor([[1.0, -2.0], [0.0, 3.0]]), torch.zeros(2, 2)
    gradient = torch.tensor([[0.0, 1.0], [5.0, 0.5]])
    assert float(reconstruction_loss(output, target, power=2.4)) == pytest.approx((1 + 2**2.4 + 3**2.4) / 2)
    # (dz)^2 (|g| + 1)^2
    assert float(reconstruction_loss(output, target, None, 2.0, gradient)) == pytest.approx((1 + 4 * 4 + 9 * 2.25) / 2)
    assert float(reconstruction_loss(output, target, 0.1, 2.0, 0 * gradient)) == pytest.approx(14 / 2)


def test_task_loss_is_the_divergence_of_class_probabilities_else_the_relative_error():
    generator = torch.Generator().manual_seed(0)
    scores, other = (torch.randn(6, 5, generator=generator) for _ in range(2))
    p, q = scores.softmax(1), other.softmax(1)
    assert float(task_loss({"o": other}, {"o": scores})) == pytest.approx(
        float((p * (p / q).log()).sum(1).mean()), rel=1e-5
    )
    assert float(task_loss({"o": scores}, {"o": scores})) == pytest.approx(0, abs=1e-7)
    maps = {"m": torch.randn(2, 3, 4, 4, generator=generator)}
    expected = 0.01 * float(maps["m"].square().mean() / maps["m"].var(correction=0))
    assert float(task_loss({"m": 1.1 * maps["m"]}, maps)) == pytest.approx(expected, rel=1e-4)


def test_gradient_at_the_output_is_that_of_the_divergence():
    stage = simulated(small(), tensors(small(), 12), wbits=2, abits=4)
    prefix = prefix_of(stage)
    for unit in stage.plan.units:
        targets = prefix.targets(unit)
        found = prefix.gradients(unit, targets)
        assert found.keys() == set(unit.outputs)
        assert all(tuple(found[n].shape) == tuple(targets[n].shape) for n in found)
        assert all(float(store.read(0, 12).max()) > 0 for store in found.values())
        prefix.advance(unit, targets)
    quantized = stage.simulation.run(stage.data)["output"].softmax(1)
    expected = (quantized - stage.network.run(stage.data)["output"].softmax(1)).abs()  # of each image alone
    assert torch.allclose(found["output"].read(0, 12), expected, atol=2e-3)


@pytest.mark.parametrize("method", ["brecq", "adaquant", "adaround"])
def test_fisher_goes_with_any_method_and_with_windows(quantized, method):
    result = quantized(method, loss="fisher", iters=40, window=8)
    assert distance(result.model) > distance(quantized("nearest").model)
    assert result.verification.warnings == ()


def test_unknown_loss_is_refused():
    with pytest.raises(SettingsError, match="loss is 'other'"):
        Settings(loss="other")


# --- bias correction ---------------------------------------------------------------------------------------------


def test_corrected_layers_are_right_on_average_where_it_is_seen():
    stage = simulated(small(), tensors(small(), 32), wbits=2, abits=4)
    names = ["stem_relu_out", "a1_relu_out", "a_out_out", "b1_relu_out", "output"]

    def errors() -> list[float]:
        wanted = stage.network.run(stage.data, keep=names)
        made = stage.simulation.run(stage.data, keep=names)
        means = [(wanted[n] - made[n]).movedim(1, 0).flatten(1).mean(1).square().mean().sqrt() for n in names]
        return [float(m / wanted[n].std()) for m, n in zip(means, names, strict=True)]

    before = errors()
    shifts = correct_biases(prefix_of(stage))
    assert shifts.keys() == {layer.name for layer in stage.plan.layers}
    after = errors()
    assert sum(after) < 0.5 * sum(before)
    assert after[-1] < 0.01 < before[-1]


def test_channels_of_a_matmul_with_bias_are_on_the_last_axis():
    g = Graph(seed=1)
    x = g.op("Reshape", [g.input(4, size=12), g.constant("rows", np.array([0, 36, 16]))], "reshape")
    for name, cin, cout, output in (("first", 16, 24, None), ("last", 24, 8, "output")):
        x = g.op("MatMul", [x, g.weight(f"{name}.weight", (cin, cout), cin)], name)
        x = g.op("Add", [x, g.bias(f"{name}.bias", cout)], f"{name}_add", output)
        x = g.relu(x) if output is None else x
    stage = simulated(g.model(), tensors(g.model(), 32), wbits=2, abits=4, first_last_bits=4)

    def error() -> float:
        wanted, made = (run(stage.data)["output"] for run in (stage.network.run, stage.simulation.run))
        return float((wanted - made).flatten(0, 1).mean(0).square().mean().sqrt() / wanted.std())

    before = error()
    assert correct_biases(prefix_of(stage)).keys() == {"first", "last"}
    assert error() < 0.25 * before


def test_values_that_are_cut_off_do_not_count():
    g = Graph(seed=1)
    x = g.relu(g.conv(g.input(4, size=12), 4, 8, "stem"), "stem_relu")
    g.classifier(g.relu(g.op("Add", [g.conv(x, 8, 8, "a1"), x], "add"), "last"), 8)
    stage = simulated(g.model(), tensors(g.model(), 32), wbits=2, abits=4)
    prefix = prefix_of(stage)
    found = {}
    for unit in stage.plan.units:
        for layer in unit.layers:
            found[layer] = _clamp_behind(prefix, stage.network.step(layer), prefix.steps(unit))
    assert {name: step and step.node for name, step in found.items()} == {"stem": "stem_relu", "a1": "last", "fc": None}


def test_correction_pays_without_learning(quantized):
    plain, corrected = quantized("nearest"), quantized("nearest", bias_correction=True)
    assert distance(corrected.model) > distance(plain.model) + 3
    assert codes(plain).keys() == codes(corrected).keys()
    assert all((codes(plain)[n] == codes(corrected)[n]).all() for n in codes(plain))
    assert corrected.corrections
    assert plain.corrections == {}
    assert corrected.verification.warnings == ()
    assert "correct" in corrected.seconds


@pytest.mark.parametrize("method", ["brecq", "adaround", "brecq-paper"])
def test_correction_comes_behind_learning(quantized, method):
    plain, corrected = quantized(method, iters=30), quantized(method, iters=30, bias_correction=True)
    assert all((codes(plain)[n] == codes(corrected)[n]).all() for n in codes(plain))
    assert distance(corrected.model) > distance(plain.model) - 1
