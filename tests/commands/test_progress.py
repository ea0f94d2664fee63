"""What is told of where a run is, and of the time that is left."""

from __future__ import annotations

import io
import re
import time
from typing import TYPE_CHECKING

import pytest
from rich.cells import cell_len
from rich.console import Console

from mrecg_onnx.commands import _progress
from mrecg_onnx.commands._durations import TimeLeft
from mrecg_onnx.commands._fitting import fitted, shortened
from mrecg_onnx.commands._progress import cells, counter, progress
from mrecg_onnx.comparing.progress import ComparisonProgress
from mrecg_onnx.machine import duration, milliseconds, points
from mrecg_onnx.progress import Clock, Progress, UnitResult, tell, told

if TYPE_CHECKING:
    from collections.abc import Callable


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


def test_units_of_an_earlier_run_say_nothing_of_the_time_left() -> None:
    now = [0.0]
    result = UnitResult("u", (), 1000, 1.0, 0.5, "learned", 0.0, 9.0)

    def ended(stage: str, done: int, total: int, *, earlier: bool = False) -> Progress:
        return Progress(stage, "u", done, total, 100, 100, result=result, earlier=earlier)

    left = TimeLeft(1000, clock=lambda: now[0])
    assert left.update(Progress("reconstruct")) is None
    now[0] = 0.2
    assert left.update(ended("reconstruct", 1, 4, earlier=True)) is None
    now[0] = 0.4
    assert left.update(ended("reconstruct", 2, 4, earlier=True)) is None
    now[0] = 10.4
    assert left.update(Progress("reconstruct", "u", 2, 4, 500, 1000)) == pytest.approx(30)
    now[0] = 20.4
    assert left.update(ended("reconstruct", 3, 4)) == pytest.approx(20)
    # The probing run of a job that goes on, whole and in part.
    now[0] = 0.0
    whole, part = (TimeLeft(1000, clock=lambda: now[0]) for _ in range(2))
    assert whole.update(ended("probe", 10, 10, earlier=True)) is None
    assert whole.update(Progress("reconstruct")) is None
    assert part.update(ended("probe", 5, 10, earlier=True)) is None
    now[0] = 5.0
    assert part.update(ended("probe", 10, 10)) == pytest.approx(100)
    assert part.update(Progress("reconstruct")) == pytest.approx(100)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 ms"), (0.0004, "0.400 ms"), (0.012, "12.0 ms"), (0.04, "40.0 ms"), (0.8, "0.8 s"), (59.9, "59.9 s"),
     (59.97, "1:00"), (3725.2, "1:02:05")],
)  # fmt: skip
def test_durations_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0"), (5.12e-5, "0.0512"), (0.00123, "1.23"), (0.123, "123"), (12.3, "12300")]
)
def test_milliseconds_have_three_digits_that_count(seconds: float, text: str) -> None:
    assert milliseconds(seconds) == text


@pytest.mark.parametrize(("change", "text"), [(0.0, "+0.00"), (-1e-17, "+0.00"), (0.0042, "+0.42"), (-0.0042, "-0.42")])
def test_changes_in_points_have_a_sign_and_no_negative_zero(change: float, text: str) -> None:
    assert points(change) == f"{text} points"


def test_names_are_shortened_in_the_middle_and_what_matters_stays() -> None:
    assert shortened("layer1.0.conv1", 14) == "layer1.0.conv1"
    assert shortened("layer1.0.conv1", 9) == "laye…onv1"
    assert shortened("層層層層", 5) == "層…層"
    kept = ["47%", "it 123/1000", "1:23 left"]
    assert fitted(27, kept, "layer1.0.conv1") == "47%  it 123/1000  1:23 left"
    assert fitted(36, kept, "layer1.0.conv1") == "47%  it 123/1000  1:23 left  lay…nv1"
    assert fitted(56, kept, "layer1.0.conv1", ["loss 0.1234", "longer than that"]).endswith(
        "left  layer1.0.conv1  loss 0.1234"
    )
    assert fitted(10, kept, "layer1.0.conv1").endswith("1:23 left")


NAME = "features.17.conv.0.0 + features.17.conv.1.0 + features.17.conv.2"


def lines_of_a_terminal(monkeypatch: pytest.MonkeyPatch, width: int, act: Callable[[Callable], None]) -> list[str]:
    """What a terminal of so many columns showed, frame by frame."""
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, markup=False, highlight=False)
    monkeypatch.setattr(_progress, "standard_error", lambda: console)
    monkeypatch.setenv("TERM", "xterm")
    with progress(1000) as report:
        act(report)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    return [line for line in re.split(r"[\r\n]", text) if line.strip()]


