"""What is told of the time that is left."""

from __future__ import annotations

import pytest

from mrecg_onnx.commands._progress import TimeLeft, duration
from mrecg_onnx.progress import Progress


def test_time_left_follows_the_probing_run_and_then_its_own_pace() -> None:
    now = [0.0]
    left = TimeLeft(1000, clock=lambda: now[0])
    assert left.update(Progress("load")) is None
    assert left.update(Progress("probe")) is None
    now[0] = 5.0  # half of the probing run, which has a tenth of the iterations
    assert left.update(Progress("probe", "u", 5, 10, 0, 100)) == pytest.approx(5 + 100)
    now[0] = 10.0
    left.update(Progress("probe", "u", 9, 10, 100, 100))
    assert left.update(Progress("reconstruct")) == pytest.approx(100)
    now[0] = 35.0  # half of it in 25 s where 50 s were foreseen
    assert left.update(Progress("reconstruct", "u", 5, 10, 0, 1000)) == pytest.approx(0.5 * (25 + 50))

    alone = TimeLeft(1000, clock=lambda: now[0])
    assert alone.update(Progress("reconstruct")) is None
    now[0] += 10
    assert alone.update(Progress("reconstruct", "u", 0, 4, 500, 1000)) == pytest.approx(70)


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (59.97, "1:00"), (3725.2, "1:02:05")])
def test_durations_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
