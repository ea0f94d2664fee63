"""A memory that cannot be kept is refused at the start, with the least that works; one that does is not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers.chains import blocks
from helpers.images import RAW, spec, write
from PIL import Image

from mrecg_onnx import Settings, quantize
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.data import open_calibration
from mrecg_onnx.machine import Needs, Run, needs
from mrecg_onnx.planning import footprint, load_planned
from mrecg_onnx.planning.footprints import Footprint

if TYPE_CHECKING:
    from pathlib import Path

MB = 10**6


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process holds 300 MB."""

    class Process:
        def memory_info(self) -> Process:
            return self

        rss = 300 * MB

    monkeypatch.setattr(needs.psutil, "Process", Process)


def refusal(memory: int, most: int, **more: object) -> str:
    with pytest.raises(SettingsError) as error:
        Run(memory=memory, asked=True).settle(Needs(100 * MB, most), **more)  # type: ignore[arg-type]
    return str(error.value)


@pytest.mark.usefixtures("held")
def test_the_least_is_what_is_held_and_what_comes_on_top() -> None:
    Run(memory=450 * MB, asked=True).settle(Needs(100 * MB, 50 * MB))
    said = refusal(449 * MB, 50 * MB)
    least = "the least that works is 500 MB (300 MB are held already, 150 MB come on top, rounded up)"
    assert said == f"--memory 449 MB cannot be kept: {least} (in Python: memory=)"


@pytest.mark.usefixtures("held")
def test_the_least_that_is_said_works() -> None:
    """Although what is held differs a little from run to run."""
    for most in range(0, 300 * MB, 7 * MB):
        least = re.search(r"works is (\d+) MB", refusal(100 * MB, most))
        assert least is not None
        Run(memory=int(least[1]) * MB - 9 * MB, asked=True).settle(Needs(100 * MB, most))


@pytest.mark.usefixtures("held")
def test_what_nobody_asked_for_is_not_refused() -> None:
    Run(memory=MB).settle(Needs(100 * MB, 50 * MB))


@pytest.mark.usefixtures("held")
def test_images_share_what_is_left_and_the_largest_has_to_fit(tmp_path: Path) -> None:
    Image.new("RGB", (5000, 2000)).save(tmp_path / "a.png")
    write(tmp_path / "b.png")
    data = open_calibration(tmp_path, [spec(None, 3, 4, 4)], RAW)
    Run(memory=500 * MB, asked=True).settle(Needs(100 * MB, MB), data)
    assert data._room.most == 100 * MB  # type: ignore[attr-defined]
    said = refusal(440 * MB, MB, dataset=data)
    assert "the least that works is 500 MB" in said
    assert re.search(r"a\.png of 5000x2000 pixels takes 48\.5 MB while it is read", said)
    Run(memory=440 * MB).settle(Needs(100 * MB, MB), data)
    assert data._room.most == needs.DECODING  # type: ignore[attr-defined]


@pytest.mark.usefixtures("held")
def test_a_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"")
    with (tmp_path / "a.onnx").open("r+b") as file:
        file.truncate(200 * MB)
    for run in (Run(memory=900 * MB), Run(memory=990 * MB, asked=True)):
        run.require_file(tmp_path / "a.onnx")
    with pytest.raises(SettingsError, match=r"Python, its libraries and the model alone take 1\.00 GB"):
        Run(memory=980 * MB, asked=True).require_file(tmp_path / "a.onnx")
    (tmp_path / "b.onnx").write_bytes(b"a small one is read: what works is known then")
    Run(memory=MB, asked=True).require_file(tmp_path / "b.onnx")


def test_needs_grow_with_the_network() -> None:
    small = Needs.of(Footprint(weights=1, inputs=1, tensors=1, unit=1, pair=1))
    weights = Needs.of(Footprint(weights=MB, inputs=1, tensors=1, unit=1, pair=1))
    inputs = Needs.of(Footprint(weights=1, inputs=MB, tensors=1, unit=1, pair=1))
    tensors = Needs.of(Footprint(weights=1, inputs=1, tensors=MB, unit=1, pair=1))
    assert weights.always > small.always < inputs.always
    assert tensors.most > small.most
    assert Needs.of(Footprint(1, 1, 1, 1, 1), learning=MB).most == MB


def test_a_run_refuses_before_it_reads_an_image(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"no array")
    with pytest.raises(SettingsError, match=r"--memory 100 MB cannot be kept: .* [\d.]+ [MG]B"):
        quantize(blocks(3), tmp_path, Settings(memory=100 * MB))


def test_sizes_come_from_the_graph(tmp_path: Path) -> None:
    model = blocks(3)
    _, graph, plan, _ = load_planned(model, Settings(method="brecq"))
    shape = [d.dim_value or None for d in model.graph.input[0].type.tensor_type.shape.dim]
    found = footprint(graph, plan, [shape])
    assert found.inputs == 4 * int(np.prod(shape[1:]))  # type: ignore[arg-type]
    assert found.weights >= 4 * sum(int(np.prod(t.dims)) for t in model.graph.initializer if len(t.dims) > 1)
    assert found.tensors >= found.pair >= found.unit > 0
    assert not found.unknown
    windowed = footprint(graph, plan, [shape], window=2)
    assert windowed.unit <= found.unit
    assert windowed.tensors == found.tensors


def test_tensors_that_the_graph_does_not_size_are_counted_by_what_they_were_seen_to_be() -> None:
    _, graph, plan, _ = load_planned(blocks(3), Settings(method="brecq"))
    known = footprint(graph, plan, [(None, 3, 16, 16)])
    shapes = {v.name: tuple(v.shape)[1:] for node in graph.graph for v in node.outputs if v.shape is not None}
    for node in graph.graph:
        for value in node.outputs:
            value.shape = None
    blind = footprint(graph, plan, [(None, 3, 16, 16)])
    assert (blind.tensors, blind.unknown) == (0, len(shapes))
    seen = footprint(graph, plan, [(None, 3, 16, 16)], shapes=shapes)  # type: ignore[arg-type]
    assert (seen.tensors, seen.unit, seen.unknown) == (known.tensors, known.unit, 0)
