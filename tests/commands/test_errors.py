"""Outputs that cannot be written, runs that are interrupted, and errors that nobody foresaw."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import click
import onnx
import pytest
from helpers.command_line import FAST, fails, files, quantize_fails, run

from mrecg_onnx.commands import main
from mrecg_onnx.converters.text import LONGEST_LINE
from mrecg_onnx.running import RUNTIMES

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("option", ["--output", "--json"])
def test_a_path_that_cannot_be_written_is_refused_before_the_work(here: Path, option: str) -> None:
    for path in ("missing/out.onnx", "images", "model.onnx/out.onnx"):
        line = quantize_fails("model.onnx", option, path, code=2, says=(path,))
        assert "folder" in line


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system")
@pytest.mark.parametrize("option", ["--output", "--json"])
def test_a_device_or_pipe_is_not_replaced_by_a_file(here: Path, option: str) -> None:
    os.mkfifo(here / "pipe")
    quantize_fails("model.onnx", option, "pipe", code=2, says=("is a named pipe, no file",))
    assert (here / "pipe").is_fifo()


@pytest.mark.parametrize("kept", [False, True])
def test_an_interrupted_run_leaves_nothing_but_finished_units(
    here: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    from mrecg_onnx.learning import learner

    real, calls = learner.reconstruct_unit, []

    def interrupt(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(learner, "reconstruct_unit", interrupt)
    command = ("quantize", "model.onnx", "--calib", "images", *FAST, "--json", "r.json")
    if not kept:
        line = fails(*command, code=130, start="Interrupted")
        assert line == (
            "Interrupted: nothing was written; with --checkpoint DIR the same command goes on where it was interrupted"
        )
        return
    result = run(*command, "--checkpoint", "units")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == (
        "Interrupted: nothing was written; 2 units are kept in units: the same command goes on there"
    )
    assert not [
        path for path in files(here) if path.name.startswith(".") or (path.suffix == ".json" and path.parent == here)
    ]


def test_an_interruption_before_any_unit_is_done_promises_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mrecg_onnx.learning.learner.reconstruct_unit", interrupt)
    result = run("quantize", "model.onnx", "--calib", "images", *FAST, "--checkpoint", "units")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "Interrupted: nothing was written; no unit is kept yet"


def test_an_interruption_after_the_file_is_there_says_so(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mrecg_onnx.commands.quantize.write_json", interrupt)
    result = run("quantize", "model.onnx", "--calib", "images", "--method", "nearest", "--json", "r.json")
    assert result.exit_code == 130
    assert (
        result.stderr.splitlines()[-1]
        == "Interrupted: model_nearest_w4a4.onnx and model_nearest_w4a4.toml were written"
    )
    onnx.checker.check_model("model_nearest_w4a4.onnx")


@pytest.mark.skipif(sys.platform == "win32", reason="no signals for one process")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_a_real_run(here: Path, name: str, code: int) -> None:
    if signal.getsignal(getattr(signal, name)) is signal.SIG_IGN:
        pytest.skip(f"{name} is ignored here, and so it is by what is started")
    before = files(here)
    command = [sys.executable, str(ROOT / "cli.py"), "quantize", "model.onnx", "--calib", "images", "--iters", "100000"]
    with subprocess.Popen(
        [*command, "--threads", "1", "--scheme", "none"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        for line in process.stderr:
            if line.startswith("calibrate"):
                break
        process.send_signal(getattr(signal, name))
        rest = process.stderr.read()
        assert process.wait(60) == code
        *told, last = rest.splitlines()
        by = "" if name == "SIGINT" else f"{name}, "
        assert last.startswith(f"Interrupted: {by}nothing was written; with --checkpoint DIR")
        assert all(re.fullmatch(r"\w+ done in \S+ s", line) for line in told)  # what ended before the signal came
        assert not process.stdout.read()
    assert files(here) == before


def test_an_unforeseen_error_takes_one_line_and_debug_shows_where(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object, **__: object) -> None:
        message = "no\nidea"
        raise RuntimeError(message)

    monkeypatch.setattr("mrecg_onnx.quantization.verify", explode)
    quantize_fails("model.onnx", says=("unexpected", "RuntimeError: no idea", "--debug"))
    result = run("quantize", "model.onnx", "--calib", "images", *FAST, "--debug")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "explode" in result.stderr


@pytest.mark.parametrize("name", ["tf", "x" * 400])
def test_a_wrong_word_is_answered_with_all_that_there_are(here: Path, name: str) -> None:
    fails(
        "runtimes", "model.onnx", "--only", name, code=2, says=(f"choose among {', '.join(RUNTIMES)}", "' is unknown")
    )


def test_words_of_options_fit_into_the_line_that_names_them() -> None:
    for command in main.commands.values():
        for option in command.params:
            if isinstance(option.type, click.Choice):
                said = option.type.get_invalid_choice_message("x" * 20, None)
                line = f"Error: Invalid value for '{option.opts[0]}': {said}"
                more = f" ('mrecg-onnx {command.name} --help' lists what there is)"
                assert len(line + more) <= LONGEST_LINE
