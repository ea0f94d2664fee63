"""One run at a time in a folder: who holds it is told, and whoever is dead holds nothing."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mrecg_onnx.converters.errors import DataError, SettingsError
from mrecg_onnx.converters.owners import Owner
from mrecg_onnx.machine import lock, locked

HOLDER = """if True:
    import sys, time
    from pathlib import Path
    from mrecg_onnx.machine import locked
    with locked(Path(sys.argv[1]), "it"):
        print("holds", flush=True)
        time.sleep(float(sys.argv[2]))
"""


def holder(folder: Path, seconds: float = 60) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, folder, str(seconds)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "holds\n"
    return process


@pytest.fixture
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(lock, "WAIT_S", 0.1)


def hold(folder: Path, wait_s: float = 0.1) -> None:
    with locked(folder, "--checkpoint here", wait_s):
        pass


def test_the_second_is_told_who_the_first_is(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        with pytest.raises(DataError) as raised:
            hold(tmp_path)
    finally:
        process.kill()
    since = json.loads((tmp_path / ".lock.json").read_text())["since"]
    assert str(raised.value) == (
        f"--checkpoint here is in use by process {process.pid} on {platform.node()} since {since}: wait for that run, or name "
        "another folder (in Python: checkpoint=)"
    )
    assert abs(time.mktime(time.strptime(since, "%Y-%m-%d %H:%M:%S")) - time.time()) < 60


def test_a_killed_one_holds_nothing(tmp_path: Path, caplog) -> None:
    process = holder(tmp_path)
    process.kill()
    hold(tmp_path, 1.0)  # it need not have been waited for
    process.wait()
    assert not caplog.records
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_one_left_inside_is_swept(tmp_path: Path) -> None:
    this = Owner.this()
    inner = tmp_path / "run-0" / f".unit.pt.mrecg-{this.place}-{this.pid}-{this.started - 1}-abcd1234"
    inner.mkdir(parents=True)
    hold(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["run-0"]


def test_one_that_ends_soon_is_waited_for(tmp_path: Path) -> None:
    process = holder(tmp_path, 0.5)
    hold(tmp_path, 20)
    assert process.wait() == 0


@pytest.mark.parametrize("ahead", [-1e6, 1e6], ids=["the clock was set ahead since", "the clock was set back since"])
def test_what_a_dead_one_left_means_nothing(tmp_path: Path, ahead: float) -> None:
    this = Owner.this()
    for started in (this.started, this.started - 1):  # this number, and this very process in an earlier call
        found = {"host": "h", "pid": this.pid, "since": "", "place": this.place, "started": started}
        (tmp_path / ".lock").write_bytes(b"")
        (tmp_path / ".lock.json").write_text(json.dumps(found))
        for name in (".lock", ".lock.json"):
            os.utime(tmp_path / name, (time.time() + ahead,) * 2)
        hold(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"[]", b"{}", b"1" * 5000, b'{"place": "x", "pid": "y"}', b"[" * 4000, b'{"pid": 1}'],
    ids=["empty", "bytes", "list", "object", "long", "words", "deep", "less"],
)
def test_an_owner_that_cannot_be_read_is_left_out(tmp_path: Path, content: bytes) -> None:
    with locked(tmp_path, "it"):
        (tmp_path / ".lock.json").write_bytes(content)
        with pytest.raises(DataError, match="here is in use: wait"):
            hold(tmp_path)


def test_one_that_died_is_not_named(tmp_path: Path) -> None:
    with locked(tmp_path, "it"):
        found = json.loads((tmp_path / ".lock.json").read_text())
        (tmp_path / ".lock.json").write_text(json.dumps({**found, "started": 1}))
        with pytest.raises(DataError, match="here is in use: wait"):
            hold(tmp_path)
        (tmp_path / ".lock.json").write_text(json.dumps({**found, "place": "elsewhere", "host": "other"}))
        with pytest.raises(DataError, match="on other since"):
            hold(tmp_path)


def test_folders_that_were_made_for_nothing_go_again(tmp_path: Path) -> None:
    hold(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a" / "b", "it"):
        (tmp_path / "a" / "b" / "unit").write_bytes(b"")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["unit"]


def test_an_error_inside_lets_the_folder_go(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), locked(tmp_path, "it"):
        raise KeyboardInterrupt
    hold(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and links of Unix")
def test_what_is_no_file_in_its_place_is_refused(tmp_path: Path) -> None:
    for made, says in (
        (os.mkfifo, "named pipe"),
        (os.mkdir, "directory"),
        (lambda path: path.symlink_to("x"), "links"),
    ):
        made(tmp_path / ".lock")
        with pytest.raises(SettingsError, match=f"--checkpoint here: cannot be used .*{says}"):
            hold(tmp_path)
        (tmp_path / ".lock").rmdir() if (tmp_path / ".lock").is_dir() else (tmp_path / ".lock").unlink()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SettingsError, match="--checkpoint here: cannot be used"):
        hold(tmp_path / "file")


def test_of_many_at_the_same_moment_one_holds_it(tmp_path: Path) -> None:
    """Each adds a line and looks that nobody else does between."""
    code = """if True:
        import sys, time
        from pathlib import Path
        from mrecg_onnx.converters.errors import DataError
        from mrecg_onnx.machine import locked
        folder = Path(sys.argv[1])
        while not (folder / "go").exists(): pass
        for _ in range(20):
            try:
                with locked(folder / "held", "it", 0):
                    (folder / "held" / "in").touch(exist_ok=False)
                    time.sleep(0.001)
                    (folder / "held" / "in").unlink()
                    print("held", flush=True)
            except DataError:
                pass
    """
    command = [sys.executable, "-c", code, tmp_path]
    several = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    (tmp_path / "go").touch()
    said = [process.communicate(timeout=60) for process in several]
    assert [error for _, error in said] == [""] * 4
    assert sum(out.count("held") for out, _ in said) >= 1
