"""Reconstruction: learned rounding beats rounding to nearest, runs repeat, and nothing worse is ever kept."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from helpers.architectures import Graph
from helpers.learned import activation_scales, codes, distance, tiny
from helpers.stages import feeds
from onnx import numpy_helper
from PIL import Image

from mrecg_onnx.converters import normalize
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.data import InputSpec, Preprocess, open_calibration
from mrecg_onnx.learning import learner
from mrecg_onnx.methods import METHODS, method_of
from mrecg_onnx.planning import make_plan
from mrecg_onnx.progress import Progress
from mrecg_onnx.quantization import QuantizationResult, quantize
from mrecg_onnx.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ITERS = 60


@pytest.fixture(scope="module")
def calibration(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("reconstruction") / "calib.npz"
    np.savez(path, **feeds(tiny(), 64))
    return path


@pytest.fixture(scope="module")
def quantized(calibration) -> Callable[..., QuantizationResult]:
    """Results by settings, each made once."""

    @cache
    def result(method: str, wbits: int = 2, abits: int = 4, **more) -> QuantizationResult:
        chosen = {"iters": ITERS, "batch_size": 16, "equalize": "off"} | more
        return quantize(tiny(), calibration, Settings(method=method, wbits=wbits, abits=abits, **chosen))

    return result


# --- parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "base", "keep", "granularity"),
    [
        ("nearest", "qdrop", 1.0, "none"),
        ("bit-split", "qdrop", 1.0, "layer"),
        ("adaround", "qdrop", None, "layer"),
        ("brecq", "qdrop", 1.0, "block"),
        ("qdrop", "qdrop", 0.5, "block"),
        ("mrecg", "qdrop", 0.5, "block"),
        ("mrecg", "brecq", 1.0, "block"),
    ],
)
def test_methods_are_rows_of_choices(method, base, keep, granularity):
    row = method_of(Settings(method=method, base=base))
    assert (row.keep_quantized, row.granularity, row.merge) == (keep, granularity, method == "mrecg")
    assert row.learn_scales == (method in {"brecq", "qdrop", "mrecg"})
    assert row.solver == ("bit-split" if method == "bit-split" else "gradient")
    assert set(METHODS) >= {"nearest", "adaround", "brecq", "qdrop", "mrecg"}
    dropped = method_of(Settings(method=method, base=base, drop=0.25))
    assert dropped.keep_quantized == (None if keep is None else 0.25)


# --- learning ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["mrecg", *(pytest.param(name, marks=pytest.mark.slow) for name in ("adaround", "brecq", "qdrop"))]
)
def test_learning_beats_rounding_to_nearest(quantized, method):
    nearest, learned = quantized("nearest"), quantized(method)
    assert nearest.units == ()
    assert learned.units
    assert all(unit.final_loss <= unit.loss_nearest for unit in learned.units)
    assert all(
        unit.final_loss == (unit.loss if unit.kept == "learned" else unit.loss_nearest) for unit in learned.units
    )
    kept = [unit for unit in learned.units if unit.kept == "learned"]
    assert len(kept) >= len(learned.units) / 2
    assert sum(u.final_loss for u in learned.units) < 0.9 * sum(u.loss_nearest for u in learned.units)
    assert distance(learned.model, tiny) > distance(nearest.model, tiny) + 1
    assert [n for unit in learned.units for n in unit.layers] == [layer.name for layer in learned.plan.layers]


@pytest.mark.parametrize("method", ["adaround", "brecq", "qdrop", "mrecg"])
def test_file_computes_what_was_learned(quantized, method):
    result = quantized(method)
    assert result.verification.sqnr_db > 60
    assert result.verification.warnings == ()


def test_learned_codes_round_up_or_down(quantized):
    nearest, learned = codes(quantized("nearest")), codes(quantized("brecq"))
    moved = 0
    for name in nearest:
        difference = learned[name].astype(int) - nearest[name].astype(int)
        assert set(np.unique(difference)) <= {-1, 0, 1}
        moved += np.count_nonzero(difference)
    assert moved > 0


@pytest.mark.parametrize("method", ["qdrop", "mrecg"])
def test_same_seed_same_file(quantized, calibration, method):
    first = quantized(method)
    again = quantize(tiny(), calibration, first.settings)
    assert again.model.SerializeToString() == first.model.SerializeToString()
    assert [u.loss for u in again.units] == [u.loss for u in first.units]


@pytest.mark.slow
def test_same_file_in_another_process(calibration, tmp_path):
    """Sets are in another order there: nothing may hang on it."""
    onnx.save(tiny(), tmp_path / "model.onnx")
    script = (
        "import hashlib, sys, torch; torch.set_num_threads(1); from mrecg_onnx import Settings, quantize; "
        "model = quantize(sys.argv[1], sys.argv[2], Settings(iters=5, method='qdrop')).model; "
        "print(hashlib.sha256(model.SerializeToString()).hexdigest(), end='')"
    )
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    command = [sys.executable, "-c", script, str(tmp_path / "model.onnx"), str(calibration)]
    environment = os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
    there = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    here = quantize(tmp_path / "model.onnx", calibration, Settings(iters=5, method="qdrop")).model
    assert there == hashlib.sha256(here.SerializeToString()).hexdigest()


def test_other_seed_other_codes(quantized):
    first, other = codes(quantized("qdrop")), codes(quantized("qdrop", seed=1))
    assert any(not np.array_equal(first[name], other[name]) for name in first)


def test_adaround_leaves_activation_ranges_alone_and_the_others_learn_them(quantized):
    searched = activation_scales(quantized("nearest"))
    assert activation_scales(quantized("adaround")) == searched
    learned = activation_scales(quantized("brecq"))
    assert learned.keys() == searched.keys()
    assert learned["input"] == searched["input"]
    assert sum(learned[name] != searched[name] for name in searched) > len(searched) / 2
    assert all(0.3 < learned[name] / searched[name] < 3 for name in searched)


def test_adaround_goes_layer_by_layer_and_the_others_block_by_block(quantized):
    assert [u.layers for u in quantized("adaround").units] == [(x.name,) for x in quantized("adaround").plan.layers]
    assert [u.layers for u in quantized("qdrop").units] == [
        ("stem",),
        ("a1", "a2"),
        ("b1", "b2", "b3", "b_short"),
        ("c1", "fc"),
    ]


def test_float_activations_are_learned_beside(quantized):
    nearest, learned = quantized("nearest", 2, 32), quantized("qdrop", 2, 32)
    assert distance(learned.model, tiny) > distance(nearest.model, tiny) + 1
    assert activation_scales(learned) == {}


def test_learned_bias_is_written(quantized):
    plain, learned = quantized("brecq", learn_bias=False), quantized("brecq", learn_bias=True)
    assert learned.verification.sqnr_db > 60
    assert learned.verification.warnings == ()
    biases = []
    for result in (plain, learned):
        values = {t.name: numpy_helper.to_array(t) for t in result.model.graph.initializer}
        (name,) = [n for n in values if n.startswith("fc.bias") and n.endswith("_quantized")]
        biases.append(values[name] * values[name.replace("_quantized", "_scale")].astype(np.float64))
    assert np.abs(biases[0] - biases[1]).max() > 1e-3


@pytest.mark.parametrize("window", [0, 8])
def test_windows_learn_as_well_as_whole_maps(quantized, window):
    result = quantized("brecq", window=window)
    assert sum(u.final_loss for u in result.units) < 0.9 * sum(u.loss_nearest for u in result.units)


# --- what is kept ------------------------------------------------------------------------------------------------


def test_diverging_unit_keeps_nearest_rounding(quantized):
    nearest, wild = (
        quantized("nearest", 4, 4),
        quantized("qdrop", 4, 4, lr_rounding=1e4, lr_scale=3.0, learn_bias=False),
    )
    assert all(unit.kept == "nearest" for unit in wild.units)
    assert all(unit.final_loss == unit.loss_nearest < unit.loss for unit in wild.units)
    first, second = codes(nearest), codes(wild)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert activation_scales(wild) == activation_scales(nearest)


def test_held_out_images_are_not_trained_on(calibration, monkeypatch):
    seen = []
    original = learner.reconstruct_unit

    def spy(unit, simulation, data, **options):
        seen.append((set(data.training.tolist()), set(data.held_out.tolist())))
        return original(unit, simulation, data, **options)

    monkeypatch.setattr(learner, "reconstruct_unit", spy)
    settings = {"method": "qdrop", "iters": 2, "equalize": "off"}
    quantize(tiny(), calibration, Settings(held_out=0.25, **settings))
    assert len(seen) == 4
    for training, held_out in seen:
        assert len(held_out) == 16
        assert training | held_out == set(range(64))
        assert not training & held_out
    seen.clear()
    quantize(tiny(), calibration, Settings(held_out=0.0, **settings))
    assert all((len(training), len(held_out)) == (64, 0) for training, held_out in seen)


@pytest.mark.parametrize(("augment", "copies"), [("flip", 2), ("shift", 4), ("crop", 4)])
def test_variants_of_images_are_learned_from_beside_their_originals_which_judge(tmp_path, monkeypatch, augment, copies):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number:02d}.png")
    g = Graph()
    g.classifier(g.relu(g.conv(g.input(3), 3, 8)), 8)
    seen = []
    original = learner.reconstruct_unit

    def spy(unit, simulation, data, **options):
        images = next(iter(data.floating.values())).read(0, 20 * copies)
        seen.append((images, data.training.tolist(), data.held_out.tolist()))
        return original(unit, simulation, data, **options)

    monkeypatch.setattr(learner, "reconstruct_unit", spy)
    settings = Settings(method="qdrop", iters=2, augment=augment, held_out=0.25, equalize="off")
    result = quantize(g.model(), tmp_path, settings)
    images, training, held_out = seen[0]
    own = Settings(preprocess="imagenet").preprocess
    files = open_calibration(tmp_path, [InputSpec("input", (None, 3, 16, 16), np.dtype(np.float32))], own)
    assert result.images == 20
    assert torch.allclose(images[0::copies], torch.from_numpy(files.batch(range(20))["input"]), atol=1e-2)
    if augment == "flip":
        assert torch.equal(images[0::2].flip(-1), images[1::2])
    else:
        assert all(not torch.equal(images[0::copies], images[k::copies]) for k in range(1, copies))
    assert len(held_out) == 5
    assert all(index % copies == 0 for index in held_out)
    left_out = [index + k for index in held_out for k in range(copies)]
    assert sorted(training + left_out) == list(range(20 * copies))


@pytest.mark.parametrize("augment", ["flip", "shift", "crop"])
def test_variants_of_arrays_are_refused(calibration, augment):
    with pytest.raises(SettingsError, match=f"--augment {augment} needs a folder of images"):
        quantize(tiny(), calibration, Settings(method="qdrop", iters=2, augment=augment))


def test_units_between_which_an_image_has_many_rows(tmp_path):
    g = Graph()
    x = g.op("Transpose", [g.relu(g.conv(g.input(3, size=4), 3, 8))], "last", perm=[0, 2, 3, 1])
    x = g.op("Reshape", [x, g.constant("rows", np.array([-1, 8]))], "fold")
    for name in ("hidden1", "hidden2", "hidden3"):
        x = g.relu(g.gemm(x, 8, 8, name), f"{name}_relu")
    g.op("Reshape", [g.gemm(x, 8, 4), g.constant("images", np.array([-1, 64]))], "unfold", output="output")
    np.save(tmp_path / "calib.npy", feeds(g.model(), 32)["input"])
    settings = Settings(method="qdrop", iters=50, equalize="off")
    result = quantize(g.model(), tmp_path / "calib.npy", settings)
    assert len(result.units) == 2
    assert all(unit.loss < unit.loss_nearest for unit in result.units)
    assert result.verification.exact == 1.0


# --- merging -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["modcap", "none", "loss"])
def test_merging_leaves_fewer_units(quantized, scheme):
    result = quantized("mrecg", scheme=scheme, merges=1, selection="eq4")
    merges = 0 if scheme == "none" else 1
    assert len(result.units) == len(result.plan.units) - merges
    assert result.plan.scheme == scheme
    assert len(result.probe) == (len(result.plan.units) if scheme == "loss" else 0)
    if scheme == "loss":
        assert result.plan.losses == tuple(unit.final_loss for unit in result.probe)
    metadata = {p.key: p.value for p in result.model.metadata_props}
    assert json.loads(metadata["mrecg_onnx.units"]) == [list(unit.layers) for unit in result.units]


@pytest.mark.parametrize(("joint_iters", "factor"), [("sum", 2), ("same", 1)])
def test_joined_units_have_the_iterations_of_their_members(quantized, joint_iters, factor):
    result = quantized("mrecg", scheme="modcap", merges=1, selection="eq4", joint_iters=joint_iters)
    wanted = [ITERS * factor if unit.members == 2 else ITERS for unit in result.plan.merged_units()]
    assert max(wanted) == ITERS * factor
    assert [unit.iters for unit in result.units] == wanted


def test_probing_run_leaves_no_trace(quantized):
    # Without merges the second run is the base method's own.
    probed, plain = quantized("mrecg", scheme="loss", merges=0), quantized("brecq")
    assert all(len(group) == 1 for group in probed.plan.merges)
    assert codes(probed).keys() == codes(plain).keys()
    assert all(np.array_equal(codes(probed)[name], codes(plain)[name]) for name in codes(plain))
    assert all(unit.iters < ITERS for unit in probed.probe)


def test_scheme_file_states_the_units(quantized, tmp_path):
    path = tmp_path / "scheme.json"
    units = [["stem"], ["a1", "a2", "b1", "b2", "b3", "b_short"], ["c1", "fc"]]
    path.write_text(json.dumps({"units": units}), encoding="utf-8")
    result = quantized("mrecg", scheme=str(path))
    assert [list(unit.layers) for unit in result.units] == units


def test_planning_needs_no_data():
    plan = make_plan(normalize(tiny()), Settings(scheme="modcap"))
    assert sum(len(group) for group in plan.merges) == len(plan.units)


# --- reports -----------------------------------------------------------------------------------------------------


def test_progress_tells_stages_units_and_losses(calibration):
    told: list[Progress] = []
    chosen = Settings(method="mrecg", iters=20, scheme="loss", protect=1)
    result = quantize(tiny(), calibration, chosen, progress=told.append)
    stages = list(dict.fromkeys(p.stage for p in told))
    assert stages == [
        "load",
        "equalize",
        "calibrate",
        "sensitivity",
        "read",
        "probe",
        "reconstruct",
        "export",
        "verify",
    ]
    assert set(result.seconds) == set(stages)
    work = [p for p in told if p.stage == "reconstruct" and p.total]
    assert all(p.total == len(result.units) and 0 <= p.done <= p.total and p.iteration <= p.iters for p in work)
    assert {p.unit: p.iters for p in work} == {u.name: 20 * u.members for u in result.plan.merged_units()}
    assert [p.result for p in work if p.result is not None] == list(result.units)
    assert [p.done for p in work if p.result is not None] == list(range(1, len(result.units) + 1))
    assert all(p.loss is not None for p in work)


def test_open_data_set_is_taken_as_it_is(calibration):
    data = open_calibration(calibration, [InputSpec("input", (None, 4, 16, 16), np.dtype(np.float32))], Preprocess())
    result = quantize(tiny(), data, Settings(method="nearest"))
    assert result.images == 64
