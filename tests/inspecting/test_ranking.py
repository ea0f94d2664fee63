"""Ranking of layers and tensors, and what more bits bring back."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.learned import small
from helpers.stages import feeds

from mrecg_onnx.converters import normalize
from mrecg_onnx.converters.errors import DataError, SettingsError
from mrecg_onnx.inspecting.ranking import sensitivity
from mrecg_onnx.planning import BitRule, make_plan
from mrecg_onnx.quantization import quantize
from mrecg_onnx.runtimes import open_session
from mrecg_onnx.settings import Settings
from mrecg_onnx.validating import validate
from mrecg_onnx.widths.costs import WIDTHS

SETTINGS = Settings(method="nearest", wbits=2, abits=4, equalize="off")


@pytest.fixture(scope="module")
def calib(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranking") / "calib.npz"
    np.savez(path, **feeds(small(), 48))
    return path


@pytest.fixture(scope="module")
def found(calib):
    return sensitivity(small(), calib, SETTINGS, top=3)


def test_every_layer_and_every_tensor_that_layers_read_is_ranked(found):
    layers = [r for r in found.ranked if r.kind == "weights"]
    tensors = [r for r in found.ranked if r.kind == "activations"]
    assert [r.layers for r in layers] == [(r.name,) for r in layers]
    assert {r.name for r in layers} == {x.name for x in make_plan(normalize(small()), SETTINGS).layers}
    assert {name for r in tensors for name in r.layers} == {r.name for r in layers}
    assert [r.loss for r in found.ranked] == sorted((r.loss for r in found.ranked), reverse=True)
    assert all(tuple(r.losses) == WIDTHS and r.losses[8] < r.losses[2] for r in found.ranked)
    assert {r.bits for r in layers} == {2, 8}  # the first and the last layer keep 8


def test_suggestions_are_options_of_quantize_and_bring_back_what_they_say(found, calib):
    assert len(found.suggestions) == 3
    best = found.suggestions[0]
    assert best.quality.order > found.quality.order
    assert found.together.error < found.quality.error
    assert best.option == "--bits"
    result = quantize(small(), calib, replace(SETTINGS, bits=(BitRule.parse(best.value),)))
    # The file itself, on the same images: agreement with the float network is what was promised.
    measured = validate(small(), result.model, calib, repeats=0)
    assert measured.agreement == pytest.approx(best.quality.agreement, abs=0.03)


def test_float_network_is_its_own_measure(found):
    assert found.float_quality.agreement == 1.0
    assert found.float_quality.error == 0.0
    assert not found.labelled
    assert found.quality.top1 is None


def test_report_is_plain(found):
    plain = json.loads(json.dumps(found.to_json()))
    assert plain["ranked"][0]["losses"]["2"] == found.ranked[0].losses[2]
    assert plain["settings"]["wbits"] == 2


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"top": -1}])
def test_senseless_numbers_are_refused(calib, wrong):
    with pytest.raises(SettingsError, match="limit is"):
        sensitivity(small(), calib, SETTINGS, **wrong)


def test_labels_of_arrays_are_what_suggestions_are_tried_on(calib, tmp_path):
    x = feeds(small(), 48)
    said = open_session(small()).run(None, x)[0].argmax(1)
    np.savez(tmp_path / "labelled.npz", **x, y=said)
    found = sensitivity(small(), calib, SETTINGS, data=tmp_path / "labelled.npz", top=1)
    assert (found.labelled, found.float_quality.top1) == (True, 1.0)
    np.save(tmp_path / "y.npy", said + 1000)
    with pytest.raises(DataError, match=r"of image 0 is beyond .*y\.npy"):
        sensitivity(small(), calib, SETTINGS, data=calib, labels=tmp_path / "y.npy", top=1)
