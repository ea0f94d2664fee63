"""Checks on the written file: per output, at the default level, with the node that is at fault."""

from __future__ import annotations

import copy
import re

import numpy as np
import onnx
import pytest
from helpers.pooled import counting_pads, pooled
from helpers.stages import Stage, feeds, simulated
from onnx import numpy_helper

from mrecg_onnx.checking import executions, verification
from mrecg_onnx.checking.outputs import check_outputs
from mrecg_onnx.checking.verification import verify
from mrecg_onnx.measures import sqnr_db
from mrecg_onnx.quantization import quantize
from mrecg_onnx.running import open_session, run_padded
from mrecg_onnx.settings import Settings
from mrecg_onnx.targets.target import load_target
from mrecg_onnx.writing.containers import Contained
from mrecg_onnx.writing.exported import Exported
from mrecg_onnx.writing.qdq import export


@pytest.fixture(scope="module")
def stage() -> tuple[Stage, Exported]:
    made = simulated(pooled(), wbits=8, abits=8)
    return made, export(made.graph, made.simulation, {})


def test_a_right_file_has_figures_of_every_output_and_nothing_to_say(stage):
    made, exported = stage
    found = verify(exported, made.simulation, made.data)
    assert found.warnings == found.notes == ()
    assert {c.name for c in found.outputs} == {"beside", "y"}
    data = {name: x.numpy() for name, x in made.data.items()}
    written, default = (run_padded(open_session(exported.model, level=level), data) for level in ("off", "all"))
    floats = {name: x.numpy() for name, x in made.network.run(made.data).items()}
    for check in found.outputs:
        assert check.sqnr_db == pytest.approx(sqnr_db(written[check.name], default[check.name]), abs=1e-6)
        assert check.written_db == pytest.approx(sqnr_db(floats[check.name], written[check.name]), abs=1e-3)
        assert check.default_db == pytest.approx(sqnr_db(floats[check.name], default[check.name]), abs=1e-3)
    assert found.sqnr_fused_db == min(c.sqnr_db for c in found.outputs)
    assert found.sqnr_db == min(c.simulation_db for c in found.outputs)


def test_what_is_measured_is_the_file_that_is_written_and_the_node_at_fault_is_named(stage):
    made, exported = stage
    broken = counting_pads(exported.model)
    data = {name: x.numpy() for name, x in made.data.items()}
    written, default = (run_padded(open_session(broken, level=level), data) for level in ("off", "all"))
    if sqnr_db(written["y"], default["y"]) > 40:
        pytest.skip("this ONNX Runtime has a right kernel for the pool")
    plain = run_padded(open_session(exported.model, level="off"), data)
    assert np.array_equal(plain["y"], written["y"])
    found = verify(exported, made.simulation, made.data, held=Contained(broken), target=load_target("ort"))
    (warning,) = found.warnings
    assert "output 'y'" in warning
    assert "node 'pool' (AveragePool)" in warning
    assert "'first'" not in warning
    assert "--exclude" in warning
    assert found.outputs[0].name == "y"
    assert found.outputs[0].falls
    assert not found.outputs[1].falls


def test_a_layer_that_was_written_wrong_is_named(stage):
    made, exported = stage
    model = copy.deepcopy(exported.model)
    codes = next(t for t in model.graph.initializer if t.name.startswith("w2") and t.data_type == onnx.TensorProto.INT8)
    codes.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(codes), codes.name))
    wrong = Exported(model, codes=exported.codes)
    found = verify(wrong, made.simulation, made.data)
    assert any("node 'second' (Conv)" in w and "run as written" in w for w in found.warnings)
    model = copy.deepcopy(exported.model)
    codes = next(t for t in model.graph.initializer if t.name.startswith("w1") and t.data_type == onnx.TensorProto.INT8)
    codes.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(codes), codes.name))
    found = verify(Exported(model, codes=exported.codes), made.simulation, made.data)
    assert any(re.search(r"fed the same codes node 'first' \(Conv\)", w) for w in found.warnings)


def test_figures_of_a_target_are_those_of_its_runtime(tmp_path):
    source = pooled()
    np.savez(tmp_path / "x.npz", **feeds(source, 16))
    for target in ("portable", "qnn"):
        result = quantize(source, tmp_path / "x.npz", Settings(method="nearest", wbits=8, abits=8, target=target))
        data = feeds(source, 16)
        written, default = (run_padded(open_session(result.model, level=level), data) for level in ("off", "all"))
        least = min(sqnr_db(written[n], default[n]) for n in written)
        assert result.verification.sqnr_fused_db == pytest.approx(least, abs=1e-6)


@pytest.mark.parametrize(("room", "images"), [(1 << 20, 80), (1, 64)])
def test_small_images_are_many_and_large_ones_those_that_are_held(tmp_path, monkeypatch, room, images):
    source = pooled()
    np.savez(tmp_path / "x.npz", **feeds(source, 80))
    monkeypatch.setattr(verification, "NUMBERS", room)
    found = quantize(source, tmp_path / "x.npz", Settings(method="nearest", wbits=8, abits=8)).verification
    assert found.images == images
    assert not found.warnings


def test_what_differs_on_one_image_of_many_shows_in_the_figures(stage):
    """Saturation, say, in one image of 64: the mean over all outputs has it."""
    made, exported = stage
    data = {name: x.repeat(2, 1, 1, 1) for name, x in made.data.items()}
    assert len(data["x"]) == 64
    right = verify(exported, made.simulation, data)
    floating, simulated = executions.run_simulation(made.simulation, data, 8)
    wrong = {name: x.copy() for name, x in simulated.items()}
    wrong["y"][40] *= 0.8
    plain = executions.run_file(exported.model, "off", data, 8)
    checks = {c.name: c for c in check_outputs(floating, wrong, plain, plain)}
    assert right.sqnr_db > 60
    assert checks["y"].simulation_db < 40
    assert not checks["beside"].simulation_db < 60
