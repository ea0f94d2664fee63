"""Sessions are timed in turn."""

from __future__ import annotations

import numpy as np
import pytest

from mrecg_onnx.running import latency, medians, ratio_interval


class Recorder:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def run(self, names, feeds, options=None):
        self.log.append(self.name)
        return []


def test_latency_takes_turns_and_gives_each_session_an_untimed_run_first():
    log = []
    seconds = latency({name: Recorder(name, log) for name in "ab"}, {}, repeats=3, warmup=1)
    assert "".join(log) == "aabb" * 4
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 3, "b": 3}
    assert medians({"a": [3.0, 1.0, 2.0]}) == {"a": 2.0}
    with pytest.raises(ValueError, match="0 timed"):
        latency({}, {}, repeats=0)


@pytest.mark.parametrize(
    ("rounds", "expected"), [(1, (1, 1)), (5, (1, 5)), (6, (1, 6)), (8, (1, 8)), (9, (2, 8)), (100, (40, 61))]
)
def test_the_interval_of_a_ratio_is_that_of_the_sign_test(rounds: int, expected: tuple[int, int]) -> None:
    """Places of the order statistics as tables of the sign test have them (95 %)."""
    before = list(np.random.default_rng(0).permutation(np.arange(1.0, rounds + 1)))
    assert ratio_interval(before, [1.0] * rounds) == expected


def test_the_interval_holds_the_true_ratio_as_often_as_it_says():
    rng, held = np.random.default_rng(1), 0
    for _ in range(400):
        before, after = rng.lognormal(0.2, 0.5, (2, 50)) * [[2.0], [1.0]]
        low, high = ratio_interval(before, after)
        held += low <= 2.0 <= high
    assert held / 400 > 0.92
