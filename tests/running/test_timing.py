"""Models are timed in turn, in several sittings."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from mrecg_onnx.running import InTurn, interval_text, is_noise, is_wide, latency, medians, ratio_interval


class Recorder:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def run(self, names, feeds, options=None):
        self.log.append(self.name)
        return []


class Recorded(InTurn):
    """Two models whose runs are written down, which take so many seconds to open."""

    def __init__(self, opening_s: float = 0.0) -> None:
        self.log: list[str] = []
        self.opening_s = opening_s
        self.reopen()

    def reopen(self) -> None:
        self.log.append("|")
        self.sessions = {name: Recorder(name, self.log) for name in "ab"}
        self._seconds = self.opening_s


def test_latency_takes_turns_and_gives_each_session_an_untimed_run_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mrecg_onnx.running.timing.FRESH", 1)
    models = Recorded()
    seconds = latency(models, {}, repeats=3)
    assert "".join(models.log) == ("|ab" + "aabb" * 2) * 3
    assert {name: [len(one) for one in taken] for name, taken in seconds.items()} == {"a": [1, 1, 1], "b": [1, 1, 1]}
    with pytest.raises(ValueError, match="0 timed"):
        latency(models, {}, repeats=0)


def test_what_is_timed_runs_in_the_thread_of_the_run_before_it():
    """A watched run is another thread's: behind one a network of 8 microseconds took 33."""
    threads: list[int] = []

    class Told(Recorder):
        def run(self, names, feeds, options=None):
            threads.append(threading.get_ident())
            return super().run(names, feeds, options)

    models = Recorded(5.0)
    models.sessions = {"a": Told("a", [])}
    latency(models, {}, repeats=20)
    assert set(threads[1:]) == {threading.get_ident()}


@pytest.mark.parametrize(("opening_s", "opened"), [(0.001, 17), (0.2, 3), (5.0, 1)])
def test_models_that_open_slowly_are_opened_less_often(opening_s: float, opened: int):
    models = Recorded(opening_s)
    seconds = latency(models, {}, repeats=40)
    assert models.log.count("|") == opened
    assert [len(taken) for taken in seconds.values()] == [17, 17]
    assert [sum(map(len, taken)) for taken in seconds.values()] == [40, 40]


def test_sessions_that_are_slow_are_warmed_up_for_a_short_time_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mrecg_onnx.running.timing.FRESH_S", -1.0)
    models = Recorded(5.0)
    latency(models, {}, repeats=1)
    assert "".join(models.log) == "|ab" + "aabb" * 2


@pytest.mark.parametrize(
    ("sittings", "expected"), [(1, (1, 1)), (5, (1, 5)), (6, (1, 6)), (8, (1, 8)), (9, (2, 8)), (17, (5, 13))]
)
def test_the_interval_of_a_ratio_is_that_of_the_sign_test(sittings: int, expected: tuple[int, int]) -> None:
    """Places of the order statistics as tables of the sign test have them (95 %)."""
    before = [[value] * 3 for value in np.random.default_rng(0).permutation(np.arange(1.0, sittings + 1))]
    assert ratio_interval(before, [[1.0]] * sittings) == expected


def test_the_interval_holds_the_true_ratio_as_often_as_it_says():
    rng, held = np.random.default_rng(1), 0
    for _ in range(400):
        before, after = rng.lognormal(0.2, 0.5, (2, 17, 1)) * [[[2.0]], [[1.0]]]
        low, high = ratio_interval(before.tolist(), after.tolist())
        held += low <= 2.0 <= high
    assert held / 400 > 0.92


def test_a_session_that_is_slow_for_a_whole_sitting_is_one_measurement_however_many_its_runs():
    """What sat at three times its time throughout was stated as certain: its fifty runs agree with each other."""
    rng = np.random.default_rng(2)
    usual, slow = 0.011, 0.036
    few, many = ([[slow if n < count else usual] * 20 for n in rng.permutation(17)] for count in (3, 8))
    other = [[0.0125] * 20] * 17
    assert medians({"few": few, "other": other}) == {"few": usual, "other": 0.0125}
    assert ratio_interval(few, other) == pytest.approx((0.88, 0.88))
    held = ratio_interval(many, other)
    assert is_noise(held)
    assert is_wide(held)
    assert interval_text(held) == "0.88 to 2.88 times as fast"
    assert is_wide(ratio_interval(few, other)) is False
    assert is_noise(None) is is_wide(None) is False


def test_the_ratio_of_the_medians_lies_in_the_interval():
    before, after = [[1.0], [10.0], [10.0]], [[1.0], [1.0], [10.0]]
    low, high = ratio_interval(before, after)
    found = medians({"before": before, "after": after})
    assert low <= found["before"] / found["after"] <= high
