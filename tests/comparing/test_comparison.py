"""Comparisons: every cell measured alike and kept, one that fails touches no other, an interrupted one goes on."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import psutil
import pytest
from click.testing import CliRunner
from helpers.architectures import residual
from helpers.cells import CellHere
from helpers.command_line import classifier, write_images
from PIL import Image

import mrecg_onnx
from mrecg_onnx import Settings
from mrecg_onnx.commands import main
from mrecg_onnx.comparing import (
    Cell,
    Comparison,
    ComparisonProgress,
    Widths,
    cells,
    compare,
    comparison,
    running,
    table,
)
from mrecg_onnx.comparing.cells import CellError, Job, pack
from mrecg_onnx.comparing.plots import draw_cells
from mrecg_onnx.converters.errors import ExportError, MrecgError, SettingsError
from mrecg_onnx.measures import mcnemar_p
from mrecg_onnx.validating import validate

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = Settings(iters=8, samples=24, batch_size=8, threads=1, equalize="off", range="mse", range_samples=8)
OPTIONS = ["--iters", "8", "--samples", "24", "--batch-size", "8", "--threads", "1", "--equalize", "off"]


@dataclasses.dataclass
class Here:
    """A model, images, and a comparison of two methods that was interrupted once and then finished."""

    folder: Path
    result: Comparison
    seen: list[ComparisonProgress]
    after_interruption: set[str]
    stages: list[tuple[str, str]]

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def compare(self, out: Path | None = None, **more: Any) -> Comparison:
        given = {"methods": ["nearest", "qdrop"], "bits": ["W4A4"], "settings": SETTINGS, "repeats": 3} | more
        model, images = given.pop("model", self.folder / "model.onnx"), given.pop("images", self.folder / "images")
        return compare(model, images, images, out or self.out, **given)

    def copy(self, to: Path) -> Path:
        """The finished folder, to spoil."""
        return Path(shutil.copytree(self.out, to))


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Here:
    folder = tmp_path_factory.mktemp("comparison")
    onnx.save(classifier(), folder / "model.onnx")
    write_images(folder / "images", 40)
    made = Here(folder, None, [], set(), [])  # type: ignore[arg-type]

    def interrupt(progress: ComparisonProgress) -> None:
        if (
            progress.name == "qdrop W4A4"
            and progress.inner is not None
            and progress.inner.done == 2
            and progress.inner.unit
        ):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.compare(progress=interrupt)
    assert not psutil.Process().children()
    made.after_interruption = names(made.out)
    made.result = made.compare(progress=made.seen.append)
    return made


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Processes that are started from here on; none does anything."""
    stages: list[str] = []

    class Fake:
        def __init__(self, stage: str, job: Job) -> None:
            stages.append(f"{stage} {job.settings.method}")
            self.stage, self.job = stage, job

        def __enter__(self) -> Fake:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def result(self, _report: Callable[..., None] | None = None) -> dict[str, Any]:
            if self.job.settings.method == "qdrop":
                raise CellError("the moon is in the\nwrong house")
            if self.stage == "quantize":
                Path(self.job.output).write_bytes(b"a model")
                size = {"images": 24, "peak_bytes": 1, "device_peak_bytes": None, "size_bytes": 7, "seconds": 1.0}
                little = ["--iters 8 are few (in Python: iters=)"] if self.job.settings.method == "adaround" else []
                return size | {"sha256": running._sha256(self.job.output), "warnings": little}
            right = np.arange(40) % 4 > 0
            fp32 = {"images": 40, "top1": None, "warnings": []}
            found = {"drop": 0.1, "fp32_p": 1.0, "agreement": 0.9, "sqnr_db": 10.0, "fp32": fp32, "images": 40}
            top1 = {"value": 0.75, "low": 0.6, "high": 0.9}
            return found | {"labelled": 40, "right": pack(right), "top1": top1}

    monkeypatch.setattr(running, "CellProcess", Fake)
    return stages


# --- a finished comparison -------------------------------------------------------------------------------------------


