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
from mrecg_onnx.progress import Progress
from mrecg_onnx.quantization import quantize
from mrecg_onnx.settings import Settings
from mrecg_onnx.validating import validate
from mrecg_onnx.widths.choice import _advice
from mrecg_onnx.widths.drop_search import AVERAGES, Trial, most_trials, search

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
        SettingsError,
        match=r"--max-drop 1: the smallest drop reached is 3 points of top-1.* 8 bits on average: allow more",
    ):
        search(1.0, lambda a: Trial(a, 11.0 - a, labelled=True, images=1))


def test_the_drop_is_told_from_the_bound():
    assert Trial(8, 0.0437213, labelled=True, images=1, metric="mAP").lost() == "0.0437 mAP"
    assert Trial(8, 0.020041, labelled=True, images=1, metric="mAP").lost(0.02) == "0.02004 mAP"
    assert Trial(8, 0.02, labelled=True, images=1, metric="mAP").lost(0.02) == "0.02 mAP"
    assert Trial(8, 12.3456, labelled=False, images=1).lost(20) == "12.3 % of the predictions"


@pytest.mark.parametrize("count", range(1, 14))
def test_no_search_makes_more_trials_than_is_said(count):
    averages = AVERAGES[-count:]

    def made(least):
        trial = lambda a: Trial(a, 0.0 if a >= least else 2.0, labelled=True, images=1)  # noqa: E731
        return len(search(1.0, trial, averages))

    assert max(made(least) for least in averages) <= most_trials(count) <= 4
    tried = []
    with pytest.raises(SettingsError):
        search(1.0, lambda a: tried.append(a) or Trial(a, 2.0, labelled=True, images=1), averages)
    assert max(len(tried), *(made(least) for least in averages), 0) == most_trials(count)


@pytest.mark.parametrize(
    ("given", "says", "says_not"),
    [
        ({"method": "nearest", "abits": 8}, ("sensitivity", "--exclude", "--method brecq"), ("--abits", "--iters")),
        ({"method": "nearest", "abits": 4}, ("raise --abits",), ("--iters",)),
        ({"method": "brecq", "abits": 8}, ("--exclude", "raise --iters"), ("--abits", "--method")),
        ({"method": "brecq", "abits": 16, "target": "qnn"}, ("raise --iters",), ("--abits",)),
        ({"method": "bit-split", "abits": 8}, ("--exclude",), ("--abits", "--iters", "--method")),
    ],
)
def test_where_nothing_keeps_the_bound_only_what_can_help_is_advised(given, says, says_not):
    said = _advice(Settings(**given))
    assert said.startswith("allow more, ")
    assert all(part in said for part in says)
    assert not any(part in said for part in says_not)


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrays")
    np.savez(folder / "calib.npz", **feeds(small(), 48))
    np.savez(folder / "data.npz", **feeds(small(), 64, seed=7))
    return folder


def test_drop_is_within_the_bound_on_the_runtime(arrays):
    settings = Settings(**NEAREST, max_drop=30.0)
    heard: list[Progress] = []
    result = quantize(
        small(),
        arrays / "calib.npz",
        settings,
        data=arrays / "data.npz",
        output=arrays / "out.onnx",
        progress=heard.append,
    )
    lines = [str(p) for p in heard if p.said]
    assert len(lines) == len(result.trials)
    for number, (line, trial) in enumerate(zip(lines, result.trials, strict=True), 1):
        assert line == (
            f"trial {number}/4: weights of {trial.average:g} bits on average, drop {trial.lost(30.0)} of at most 30"
        )
    assert {p.stage for p in heard if p.said} == {"validate"}
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
