"""Files, names and messages from outside: nothing is started, waited for or sent to the terminal as it is."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from helpers.cells import CellHere
from helpers.command_line import fails, works, write_images
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from PIL import EpsImagePlugin, Image

from mrecg_onnx.commands import main
from mrecg_onnx.comparing import running
from mrecg_onnx.converters.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from click.testing import Result

pty = pytest.importorskip("pty", reason="pipes, sockets and terminals as Unix has them")
FAST = ("--method", "nearest", "--threads", "1")


# --- what is no file -------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    """Whoever opens a pipe that nobody writes to waits for ever: that is a failure, not a hang."""

    def stop(*_: object) -> None:
        raise TimeoutError("something was waited for")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


COMMANDS = {
    "quantize": ("quantize", "PIPE", "--calib", "images"),
    "quantize --calib": ("quantize", "model.onnx", "--calib", "PIPE"),
    "quantize --data": ("quantize", "model.onnx", "--calib", "images", "--max-drop", "1", "--data", "PIPE", *FAST),
    "quantize -o": ("quantize", "model.onnx", "--calib", "images", "-o", "PIPE"),
    "quantize --json": ("quantize", "model.onnx", "--calib", "images", "--json", "PIPE"),
    "quantize --target": ("quantize", "model.onnx", "--calib", "images", "--target", "PIPE"),
    "quantize --scheme": ("quantize", "model.onnx", "--calib", "images", "--scheme", "PIPE"),
    "inspect": ("inspect", "PIPE"),
    "sensitivity": ("sensitivity", "PIPE", "--calib", "images"),
    "validate, first": ("validate", "PIPE", "model.onnx", "--data", "images"),
    "validate, second": ("validate", "model.onnx", "PIPE", "--data", "images"),
    "validate --data": ("validate", "model.onnx", "model.onnx", "--data", "PIPE"),
    "validate --labels": ("validate", "model.onnx", "model.onnx", "--data", "images", "--labels", "PIPE"),
    "validate --labels, an array": (
        "validate", "model.onnx", "model.onnx", "--data", "rows.npy", "--labels", "pipe.npy",
    ),
    "validate --preprocess": ("validate", "model.onnx", "model.onnx", "--data", "images", "--preprocess", "PIPE"),
    "compare": ("compare", "PIPE", "--calib", "images", "--data", "images", "-o", "out"),
    "compare --calib": ("compare", "model.onnx", "--calib", "PIPE", "--data", "images", "-o", "out"),
    "compare --labels": (
        "compare", "model.onnx", "--calib", "images", "--data", "images", "--labels", "PIPE", "-o", "out",
    ),
    "convert": ("convert", "PIPE"),
    "benchmark": ("benchmark", "model.onnx", "PIPE"),
}  # fmt: skip


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS.keys())
def test_a_pipe_in_place_of_a_file_is_refused_without_opening_it(here: Path, arguments: tuple[str, ...]) -> None:
    pipe = "pipe.npy" if "pipe.npy" in arguments else "pipe.onnx"
    os.mkfifo(here / pipe)
    np.save(here / "rows.npy", np.zeros((4, 3, 16, 16), np.float32))
    line = fails(*(pipe if word == "PIPE" else word for word in arguments), code=2, says=(pipe,))
    assert {"--target", "--scheme", "--preprocess"} & set(arguments) or "a named pipe" in line


def test_a_device_is_no_model(here: Path) -> None:
    fails("inspect", "/dev/zero", code=2, says=("/dev/zero", "a device"))


@pytest.mark.parametrize("name", ["run.json", "reconstruct-0000.pt"])
def test_a_pipe_among_the_checkpoints_is_refused(here: Path, name: str) -> None:
    options = ("--calib", "images", "--method", "brecq", "--iters", "1", "--samples", "8", "--checkpoint", "kept")
    works("quantize", "model.onnx", *options)
    (here / "kept" / name).unlink()
    os.mkfifo(here / "kept" / name)
    fails(
        "quantize", "model.onnx", *options, "--force", code=2 if name == "run.json" else 1, says=(name, "a named pipe")
    )


def test_what_is_no_file_in_a_folder_of_images_is_skipped_by_name(here: Path) -> None:
    os.mkfifo(here / "images" / "0" / "a.png")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("images/0/b.png")
        (here / "images" / "1" / "c.png").symlink_to("/dev/zero")
        result = works("quantize", "model.onnx", "--calib", "images", *FAST)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Warning")]
    for text in ("a.png (a named pipe)", "b.png (a socket)", "c.png (a device)"):
        assert text in line
    assert "24 calibration images" in result.stdout


def test_a_folder_with_nothing_but_pipes_has_no_images(here: Path) -> None:
    (here / "arrays").mkdir()
    os.mkfifo(here / "arrays" / "a.npy")
    fails("quantize", "model.onnx", "--calib", "arrays", *FAST, says=("no images in arrays",))


# --- images ----------------------------------------------------------------------------------------------------------


def test_only_the_formats_that_are_named_are_decoded(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow goes by content: a PostScript file with another name would be given to Ghostscript, a program."""
    started: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: started.append(a))
    (here / "images" / "0" / "page.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n%%EOF\n"
    )
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(here / "images" / "0" / "b.jpg", format="PPM")
    for n in range(40):  # two of so many may be lost
        Image.fromarray(np.full((16, 16), n, np.uint8)).save(here / "images" / "0" / f"more{n}.bmp")
    result = works("quantize", "model.onnx", "--calib", "images", *FAST)
    for text in ("page.png (not an image", "b.jpg (not an image"):
        assert text in " ".join(result.stdout.split())
    assert not started


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"])
def test_all_the_formats_that_are_named_are_read(here: Path, suffix: str) -> None:
    folder = here / "kind"
    folder.mkdir()
    for n in range(2):
        Image.fromarray(np.full((16, 16, 3), n, np.uint8)).save(folder / f"{n}{suffix}")
    works("quantize", "model.onnx", "--calib", "kind", *FAST)