@pytest.mark.parametrize("width", [60, 80, 160])
def test_a_narrow_terminal_keeps_bar_iterations_percent_and_time_left(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setattr(_progress, "TimeLeft", lambda _iters: type("Left", (), {"update": lambda *_: 754.0})())

    def act(report: Callable[[Progress], None]) -> None:
        report(Progress("reconstruct", NAME, 11, 23, 1000, 1000, 0.1234))
        time.sleep(0.4)

    shown = lines_of_a_terminal(monkeypatch, width, act)
    assert all(cell_len(line) <= width for line in shown)
    last = shown[-1]
    assert re.search(r"reconstruct [━╸╺]+ +52%  iter 1000/1000  12:34 left", last)
    assert ("11/23 feat" in last) == (width >= 80)
    assert (NAME in last and "loss 0.1234" in last) == (width == 160)


def test_stages_without_iterations_show_what_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def act(report: Callable[[Progress], None]) -> None:
        with Clock(report).stage("equalize"):
            for _ in told(range(4), "streams"):
                tell(1, 1, "hidden")
                time.sleep(0.3)

    shown = lines_of_a_terminal(monkeypatch, 60, act)
    assert any(re.search(r"equalize +[━╸╺ ]+ 25%  1/4 streams  0:0\d", line) for line in shown)
    assert not any("hidden" in line for line in shown)


def test_without_a_terminal_stages_are_announced_and_long_ones_say_how_far_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_progress, "SILENCE", 0.1)
    with progress(10) as report:
        clock = Clock(report)
        with clock.stage("equalize"):
            tell(3, 8, "streams")
            time.sleep(0.5)
        with clock.stage("reconstruct"):
            report(Progress("reconstruct", "conv1", 1, 2, 5, 10, 0.5))
            time.sleep(0.5)
            report(
                Progress("reconstruct", "conv1", 2, 2, 10, 10, 0.5, UnitResult("conv1", (), 10, 2, 1, "learned", 0, 9))
            )
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "equalize ..."
    assert re.fullmatch(r"equalize: 38%, 3/8 streams, [\d.]+ m?s so far", lines[1])
    end = next(i for i, line in enumerate(lines) if line.startswith("equalize done in"))
    assert lines[end + 1] == "reconstruct ..."
    assert re.fullmatch(r"reconstruct 1/2 conv1: 75%, iter 5/10(, \S+ left)?, [\d.]+ m?s so far", lines[end + 2])
    assert lines[-2].startswith("reconstruct 2/2 conv1: loss 2 -> 1 (learned), 10 iterations in 9.0 s")
    assert lines[-1].startswith("reconstruct done in")


def test_silence_without_a_terminal_is_shorter_than_twenty_seconds() -> None:
    assert _progress.SILENCE + 1.0 <= 20.0


def test_a_count_without_a_terminal_begins_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with counter("validate") as report:
        report(Progress("validate", done=1, total=2, of="images"))
    assert [line.split(" in ")[0] for line in capsys.readouterr().err.splitlines()] == ["validate ...", "validate done"]


def test_an_error_leaves_no_thread_and_no_end(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="x"), progress(10) as report:  # noqa: PT012
        report(Progress("load"))
        raise ValueError("x")
    assert capsys.readouterr().err == ""


def test_who_is_told_of_the_work_inside_is_the_stage_at_work() -> None:
    heard: list[Progress] = []
    with Clock(heard.append).stage("outer"):
        assert list(told("ab", "letters")) == ["a", "b"]
        for _ in told("cd", "letters"):
            break
        tell(1, 3, "more")
    tell(2, 3, "lost")
    assert [(p.done, p.total, p.of) for p in heard] == [
        (0, 0, ""),
        (1, 2, "letters"),
        (2, 2, "letters"),
        (1, 3, "more"),
    ]


def test_a_comparison_says_what_it_goes_over_its_cells_a_second_time_for(capsys: pytest.CaptureFixture[str]) -> None:
    with cells(5) as report:
        report(ComparisonProgress("brecq W4A4", 1, 1, "quantize"))
        report(ComparisonProgress("brecq W4A4", 1, 1, "latency"))
    assert capsys.readouterr().err.splitlines() == ["cell 1/1 brecq W4A4 ...", "latency of cell 1/1 brecq W4A4 ..."]


def test_the_share_of_a_comparison_never_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages behind the learning count nothing of their own: 42 % was followed by 25."""
    shown: list[float | None] = []
    monkeypatch.setattr("mrecg_onnx.commands._progress._Plain.show", lambda _, state: shown.append(state.share))
    with cells(4) as report:
        for number in (1, 2):
            for stage in ("calibrate", "reconstruct", "reconstruct", "verify"):
                done = 1 + len(shown) % 2
                inner = Progress(stage, "u", done, 2, 0, 4) if stage == "reconstruct" else Progress(stage)
                report(ComparisonProgress("brecq W4A4", number, 2, "quantize", inner))
            report(ComparisonProgress("brecq W4A4", number, 2, "validate"))
    assert len(shown) == 10
    assert shown == sorted(shown)
    assert 0 < shown[4] <= 0.5
