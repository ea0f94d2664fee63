"""The largest drop: the fewest bits that keep it, in few trials."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.learned import small
from helpers.stages import feeds
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.quantization import quantize
from mrecg_onnx.settings import Settings
from mrecg_onnx.validating import validate
from mrecg_onnx.widths.drop_search import AVERAGES, Trial, search

NEAREST = {"method": "nearest", "equalize": "off", "abits": 4}


def inner(result):
    return [x for x in result.plan.layers if not (x.first or x.last)]


@effort(max_examples=40, deadline=None)
@given(least=st.sampled_from(AVERAGES), bound=st.floats(0.1, 20))
def test_search_finds_the_fewest_bits_in_few_trials(least, bound):
    def trial(average):
        return Trial(average, bound if average >= least else bound + 1, labelled=True, images=1)

    trials = search(bound, trial)
    assert min(t.average for t in trials if t.drop <= bound) == least
    assert len(trials) <= 5
    assert len({t.average for t in trials}) == len(trials)


def test_bound_out_of_reach_says_the_smallest_drop():
    with pytest.raises(
        SettingsError, match=r"--max-drop 1: the smallest drop reached is 3\.00 points of top-1.* 8 bits"
    ):
        search(1.0, lambda a: Trial(a, 11.0 - a, labelled=True, images=1))


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrays")
    np.savez(folder / "calib.npz", **feeds(small(), 48))
    np.savez(folder / "data.npz", **feeds(small(), 64, seed=7))
    return folder


def test_drop_is_within_the_bound_on_the_runtime(arrays):
    settings = Settings(**NEAREST, max_drop=30.0)
    result = quantize(small(), arrays / "calib.npz", settings, data=arrays / "data.npz", output=arrays / "out.onnx")
    chosen = min((t for t in result.trials if t.drop <= 30.0), key=lambda t: t.average)
    again = validate(small(), arrays / "out.onnx", arrays / "data.npz", repeats=0)
    assert 100 * (1 - again.agreement) == pytest.approx(chosen.drop)
    assert not chosen.labelled
    assert all(t.drop > 30.0 for t in result.trials if t.average < chosen.average)
    found = sum(x.wbits * x.params for x in inner(result)) / sum(x.params for x in inner(result))
    assert found <= chosen.average
    assert result.output == arrays / "out.onnx"


def test_drop_needs_images_to_measure_it_on(arrays):
    with pytest.raises(SettingsError, match="--max-drop needs --data"):
        quantize(small(), arrays / "calib.npz", Settings(**NEAREST, max_drop=1.0))
