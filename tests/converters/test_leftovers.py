"""What a killed process leaves behind is removed by the next one; what belongs to anybody else stays."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mrecg_onnx.converters import files
from mrecg_onnx.converters.files import (
    check_writable,
    sweep,
    temporary_folder,
    write_all_whole,
    write_whole,
    written_now,
)
from mrecg_onnx.converters.owners import Owner

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")

WRITER = """if True:
    import sys, time
    from mrecg_onnx.converters.files import writing_whole
    with writing_whole(sys.argv[1]) as temporary:
        temporary.write_bytes(b"half")
        print("writes", flush=True)
        time.sleep(600)
"""
TEMPORARY = WRITER.replace("writing_whole", "temporary_folder").replace(
    "temporary.write_bytes", "(temporary / 'x').write_bytes"
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def killed(code: str, *arguments: object, environment: dict[str, str] | None = None) -> int:
    """Start ``code``, kill it where it sleeps; its number."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writes\n"
        process.kill()
        assert process.wait() == -signal.SIGKILL
        return process.pid


def left(folder: Path, owner: Owner, name: str = "out.onnx") -> Path:
    """A temporary folder as ``owner`` would have left it."""
    made = folder / f".{name}.mrecg-{owner.place}-{owner.pid}-{owner.started}-abcd1234"
    made.mkdir()
    (made / name).write_bytes(b"half")
    return made


def dead() -> Owner:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return Owner(Owner.this().place, process.pid, 1)


@pytest.mark.parametrize(
    "starts", [lambda path: write_whole(path, b"new"), check_writable, lambda path: sweep(path.parent)]
)
def test_what_a_killed_writer_left_is_gone_at_the_next_start(tmp_path: Path, starts) -> None:
    path = tmp_path / "out.onnx"
    path.write_bytes(b"old")
    killed(WRITER, path)
    assert len(names(tmp_path)) == 2
    assert path.read_bytes() == b"old"
    starts(path)
    assert names(tmp_path) == ["out.onnx"]


def test_another_file_in_the_folder_is_a_start_too(tmp_path: Path) -> None:
    killed(WRITER, tmp_path / "out.onnx")
    write_whole(tmp_path / "report.json", "{}")
    assert names(tmp_path) == ["report.json"]


def test_the_system_s_temporary_folder_is_swept(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    killed(TEMPORARY.replace("(sys.argv[1])", "()"), environment={"TMPDIR": str(tmp_path)})
    assert len(names(tmp_path)) == 1
    with temporary_folder() as folder:
        assert names(tmp_path) == [folder.name]
    assert names(tmp_path) == []


def test_one_that_is_not_waited_for_is_dead(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, tmp_path / "out"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert written_now(tmp_path / "out")
        process.kill()
        until = time.monotonic() + 10
        while written_now(tmp_path / "out") and time.monotonic() < until:
            time.sleep(0.01)
        assert process.returncode is None  # nobody has asked yet
        sweep(tmp_path)
        assert names(tmp_path) == []


def test_who_still_writes_is_left_alone(tmp_path: Path) -> None:
    mine = left(tmp_path, Owner.this())
    write_whole(tmp_path / "out.onnx", b"new")
    assert names(tmp_path) == sorted([mine.name, "out.onnx"])
    assert written_now(tmp_path / "out.onnx")
    assert not written_now(tmp_path / "other.onnx")


def test_a_number_that_another_process_has_by_now_keeps_nothing(tmp_path: Path) -> None:
    this = Owner.this()
    left(tmp_path, Owner(this.place, this.pid, this.started - 1))
    sweep(tmp_path)
    assert names(tmp_path) == []


def test_those_of_another_machine_only_after_an_age(tmp_path: Path) -> None:
    young, old = (left(tmp_path, Owner("0" * 8, 1, 1), name) for name in ("young", "old"))
    ago = time.time() - files.FOREIGN_AGE_S - 60
    os.utime(old, (ago, ago))
    assert written_now(tmp_path / "young")
    sweep(tmp_path)
    assert names(tmp_path) == [young.name]
    ahead = time.time() + 1e6  # the clock was set back since
    os.utime(young, (ahead, ahead))
    sweep(tmp_path)
    assert names(tmp_path) == [young.name]


def test_nothing_that_is_not_ours_is_removed(tmp_path: Path) -> None:
    gone = dead()
    tag = f"{gone.place}-{gone.pid}-{gone.started}"
    for name in (
        f".out.mrecg-{tag}",
        f"out.mrecg-{tag}-abcd1234",
        f".out.mrecg-{tag}-abcd1234.bak",
        ".out.abcd1234",
        ".mrecg-",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / f".file.mrecg-{tag}-abcd1234").write_bytes(b"a file, no folder")
    target = tmp_path / "target"
    target.mkdir()
    (target / "precious").write_bytes(b"")
    (tmp_path / f".link.mrecg-{tag}-abcd1234").symlink_to(target)
    before = names(tmp_path)
    sweep(tmp_path)
    assert names(tmp_path) == before
    assert names(target) == ["precious"]


def test_links_inside_are_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "precious").write_bytes(b"")
    (left(tmp_path, dead()) / "link").symlink_to(target)
    sweep(tmp_path)
    assert names(tmp_path) == ["target"]
    assert names(target) == ["precious"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a folder away")
def test_those_of_another_user_stay(tmp_path: Path) -> None:
    made = left(tmp_path, dead())
    os.chown(made, 12345, 12345)
    sweep(tmp_path)
    assert names(tmp_path) == [made.name]


def test_a_folder_that_is_missing_has_nothing_to_sweep(tmp_path: Path) -> None:
    sweep(tmp_path / "none")


def test_an_owner_does_not_change_with_the_clock(monkeypatch) -> None:
    before = Owner.this()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert Owner.this() == before
    assert before.alive


def test_a_fork_is_another_owner() -> None:
    this, (read, write) = Owner.this(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, str(Owner.this().pid != this.pid).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 10) == b"True"


def test_several_files_all_or_none(tmp_path: Path, monkeypatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("old")
    order, replace = [], Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: order.append(Path(to).name) or replace(self, to))
    write_all_whole({tmp_path / "a": "new", tmp_path / "b": b"new", tmp_path / "c": ""})
    assert order == ["a", "b", "c"]

    real = Path.write_bytes

    def full(self: Path, *more, **options):
        if self.name == "b":
            raise OSError(28, "No space left on device")
        return real(self, *more, **options)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_all_whole({tmp_path / "a": "newer", tmp_path / "b": "newer"})
    assert names(tmp_path) == ["a", "b", "c"]
    assert (tmp_path / "a").read_text() == "new"


def test_a_missing_temporary_folder_is_told(monkeypatch) -> None:
    def nowhere() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", nowhere)
    from mrecg_onnx.converters.errors import ExportError

    with pytest.raises(ExportError, match="set TMPDIR"), temporary_folder():
        pass


def test_removing_is_finished_after_an_interruption(tmp_path: Path, monkeypatch) -> None:
    real, calls = shutil.rmtree, []

    def interrupted(*arguments, **options) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        real(*arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt), temporary_folder(tmp_path / "x"):
        pass
    assert names(tmp_path) == []
