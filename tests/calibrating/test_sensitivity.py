"""Sensitivity: the worst quantizers come first, and protection gives them eight bits."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from helpers.architectures import residual
from helpers.stages import feeds, saved, simulated
from onnx import numpy_helper

from mrecg_onnx.calibrating.sensitivity import measure_sensitivity
from mrecg_onnx.checking.verification import verify
from mrecg_onnx.measures.output_errors import output_error
from mrecg_onnx.progress import Clock, Progress
from mrecg_onnx.quantization import QuantizationResult, quantize
from mrecg_onnx.quantizers import Grid
from mrecg_onnx.settings import Settings
from mrecg_onnx.writing.qdq import export

if TYPE_CHECKING:
    from pathlib import Path


def test_planted_bad_quantizer_comes_first():
    stage = simulated(residual())
    for planted in ("relu1_out", "add_relu_out"):
        grids = dict(stage.simulation.activations)
        grids[planted] = Grid(grids[planted].scale * 30, grids[planted].zero_point, 4)
        found = measure_sensitivity(replace(stage.simulation, activations=grids), stage.data)
        assert found[0].name == planted
        assert found[0].error > 2 * found[1].error


def test_every_quantizer_is_measured_alone_and_in_order():
    stage = simulated(residual())
    found = measure_sensitivity(stage.simulation, stage.data)
    assert {s.name for s in found} == {a.name for a in stage.plan.activations}
    assert [s.error for s in found] == sorted((s.error for s in found), reverse=True)
    assert {s.name: s.bits for s in found} == {a.name: a.bits for a in stage.plan.activations}
    assert all(s.error > 0 for s in found)
    # Alone means alone: the float network with just this one.
    for entry in (found[0], next(s for s in found if s.name == "input")):
        hook = stage.simulation.activation_hook({entry.name})
        batch = {n: x[:32] for n, x in stage.data.items()}
        outputs = stage.network.run({n: hook(n, x) for n, x in batch.items()}, activation=hook)
        assert entry.error == pytest.approx(output_error(outputs, stage.network.run(batch)))


def test_four_bits_hurt_more_than_eight():
    stage = simulated(residual())
    found = {s.name: s for s in measure_sensitivity(stage.simulation, stage.data)}
    assert min(s.error for s in found.values() if s.bits == 4) > max(s.error for s in found.values() if s.bits == 8)


def test_measurement_reports_its_progress():
    told = []
    stage = simulated(residual())
    count = len(stage.plan.activations)
    with Clock(told.append).stage("sensitivity"):
        measure_sensitivity(stage.simulation, stage.data)
    assert told[0] == Progress("sensitivity")
    assert [(p.done, p.total, p.of) for p in told[1:]] == [(i + 1, count, "tensors") for i in range(count)]


def protected(tmp_path: Path, number: int) -> QuantizationResult:
    calib = saved(tmp_path / "calib.npz", **feeds(residual(), 64))
    return quantize(residual(), calib, Settings(method="nearest", equalize="off", protect=number))


@pytest.mark.parametrize("number", [1, 2])
def test_protection_raises_the_worst_to_8_bits_and_says_so(tmp_path, number):
    plain, result = protected(tmp_path, 0), protected(tmp_path, number)
    assert plain.sensitivities == ()
    assert plain.protected == ()
    worst = [s.name for s in result.sensitivities if s.bits < 8][:number]
    assert list(result.protected) == worst
    before = {a.name: a for a in plain.plan.activations}
    for entry in result.plan.activations:
        assert entry.protected == (entry.name in worst)
        assert entry.bits == (8 if entry.name in worst else before[entry.name].bits)
    metadata = {p.key: p.value for p in result.model.metadata_props}
    assert json.loads(metadata["mrecg_onnx.protected"]) == worst
    assert all(json.loads(metadata["mrecg_onnx.bits"])[name] == 8 for name in worst)
    report = json.loads(json.dumps(result.to_json()))
    assert report["protected"] == worst
    assert [s["name"] for s in report["sensitivities"]] == [s.name for s in result.sensitivities]
    # In the file there is no Clip on the codes any more, and the scale is that of 8 bits.
    names = {n.name for n in result.model.graph.node}
    scales = [{t.name: numpy_helper.to_array(t) for t in r.model.graph.initializer} for r in (plain, result)]
    for name in worst:
        assert f"{name}_Clip" not in names
        assert scales[1][f"{name}_scale"] < scales[0][f"{name}_scale"] / 4
    assert result.verification.warnings == ()


def test_protecting_more_than_there_are_raises_all(tmp_path):
    result = protected(tmp_path, 99)
    assert {a.bits for a in result.plan.activations} == {8}
    assert len(result.protected) == 4


def test_protected_network_is_closer_to_the_float_one():
    stage = simulated(residual())
    errors = []
    for bits in (4, 8):
        # At 4 bits the noise of the weights would drown that of activations.
        raised = simulated(residual(), wbits=8, abits=bits)
        outputs = raised.simulation.run(raised.data)
        errors.append(output_error(outputs, stage.network.run(stage.data)))
        assert verify(export(raised.graph, raised.simulation, {}), raised.simulation, raised.data).warnings == ()
    assert errors[1] < errors[0]