# --- what is shown ---------------------------------------------------------------------------------------------------

#: Sets a terminal's title, clears its screen, goes back in the line, turns the text round, and asks rich for red letters.
SLY = "\x1b]0;title\x07\x1b[2J\x9b31m\r\u202e[red]\x7f\n{}\u2028"
#: How people see it.
SHOWN = r"\x1b]0;title\x07\x1b[2J\x9b31m\r\u202e[red]\x7f\n{}\u2028"


def sly(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with such names for all it has."""
    for node in model.graph.node:
        node.name = SLY.format(node.name)
        for tensors in (node.input, node.output):
            tensors[:] = [SLY.format(name) if name else "" for name in tensors]
    for named in (*model.graph.input, *model.graph.output, *model.graph.initializer, *model.graph.value_info):
        named.name = SLY.format(named.name)
    model.graph.name = model.doc_string = model.producer_name = SLY
    entry = model.metadata_props.add()
    entry.key, entry.value = "author", SLY
    return model


@pytest.fixture
def there(here: Path) -> Path:
    """The folder ``here`` with a model and images whose names are such."""
    onnx.save(sly(onnx.load(here / "model.onnx")), here / "model.onnx")
    write_images(here / "many", 60)
    (here / "many" / "0" / (SLY.format("lost") + ".png")).write_bytes(b"nothing")
    return here


def harmless(text: str) -> None:
    assert [c for c in text if not (c.isprintable() or c == "\n")] == []


def clean(*arguments: object, code: int = 0) -> Result:
    """Run a command, whose output has no control character but line breaks."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    harmless(result.stdout)
    harmless(result.stderr)
    return result


@pytest.mark.slow
def test_results_show_names_without_what_a_terminal_obeys(there: Path, capfd: pytest.CaptureFixture[str]) -> None:
    quick = ("--calib", "many", "--samples", "61", "--threads", "1")
    more = ("--method", "brecq", "--iters", "1", "--json", "r.json", "--debug", "--exclude", "conv3")
    said = clean("quantize", "model.onnx", *quick, *more)
    assert SHOWN.format("stem") in said.stderr  # the progress of a unit
    assert "lost" in said.stderr
    assert json.loads((there / "r.json").read_text())["plan"]["layers"][0]["name"] == SLY.format("stem")
    assert onnx.load("model_brecq_w4a4.onnx").graph.input[0].name == onnx.load("model.onnx").graph.input[0].name
    said = clean("inspect", "model.onnx", *quick)
    lines = said.stdout.splitlines()
    assert any(SHOWN.format("stem") in line and "Conv" in line for line in lines)  # one row, not several
    clean("sensitivity", "model.onnx", *quick, "--method", "nearest", "--top", "1")
    clean("validate", "model.onnx", "model_brecq_w4a4.onnx", "--data", "many")
    clean("convert", "model_brecq_w4a4.onnx", "--container", "packed", "-o", SLY.format("out") + ".onnx")
    clean("benchmark", "model.onnx", SLY.format("out") + ".onnx", "--runs", "1")
    captured = capfd.readouterr()  # what C code wrote
    harmless(captured.out + captured.err)


def test_errors_show_names_without_what_a_terminal_obeys(there: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = onnx.load("model.onnx")
    node = next(node for node in model.graph.node if node.op_type == "Add")
    node.op_type = "Gone"
    onnx.save(model, "gone.onnx")
    node.op_type, node.domain = SLY, SLY
    model.opset_import.add(domain=SLY, version=1)
    onnx.save(model, SLY + ".onnx")
    for arguments, code in (
        (("inspect", "gone.onnx"), 1),
        (("inspect", SLY + ".onnx"), 1),
        (("inspect", SLY), 2),
        (("inspect", "model.onnx", "--exclude", SLY), 2),
        (("inspect", "model.onnx", "--" + SLY), 2),
        ((SLY,), 2),
        (("benchmark", "model.onnx", SLY + ".onnx"), 1),
        (("validate", "model.onnx", SLY + ".onnx", "--data", "many"), 1),
        (("quantize", "model.onnx", "--calib", SLY), 2),
        (("quantize", "model.onnx", "--calib", "many", "--scheme", SLY), 2),
        (("quantize", "gone.onnx", "--calib", "many", "--debug"), 1),
    ):
        result = clean(*arguments, code=code)
        assert result.stderr.splitlines()[-1].startswith("Error: ")
    captured = capfd.readouterr()
    harmless(captured.out + captured.err)


def test_what_onnx_runtime_says_of_a_failing_run_is_one_clean_line(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It writes such errors to stderr by itself, from C++, with the node's name as it is."""
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "to"], ["y"], SLY)],
        "g",
        [helper.make_tensor_value_info("x", 1, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(np.array([7, 11]), "to")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "model.onnx")
    (here / "again.onnx").write_bytes((here / "model.onnx").read_bytes())
    line = clean("benchmark", "model.onnx", "again.onnx", code=1).stderr
    assert "ONNX Runtime cannot run" in line
    clean("validate", "model.onnx", "again.onnx", "--data", "images", code=1)
    captured = capfd.readouterr()
    harmless(captured.out + captured.err)


@pytest.mark.slow
def test_progress_on_a_terminal_shows_names_without_what_it_obeys(there: Path) -> None:
    parent, child = pty.openpty()
    arguments = ("quantize", "model.onnx", "--calib", "images", "--method", "brecq", "--iters", "300", "--threads", "1")
    code = "import sys, mrecg_onnx; from mrecg_onnx.commands import main; main(sys.argv[1:], prog_name='x')"
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=child, stderr=child, stdin=child, env=environment
    ) as process:
        os.close(child)
        seen = b""
        with contextlib.suppress(OSError):  # the end of a terminal
            while chunk := os.read(parent, 4096):
                seen += chunk
        assert process.wait() == 0, seen
    os.close(parent)
    text = seen.decode()
    assert "\x1b[" in text  # what rich does with the line
    assert r"\x1b]0;title\x07" in text
    for odd in ("\x1b]", "\x07", "\x1b[2J\x9b", "\x9b", "\u202e", "\x7f", "\u2028"):
        assert odd not in text