def test_every_cell_is_measured(here: Here) -> None:
    assert [cell.name for cell in here.result.cells] == ["nearest W4A4", "qdrop W4A4"]
    assert here.result.images == 40
    for cell in here.result.cells:
        report = mrecg_onnx.validate(here.folder / "model.onnx", cell.file, here.folder / "images", repeats=0)
        assert (cell.top1, cell.agreement, cell.fp32_p) == (report.quantized.top1, report.agreement, report.mcnemar_p)
        assert cell.drop == pytest.approx(report.fp32.top1.value - report.quantized.top1.value)
        assert cell.sqnr_db == pytest.approx(report.sqnr_db)
        assert cell.size_bytes == cell.file.stat().st_size
        assert (cell.right == report.top1_right[1]).all()
        assert cell.right.mean() == pytest.approx(cell.top1.value)
        assert cell.images == 24
        assert cell.seconds > 0
        assert cell.latency_s > 0
        assert cell.speedup > 0
        low, high = cell.speedup_interval
        assert 0 < low <= high
        assert cell.to_json()["speedup_interval"] == [low, high]
        # More than an interpreter with torch, less than this machine.
        assert 1e8 < cell.peak_bytes < psutil.virtual_memory().total
    nearest, qdrop = here.result.cells
    assert nearest.base_p is None
    assert qdrop.base_p == mcnemar_p(qdrop.right, nearest.right)


