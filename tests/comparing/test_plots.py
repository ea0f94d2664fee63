from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest

from mrecg_onnx.comparing import Cell, Comparison, Widths
from mrecg_onnx.comparing.plots import cells_figure, timings_figure
from mrecg_onnx.settings import Settings
from mrecg_onnx.validating import Accuracy, Benchmark
from mrecg_onnx.validating.benchmarking import FileReport, Timing

pytest.importorskip("matplotlib")


def timings(*milliseconds: float, batches: tuple[int, ...] = (1, 8), worst: float = 1.1) -> Benchmark:
    """Files whose medians are those at batch 1, and that at batch n times n; 90 % of runs lie below ``worst`` medians."""
    files = tuple(FileReport(f"folder/file{i}.onnx", 1, 0.1, 1, {}) for i in range(len(milliseconds)))
    found = []
    for batch in batches:
        for file, median in zip(files, milliseconds, strict=True):
            seconds = median * batch / 1e3
            speed = milliseconds[0] / median
            found.append(
                Timing(file.name, "cpu", None, batch, 50, seconds, 0.95 * seconds, worst * seconds, 1.0, speed)
            )
    return Benchmark(files, tuple(found), {})


def comparison(values: dict[tuple[str, str], float | None]) -> Comparison:
    cells = []
    for (method, width), value in values.items():
        bits = Widths.parse(width)
        top1 = Accuracy(value, value - 0.02, value + 0.02) if value is not None else None
        cells.append(Cell(method, bits, top1=top1, error=None if value is not None else "it fails"))
    plain = Accuracy(0.9, 0.88, 0.92)
    return Comparison(
        Path("model.onnx"), "", "", Path(), Settings(), "a", tuple(cells), 100, plain, 1, None, 1, (), (), {}
    )  # fmt: skip


def boxes(figure):
    """Where texts and lines lie, in pixels."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    texts = [t.get_window_extent(renderer) for axis in figure.axes for t in axis.texts]
    lines = [line.get_window_extent(renderer) for axis in figure.axes for line in axis.lines]
    names = [t.get_window_extent(renderer) for t in figure.axes[0].get_yticklabels()]
    return texts, lines, names


def test_all_panels_have_one_scale():
    figure = timings_figure(timings(1.0, 0.6))
    assert len({axis.get_xlim() for axis in figure.axes}) == 1
    figure = cells_figure(comparison({("a", "W8A8"): 0.9, ("b", "W8A8"): 0.89, ("a", "W2A2"): 0.3, ("b", "W2A2"): 0.6}))
    assert len({axis.get_xlim() for axis in figure.axes}) == 1
    low, high = figure.axes[0].get_xlim()
    assert low < 28
    assert high > 92


@pytest.mark.parametrize(
    "figure",
    [timings_figure(timings(1.0, 0.6, 0.97)), cells_figure(comparison({("a", "W4A4"): 0.9, ("b", "W4A4"): 0.895}))],
)
def test_no_line_crosses_what_is_written(figure):
    texts, lines, names = boxes(figure)
    assert texts
    for text, line in itertools.product(texts, lines):
        assert not text.overlaps(line) or text.x0 >= line.x1
    for one, other in itertools.combinations(texts + names, 2):
        assert not one.overlaps(other)


def test_noise_does_not_stretch_the_axis():
    quiet, noisy = (timings_figure(timings(1.0, 0.6, batches=(1,), worst=worst)) for worst in (1.1, 40.0))
    assert quiet.axes[0].get_xlim() == noisy.axes[0].get_xlim()
    arrows = [line for line in noisy.axes[0].lines if line.get_marker() == ">"]
    assert len(arrows) == 2
    assert not [line for line in quiet.axes[0].lines if line.get_marker() == ">"]


def test_times_far_apart_are_on_a_logarithmic_axis():
    assert timings_figure(timings(1.0, 0.6)).axes[0].get_xscale() == "linear"
    assert timings_figure(timings(1.0, 0.01)).axes[0].get_xscale() == "log"


def test_what_failed_is_said_in_its_row():
    figure = cells_figure(comparison({("a", "W4A4"): 0.9, ("b", "W4A4"): None}))
    assert [t.get_text() for t in figure.axes[0].texts] == ["90.0", "failed"]


def test_many_panels_stand_in_tiers():
    figure = timings_figure(timings(1.0, 0.6, batches=(1, 2, 4, 8, 16, 32)))
    assert len(figure.axes) == 6
    assert figure.get_size_inches()[0] < 16


def test_files_of_one_name_are_told_apart():
    found = timings(1.0, 0.6, batches=(1,))
    names = {file.name: f"{letter}/model.onnx" for file, letter in zip(found.files, "ab", strict=True)}
    found = Benchmark(
        tuple(dataclasses.replace(f, name=names[f.name]) for f in found.files),
        tuple(dataclasses.replace(t, file=names[t.file]) for t in found.timings),
        {},
    )
    labels = [t.get_text() for t in timings_figure(found).axes[0].get_yticklabels()]
    assert labels == ["a/model.onnx", "b/model.onnx"]