def test_a_narrow_encoding_writes_letters_out(here: Path) -> None:
    model = onnx.load("model.onnx")
    model.graph.node[0].name = "\u91cd\u307f"
    onnx.save(model, "model.onnx")
    code = "import sys, mrecg_onnx; from mrecg_onnx.commands import main; main(sys.argv[1:], prog_name='x')"
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", "model.onnx"],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert rb"\u91cd\u307f" in done.stdout


@given(st.text(st.characters()))
def test_printable_leaves_what_prints_and_nothing_else(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    assert "".join(c for c in text if c.isprintable() and ord(c) > 127) == "".join(c for c in shown if ord(c) > 127)


@pytest.mark.slow
def test_plots_and_pages_show_names_as_they_are(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dollar sign is no formula, a bar no column, a line break no row."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(running, "CellProcess", CellHere)
    odd = "$x^{2$ | a\n| b"
    (here / f"{odd}.onnx").write_bytes((here / "model.onnx").read_bytes())
    clean("benchmark", "model.onnx", f"{odd}.onnx", "--runs", "1", "--plot", "timings.png")
    assert (here / "timings.png").stat().st_size > 1000
    quick = ("--calib", "images", "--data", "images", "--methods", "nearest", "--bits", "W4A4", "--iters", "1")
    clean("compare", f"{odd}.onnx", *quick, "--repeats", "0", "--threads", "1", "-o", "out")
    (page,) = (here / "out").glob("*.md")
    assert page.read_text().splitlines()[0] == "# $x^{2$ | a\\n| b: methods compared"