def test_what_is_written(here: Here) -> None:
    stems = {"model_nearest_w4a4", "model_qdrop_w4a4"}
    assert names(here.out) == {
        *(f"comparison.{suffix}" for suffix in ("md", "csv", "json", "png")),
        *(f"{stem}.onnx" for stem in stems),
        *(f"cells/{stem}.json" for stem in stems),
        "cells/comparison.json",
    }
    assert not list(here.out.rglob("*.units"))
    assert {path.name for path in here.result.written} == {f"comparison.{s}" for s in ("md", "csv", "json", "png")}
    content = json.loads((here.out / "comparison.json").read_text())
    assert content["base_method"] == "nearest"
    assert content["settings"]["iters"] == 8
    assert [cell["top1"] for cell in content["cells"]] == [cell.top1.to_json() for cell in here.result.cells]
    rows = list(csv.DictReader((here.out / "comparison.csv").open(encoding="utf-8")))
    assert [(row["method"], row["widths"]) for row in rows] == [("nearest", "W4A4"), ("qdrop", "W4A4")]
    assert float(rows[1]["base_p"]) == here.result.cells[1].base_p
    page = (here.out / "comparison.md").read_text()
    assert "| FP32 |" in page
    assert "| qdrop | W4A4 |" in page
    assert "p, nearest" in page
    assert (here.out / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_an_interruption_leaves_what_is_finished_and_the_next_call_goes_on_inside_the_cell(here: Here) -> None:
    assert "cells/model_nearest_w4a4.json" in here.after_interruption
    assert "model_nearest_w4a4.onnx" in here.after_interruption
    assert "model_qdrop_w4a4.onnx" not in here.after_interruption
    units = {name for name in here.after_interruption if re.fullmatch(r"cells/model_qdrop_w4a4.units/.*\.pt", name)}
    assert len(units) >= 2
    first, second = here.result.cells
    assert (first.kept, second.kept) == (True, False)
    # Units out of the checkpoint are not reported iteration by iteration.
    learned = {p.inner.unit for p in here.seen if p.inner is not None and 0 < p.inner.iteration < 8}
    assert len(learned) <= 5 - 2


def test_progress_names_cells_and_stages(here: Here) -> None:
    assert {(p.name, p.number, p.total) for p in here.seen} == {("nearest W4A4", 1, 2), ("qdrop W4A4", 2, 2)}
    assert [p.finished.name for p in here.seen if p.finished is not None] == ["nearest W4A4", "qdrop W4A4"]
    stages = {p.inner.stage for p in here.seen if p.inner is not None}
    assert {"load", "calibrate", "reconstruct", "export", "verify"} <= stages
    assert {p.stage for p in here.seen} == {"quantize", "validate", "latency"}


def test_nothing_is_run_twice(here: Here, started: list[str]) -> None:
    again = here.compare()
    assert not started
    assert all(cell.kept for cell in again.cells)
    assert [dataclasses.replace(c, kept=True) for c in here.result.cells] == list(again.cells)
    assert again.fp32_top1 == here.result.fp32_top1


# --- what is run again, and what is refused --------------------------------------------------------------------------


def test_more_methods_and_widths_are_added_to_what_is_there(here: Here, tmp_path: Path, started: list[str]) -> None:
    out = here.copy(tmp_path / "out")
    result = here.compare(out, methods=["nearest", "brecq"], bits=["W4A4", "W2A4"], base_method="brecq", repeats=0)
    assert started == ["quantize brecq", "validate brecq", *(
        f"{stage} {method}" for method in ("nearest", "brecq") for stage in ("quantize", "validate"))]  # fmt: skip
    assert [cell.name for cell in result.cells] == ["nearest W4A4", "brecq W4A4", "nearest W2A4", "brecq W2A4"]
    assert [cell.base_p is None for cell in result.cells] == [False, True, False, True]
    assert result.cells[2].base_p == 1.0  # the same images are right


def test_a_file_that_is_gone_or_changed_is_made_again(here: Here, tmp_path: Path, started: list[str]) -> None:
    out = here.copy(tmp_path / "out")
    (out / "model_nearest_w4a4.onnx").unlink()
    here.compare(out, methods=["nearest"], repeats=0)
    assert started == ["quantize nearest", "validate nearest"]
    (out / "model_nearest_w4a4.onnx").write_bytes(b"another")
    here.compare(out, methods=["nearest"], repeats=0)
    assert len(started) == 4


def test_other_validation_data_need_no_new_quantization(here: Here, tmp_path: Path, started: list[str]) -> None:
    out = here.copy(tmp_path / "out")
    here.compare(out, methods=["nearest"], limit=20, repeats=0)
    assert started == ["validate nearest"]


def test_a_cell_that_cannot_be_read_is_run_again(here: Here, tmp_path: Path, started: list[str]) -> None:
    out = here.copy(tmp_path / "out")
    (out / "cells" / "model_nearest_w4a4.json").write_text("{torn")
    here.compare(out, methods=["nearest"], repeats=0)
    assert started == ["quantize nearest", "validate nearest"]


@pytest.mark.parametrize(
    ("change", "named"),
    [({"settings": dataclasses.replace(SETTINGS, iters=9)}, "iters"), ({"model": "other.onnx"}, "model"),
     ({"settings": dataclasses.replace(SETTINGS, seed=1)}, "seed"), ({"images": "others"}, "calib")],
)  # fmt: skip
def test_cells_of_another_comparison_are_not_mixed_in(
    here: Here, tmp_path: Path, started: list[str], change: dict[str, Any], named: str
) -> None:
    onnx.save(classifier(seed=1), tmp_path / "other.onnx")
    write_images(tmp_path / "others", 30)
    given = {k: tmp_path / v if isinstance(v, str) else v for k, v in change.items()}
    before = {path: path.stat().st_mtime_ns for path in here.out.rglob("*")}
    with pytest.raises(SettingsError, match=f"another comparison.*different: .*{named}"):
        here.compare(**given)
    assert not started
    assert before == {path: path.stat().st_mtime_ns for path in here.out.rglob("*")}


def test_memory_and_compile_may_change_between_calls(here: Here, started: list[str]) -> None:
    assert here.compare(settings=dataclasses.replace(SETTINGS, memory=10**9, compile="off")).cells
    assert not started


def test_files_of_somebody_else_are_not_written_over(here: Here, tmp_path: Path, started: list[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "model_nearest_w4a4.onnx").write_text("precious")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(SettingsError, match=r"model_nearest_w4a4.onnx is there already.*--force"):
        here.compare(out, repeats=0)
    assert not started
    assert names(out) == {"model_nearest_w4a4.onnx", "notes.txt"}
    assert (out / "model_nearest_w4a4.onnx").read_text() == "precious"
    here.compare(out, methods=["nearest"], repeats=0, force=True)
    assert (out / "model_nearest_w4a4.onnx").read_text() != "precious"
    assert (out / "notes.txt").read_text() == "mine"
    here.compare(out, methods=["nearest", "brecq"], repeats=0)  # from here on the folder is its own


# --- cells that fail -------------------------------------------------------------------------------------------------


def test_a_failing_cell_is_named_and_the_rest_go_on(here: Here, tmp_path: Path, started: list[str]) -> None:
    seen: list[ComparisonProgress] = []
    result = here.compare(
        tmp_path / "out", methods=["qdrop", "nearest", "brecq"], bits=["W4A4"], repeats=0, progress=seen.append
    )
    assert started == ["quantize qdrop", *(f"{s} {m}" for m in ("nearest", "brecq") for s in ("quantize", "validate"))]
    assert [cell.error for cell in result.cells] == ["the moon is in the wrong house", None, None]
    assert result.failed == result.cells[:1]
    assert [p.finished.error is None for p in seen if p.finished] == [False, True, True]
    assert all(cell.base_p is None for cell in result.cells)  # the base is the one that failed
    headings, rows = table(result)
    assert rows[1][headings.index("note")] == "failed: the moon is in the wrong house"
    assert "failed: the moon is in the wrong house" in (tmp_path / "out" / "comparison.md").read_text()
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert content["cells"][0]["error"] == "the moon is in the wrong house"
    assert (tmp_path / "out" / "comparison.png").is_file()
    started.clear()
    here.compare(tmp_path / "out", methods=["qdrop", "nearest", "brecq"], repeats=0)
    assert started == ["quantize qdrop"]  # tried again, and nothing else


def test_a_method_that_cannot_do_the_bits_fails_as_a_cell(
    here: Here, tmp_path: Path, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Settings.__post_init__

    def strict(settings: Settings, preset: str | None = None) -> None:
        original(settings, preset)
        if settings.method == "adaround" and settings.wbits < 3:
            raise SettingsError("adaround needs 3 bits")

    monkeypatch.setattr(Settings, "__post_init__", strict)
    result = here.compare(tmp_path / "out", methods=["adaround", "nearest"], bits=["W2A4"], repeats=0)
    assert [cell.error for cell in result.cells] == ["adaround needs 3 bits", None]
    assert started == ["quantize nearest", "validate nearest"]


@pytest.mark.slow
def test_an_error_in_a_cells_process_arrives_as_its_one_line(here: Here, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "model_nearest_w4a4.onnx").mkdir(parents=True)
    result = here.compare(out, methods=["nearest"], repeats=0)
    assert "model_nearest_w4a4.onnx: is a folder" in result.cells[0].error
    assert result.images == 0


def test_a_full_disk_leaves_what_is_finished(
    here: Here, tmp_path: Path, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write = here.copy(tmp_path / "out"), comparison.write_all_whole
    kept = (out / "comparison.md").read_text()

    def full(contents: dict[Path, str]) -> None:
        if any("brecq" in text for text in contents.values()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(contents)

    monkeypatch.setattr(comparison, "write_all_whole", full)
    with pytest.raises(ExportError, match="No space left"):
        here.compare(out, methods=["nearest", "brecq"], repeats=0)
    assert (out / "cells" / "model_nearest_w4a4.json").is_file()
    assert "| nearest |" in (out / "comparison.md").read_text()
    assert kept


def test_without_labels_agreement_and_noise_are_compared(here: Here, tmp_path: Path) -> None:
    flat, labelled = tmp_path / "flat", tmp_path / "labelled"
    flat.mkdir()
    (labelled / "0").mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(20):  # of one colour each: the classes vary, as they do on images
        image = np.broadcast_to(random.integers(0, 256, 3, dtype=np.uint8), (16, 16, 3))
        for folder in (flat, labelled / "0"):
            Image.fromarray(image.copy()).save(folder / f"{i}.png")
    qdrop = here.result.cells[1]
    assert qdrop.file is not None
    expected = validate(here.folder / "model.onnx", qdrop.file, labelled, repeats=0).agreement
    job = Job(
        str(here.folder / "model.onnx"), "", str(flat), str(qdrop.file), "", dataclasses.replace(SETTINGS, method="qdrop")
    )  # fmt: skip
    checked = cells._validate(job, None)  # type: ignore[arg-type]
    assert (checked["right"], checked["top1"], checked["drop"]) == (None, None, None)
    assert checked["agreement"] == expected
    made = {"images": 24, "seconds": 1.0, "peak_bytes": 1, "device_peak_bytes": None, "size_bytes": 1, "warnings": []}
    cell = running._cell(Cell("qdrop", Widths(4, 4)), qdrop.file, made, checked, kept=False)
    found = dataclasses.replace(here.result, cells=(cell,), fp32_top1=None)
    headings, rows = table(found)
    assert "top-1" not in headings
    assert rows[1][headings.index("agreement")] == f"{expected:.2%}"
    draw_cells(found, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").is_file()


def test_without_matplotlib_everything_else_is_written(
    here: Here, tmp_path: Path, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "have_matplotlib", lambda: False)
    result = here.compare(tmp_path / "out", methods=["nearest"], repeats=0)
    assert {path.name for path in result.written} == {"comparison.md", "comparison.csv", "comparison.json"}
    assert any("mrecg-onnx[plot]" in warning for warning in result.warnings)


# --- the command -----------------------------------------------------------------------------------------------------


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["compare", *(str(argument) for argument in arguments)])


def command(here: Here, out: Path, *more: str, methods: str = "nearest,qdrop") -> list[object]:
    images = here.folder / "images"
    model = here.folder / "model.onnx"
    return [model, "--calib", images, "--data", images, "--methods", methods, "-o", out, *OPTIONS, *more]


def test_the_command_shows_the_table_and_where_things_are(here: Here, tmp_path: Path, started: list[str]) -> None:
    result = run(*command(here, tmp_path / "out", "--repeats", "0", methods="nearest,brecq"))
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines() == [
        "cell 1/2 nearest W4A4 ...",
        "cell 1/2 nearest W4A4: top-1 75.00%, in 1.0 s",
        "cell 2/2 brecq W4A4 ...",
        "cell 2/2 brecq W4A4: top-1 75.00%, in 1.0 s",
    ]
    for text in (
        "nearest",
        "brecq",
        "W4A4",
        "75.00%",
        "60.00% to 90.00%",
        "-10.00 points",
        "p, nearest",
        "comparison.md",
    ):
        assert text in result.stdout
    again = run(*command(here, tmp_path / "out", "--repeats", "0", methods="nearest,brecq"))
    assert "kept from an earlier run" in again.stderr


def test_warnings_name_options_at_the_terminal_and_arguments_in_python(
    here: Here, tmp_path: Path, started: list[str]
) -> None:
    told = run(*command(here, tmp_path / "out", "--repeats", "0", methods="adaround"))
    page = tmp_path / "out/comparison.md"
    paragraphs = page.read_text().split("\n\n")
    assert "Warning: adaround W4A4: --iters 8 are few\n" in told.stderr
    assert "adaround W4A4: --iters 8 are few." in paragraphs
    assert paragraphs[-1].startswith("mrecg-onnx ")
    found = here.compare(tmp_path / "python", methods="adaround", repeats=0)
    assert "adaround W4A4: --iters 8 are few (in Python: iters=)" in found.warnings
    assert found.cells[0].warnings == ("--iters 8 are few (in Python: iters=)",)


def test_the_command_fails_where_a_cell_does_after_showing_the_rest(
    here: Here, tmp_path: Path, started: list[str]
) -> None:
    alone = run(*command(here, tmp_path / "out", "--repeats", "0", "--json", "-"))
    assert alone.exit_code == 1
    assert [cell["method"] for cell in json.loads(alone.stdout)["cells"]] == ["nearest", "qdrop"]
    result = run(*command(here, tmp_path / "out", "--repeats", "0"))
    assert result.exit_code == 1
    assert "75.00%" in result.stdout
    assert "failed: the moon" in result.stdout
    assert result.stderr.splitlines()[-1] == "Error: 1 of 2 cells failed: qdrop W4A4"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--methods", ""], "--methods ''"),
        (["--methods", "nearest,,qdrop"], "--methods 'nearest,,qdrop'"),
        (["--methods", "nearest,magic"], "'magic' is unknown"),
        (["--base-method", "brecq"], "'brecq' is not among"),
        (["--base-method", "magic"], "'magic' is unknown"),
        (["--bits", ""], "--bits ''"),
        (["--bits", "W4A4,W1A4"], "'W1A4'"),
        (["--bits", "fc=W8A8"], "'fc=W8A8'"),
        (["--layer-bits", "fc"], "'fc'"),
        (["--iters", "0"], "iters"),
        (["--repeats", "-1"], "-1 runs"),
        (["--wbits", "4"], "--wbits"),
        (["--checkpoint", "x"], "--checkpoint"),
    ],
)
def test_usage_errors_come_before_any_work(
    here: Here, tmp_path: Path, started: list[str], more: list[str], says: str
) -> None:
    result = run(*command(here, tmp_path / "out", *more))
    assert result.exit_code == 2, result.output
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1
    assert says in result.stderr
    assert not started
    assert not (tmp_path / "out").exists()


def test_inputs_that_are_not_there(here: Here, tmp_path: Path, started: list[str]) -> None:
    (tmp_path / "file").write_text("x")
    model, images = here.folder / "model.onnx", here.folder / "images"
    for arguments, says in (
        ([model, "--calib", images, "--data", images, "-o", tmp_path / "file"], "is a file"),
        ([tmp_path / "no.onnx", "--calib", images, "--data", images, "-o", tmp_path / "out"], "no.onnx"),
        ([model, "--calib", tmp_path / "nowhere", "--data", images, "-o", tmp_path / "out"], "nowhere"),
        ([model, "--calib", images, "--data", tmp_path / "nowhere", "-o", tmp_path / "out"], "nowhere"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert says in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert not started
    assert not (tmp_path / "out").exists()


def test_several_processes_are_refused(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MrecgError, match="without torchrun"):
        here.compare(tmp_path / "out")


def ended(process: psutil.Process, seconds: float = 30.0) -> bool:
    """True once the process is gone, or waits for nobody but to be reaped; its parent is gone already."""
    for _ in range(int(seconds / 0.05)):
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for one process")
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), pytest.param("SIGINT", 130, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_signal_ends_the_cells_process_and_says_what_is_kept(
    here: Here, tmp_path: Path, name: str, code: int
) -> None:
    if signal.getsignal(getattr(signal, name)) is signal.SIG_IGN:
        pytest.skip(f"{name} is ignored here, and so it is by what is started")
    out = here.copy(tmp_path / "out")
    arguments = command(here, out, "--repeats", "0", methods="nearest,brecq")
    arguments[arguments.index("8")] = "100000"
    shutil.rmtree(out)
    with subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), "compare", *map(str, arguments), "--debug"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("cell 2/2"):
                break
        while not (children := psutil.Process(process.pid).children()):
            time.sleep(0.01)
        process.send_signal(getattr(signal, name))
        rest = process.stderr.read()
        assert process.wait(60) == code
    by = "" if name == "SIGINT" else f"{name}, "
    assert (
        rest.splitlines()[-1]
        == f"Interrupted: {by}1 cell is finished and kept in {out}; the same command goes on there"
    )
    assert not list(out.rglob(".*"))
    assert all(ended(child) for child in children)
    assert (out / "model_nearest_w4a4.onnx").is_file()
    assert "| nearest |" in (out / "comparison.md").read_text()


def test_help_lists_what_all_cells_share() -> None:
    text = run("--help").output
    for option in ("--methods", "--bits", "--layer-bits", "--base-method", "--iters", "--scheme", "--mean", "--memory"):
        assert option in text
    assert "--checkpoint" not in text
    assert "--wbits 2..8" not in text


def test_a_model_whose_first_output_is_no_classification_is_compared_by_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "CellProcess", CellHere)
    assert residual().graph.input  # the graph itself has classes; its data have no labels
    onnx.save(residual(), tmp_path / "model.onnx")
    shape = [d.dim_value for d in residual().graph.input[0].type.tensor_type.shape.dim[1:]]
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal([16, *shape]).astype(np.float32))
    result = compare(tmp_path / "model.onnx", tmp_path / "x.npy", tmp_path / "x.npy", tmp_path / "out",
                     methods=["nearest"], bits=["W8A8"], settings=SETTINGS, repeats=0)  # fmt: skip
    cell = result.cells[0]
    assert cell.error is None
    assert cell.top1 is None
    assert cell.sqnr_db > 10
