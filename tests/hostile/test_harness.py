"""What the cases are checked by: every check fails where it should, and passes where nothing is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers.hostile import Arguments, Case, Hostile, faults, float_model, model_and_images, rows

if TYPE_CHECKING:
    from helpers.hostile import Zygote


# --- three real ones, to copy from -----------------------------------------------------------------------------------


def no_model(folder: Path) -> Arguments:
    return "inspect", "model.onnx"


def cut_off(folder: Path) -> Arguments:
    (folder / "model.onnx").write_bytes(float_model()[:1000])
    return "inspect", "model.onnx"


def no_images(folder: Path) -> Arguments:
    model_and_images(folder)
    for file in (folder / "images").rglob("*.png"):
        file.write_bytes(b"no image")
    return "quantize", "model.onnx", "--calib", "images", "--method", "nearest"


CASES = [
    Case("a model that is not there", no_model, says=("model.onnx", "no such file"), code=2, cpu_s=2),
    Case("a model that is not there, in a fresh process", no_model, says=("model.onnx",), code=2, fresh=True),
    Case("a model that is cut off", cut_off, says=("model.onnx", "truncated"), cpu_s=2),
    Case("images that are none", no_images, says=("images",), cpu_s=2),
]


@rows(CASES)
def test_cases(case: Case, hostile: Hostile) -> None:
    hostile(case)


# --- what must fail --------------------------------------------------------------------------------------------------

GOOD = "import sys; sys.stderr.write('Error: it is so\\n'); "
END = "sys.exit(1)"
BAD = {
    "exit code 2 instead of 1": GOOD + "sys.exit(2)",
    "exit code -9 instead of 1": GOOD + "import os; os.kill(os.getpid(), 9)",
    "exit code -11 instead of 1": GOOD + "import os; os.kill(os.getpid(), 11)",
    "stderr: control characters ['\\x1b']": "import sys; sys.stderr.write('Error: it is \\x1b[31m so\\n'); " + END,
    "stderr: not UTF-8": "import os, sys; os.write(2, b'Error: it is so \\xff\\n'); " + END,
    "stdout: not UTF-8": GOOD + "import os; os.write(1, b'\\xff\\n'); " + END,
    "says 'Traceback'": "int('x')",
    "says 'unexpected failure'": "import sys; sys.stderr.write('Error: unexpected failure: it is so\\n'); " + END,
    "fails and writes on stdout": GOOD + "print('done'); " + END,
    "the last line is no error": GOOD + "sys.stderr.write('So\\n'); " + END,
    "the last line is no error: ''": "import sys; " + END,
    "another line: 'Warning: hm'": "import sys; sys.stderr.write('Warning: hm\\n'); " + GOOD + END,
    "301 characters in the line": "import sys; sys.stderr.write('Error: it is so' + 286 * '.' + '\\n'); " + END,
    "does not say 'it is so'": "import sys; sys.stderr.write('Error: no\\n'); " + END,
    "changed new": GOOD + "open('new', 'w').close(); " + END,
    "changed old": GOOD + "open('old', 'w').write('other'); " + END,
    "changed link": GOOD + "import os; os.remove('link'); os.symlink('new', 'link'); " + END,
    "changed folder": GOOD + "import os; os.rmdir('folder'); " + END,
    "in the temporary folder": GOOD + "import tempfile; tempfile.mkstemp(); " + END,
    "left the process sleep": GOOD + "import subprocess; subprocess.Popen(['sleep', '60']); " + END,
    "CPU seconds, 0.5 are allowed": GOOD + "import time\nwhile time.process_time() < 0.7: pass\n" + END,
    "MB beyond the imports": GOOD + "held = b'x' * 2**30; " + END,
}


def some_files(folder: Path) -> Arguments:
    (folder / "old").write_text("as it is")
    (folder / "link").symlink_to("old")
    (folder / "folder").mkdir()
    return ()


def row(before: str, **more: Any) -> Case:
    return Case("made", some_files, says=("it is so",), cpu_s=0.5, megabytes=100, before=before, **more)


@pytest.mark.parametrize("fault", BAD)
def test_a_fault_is_found(fault: str, hostile: Hostile) -> None:
    case = row(BAD[fault])
    found = faults(case, hostile.outcome(case))
    assert any(fault in text for text in found), found


def test_what_is_well_has_no_fault(hostile: Hostile) -> None:
    hostile(row(GOOD + END))


def test_lines_and_files_that_a_case_allows_are_no_faults(hostile: Hostile) -> None:
    before = "import sys; sys.stderr.write('Warning: hm\\n'); open('new.txt', 'w').close(); " + GOOD + END
    hostile(row(before, lines=("Warning: ",), writes=("*.txt",)))


@pytest.mark.slow
def test_a_forked_process_makes_the_file_that_a_fresh_one_makes(hostile: Hostile, tmp_path: Path) -> None:
    def quantized(folder: Path) -> Arguments:
        model_and_images(folder, 12)
        return "quantize", "model.onnx", "--calib", "images", "--method", "brecq", "--iters", "2", "--threads", "1"

    def made(**more: Any) -> bytes:
        case = Case("works", quantized, code=0, lines=("",), writes=("model_brecq_w4a4.*",), cpu_s=60, **more)
        outcome = hostile.outcome(case)
        assert faults(case, outcome) == []
        folder = tmp_path / "place"
        return (folder.rename(tmp_path / f"done {more}") / "case" / "model_brecq_w4a4.onnx").read_bytes()

    assert made() == made(fresh=True)


def test_what_works_may_write_on_stdout(hostile: Hostile) -> None:
    hostile(row("import sys; print('it is so'); sys.exit(0)", code=0))


def test_a_process_that_waits_is_ended(hostile: Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("helpers.hostile.CLOCK_S", 1.0)
    case = row("import time; time.sleep(60)")
    assert "did not end within 1 s" in faults(case, hostile.outcome(case))


def test_a_process_that_computes_for_ever_is_ended(hostile: Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("helpers.hostile.IMPORTS_CPU_S", 0.0)
    case = row("while True: pass")
    assert hostile.outcome(case).code < 0


def test_a_limit_of_memory_holds(hostile: Hostile) -> None:
    case = row("import sys\ntry: held = bytearray(2**36)\nexcept MemoryError: " + GOOD + END, address_space=2**35)
    hostile(case)


def test_a_case_has_its_own_environment_and_input(hostile: Hostile) -> None:
    before = "import os, sys; assert os.environ['SO'] == sys.stdin.read() == 'it is'; " + GOOD + END
    hostile(row(before, env={"SO": "it is"}, stdin=b"it is"))


def test_outcomes_are_kept_where_the_environment_says(
    zygote: Zygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MRECG_HOSTILE_JSON", str(tmp_path / "kept"))
    Hostile(zygote, tmp_path / "a", "test_a.py")(row(GOOD + END))
    with pytest.raises(AssertionError):
        Hostile(zygote, tmp_path / "b", "test_b.py")(row(GOOD + "sys.exit(2)"))
    good, bad = map(json.loads, (tmp_path / "kept").read_text().splitlines())
    assert (good["file"], good["code"], good["says"], good["faults"]) == ("test_a.py", 1, "Error: it is so", [])
    assert bad["faults"]
