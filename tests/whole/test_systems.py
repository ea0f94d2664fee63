"""Every system on the sample at W2A4, each against the weaker one that it adds something to.

Plain pytest leaves out those that must beat rounding to nearest: the tests of their rooms ask that of them on smaller networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean

import pytest

import mrecg_onnx
from mrecg_onnx.data import Preprocess, open_calibration
from mrecg_onnx.measures import sqnr_db
from mrecg_onnx.methods import METHODS
from mrecg_onnx.running import input_specs, open_session, run_padded

SAMPLES = Path(__file__).parents[2] / "samples"
MODEL = SAMPLES / "digits.onnx"


@dataclass(frozen=True)
class Step:
    """``parent`` and by how many dB of output error it is beaten; ``why`` it is not, where ``beats`` is a weaker one.

    Where a seed moves either by as much as the margin (.5 dB), the means of several seeds are compared.
    """

    parent: str
    least: float
    wbits: int = 2
    beats: str = ""
    why: str = ""
    seeds: int = 1


#: Margins are half of what was measured at these settings, or less.
STEPS = {
    "aciq": Step("nearest", 0.5),
    "lapq": Step("nearest", 0.6),
    "bit-split": Step("nearest", 2.0, wbits=3),  # its planes need three bits
    "adaround": Step("nearest", 3.0),
    "adaquant": Step("nearest", 3.0),
    "brecq-paper": Step(
        "adaround",
        1.5,
        beats="nearest",
        why="blocks beat layers with float activations, but its second phase learns steps from float inputs, which ranges that "
        "the network's output chose already answer better (docs/method.md 14)",
    ),
    "brecq": Step("adaround", 0.7, seeds=3),
    "qdrop": Step(
        "brecq",
        3.0,
        beats="nearest",
        why="where weight scales are learned, drop only slows short runs (docs/method.md 2)",
    ),
    "mrecg": Step(
        "brecq",
        0.7,
        beats="adaround",
        why="on a net of seven units joining moves the error by less than a seed does",
        seeds=3,
    ),
}


@cache
def error(method: str, wbits: int, seed: int) -> float:
    """Output SQNR against FP32 on the validation images, in dB."""
    settings = mrecg_onnx.Settings(
        wbits=wbits,
        abits=4,
        method=method,
        iters=100,
        samples=128,
        seed=seed,
        threads=1,
        lapq_images=128,
        lapq_evaluations=240,
    )
    result = mrecg_onnx.quantize(MODEL, SAMPLES / "calib", settings)
    session = open_session(MODEL)
    images = open_calibration(SAMPLES / "val", input_specs(session), Preprocess(), samples=450, seed=0).load(450)
    name = session.get_outputs()[0].name
    exact, got = (run_padded(s, images)[name] for s in (session, open_session(result.model)))
    return sqnr_db(exact, got)


def test_every_method_has_a_parent() -> None:
    assert {*STEPS, "nearest"} == set(METHODS)
    assert all(bool(step.why) == bool(step.beats) for step in STEPS.values())


def parameter(method: str) -> object:
    """Plain pytest takes one of the quick ones: the sample's tests (test_sample.py) hold what learning gains."""
    return pytest.param(method, marks=[] if method == "aciq" else pytest.mark.slow)


@pytest.mark.parametrize("method", map(parameter, STEPS))
def test_each_beats_its_weaker_parent_or_says_why_not(method: str) -> None:
    step = STEPS[method]
    better, weaker = (
        mean(error(name, step.wbits, seed) for seed in range(step.seeds))
        for name in (method, step.beats or step.parent)
    )
    assert better > weaker + step.least
