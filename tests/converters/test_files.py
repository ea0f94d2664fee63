"""Files are written whole or not at all, whoever writes them."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mrecg_onnx.converters.files import move_whole, write_whole, writing_whole

if TYPE_CHECKING:
    from collections.abc import Iterator

unix = pytest.mark.skipif(sys.platform == "win32", reason="permissions, links and pipes of Unix")


@pytest.fixture
def umask() -> Iterator[int]:
    """One that no default would give."""
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("content", "found"), [("wörter\n", "wörter\n".encode()), (b"\x00\r\n", b"\x00\r\n"), ("", b"")]
)
@pytest.mark.parametrize("old", [None, b"old and longer than the new"])
def test_the_whole_content_is_there_and_nothing_else(
    tmp_path: Path, content: str | bytes, found: bytes, old: bytes | None
) -> None:
    path = tmp_path / "file.json"
    if old is not None:
        path.write_bytes(old)
    write_whole(path, content)
    assert path.read_bytes() == found
    assert names(tmp_path) == ["file.json"]


def test_a_path_may_be_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_whole("here.txt", "x")
    assert (tmp_path / "here.txt").read_text() == "x"


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), SystemExit(1)]
)
def test_whatever_stops_the_writing_leaves_what_was_there(
    tmp_path: Path, error: BaseException, old: bytes | None
) -> None:
    path = tmp_path / "file.json"
    if old is not None:
        path.write_bytes(old)

    def write() -> None:
        with writing_whole(path) as temporary:
            temporary.write_bytes(b"ha")
            (temporary.parent / "file.json.data").write_bytes(b"lf")
            raise error

    with pytest.raises(type(error)):
        write()
    assert names(tmp_path) == ([] if old is None else ["file.json"])
    assert old is None or path.read_bytes() == old


def test_nothing_is_seen_before_all_is_written(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(b"old")
    with writing_whole(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        assert temporary.name == path.name  # some writers look at the ending, others write the name into the file
        assert temporary.stat().st_dev == path.stat().st_dev  # a move to another file system would be a copy
    assert path.read_bytes() == b"new"


def test_what_is_written_beside_it_is_there_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order, replace = [], Path.replace

    def follow(self: Path, target: Path) -> Path:
        order.append(Path(target).name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", follow)
    with writing_whole(tmp_path / "b.onnx") as temporary:
        temporary.write_bytes(b"refers to b.onnx.data")
        (temporary.parent / "b.onnx.data").write_bytes(b"weights")
        (temporary.parent / "a.txt").write_bytes(b"more")
    assert order == ["a.txt", "b.onnx.data", "b.onnx"]
    assert names(tmp_path) == sorted(order)


def test_a_writer_that_wrote_nothing_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(b"old")
    with pytest.raises(FileNotFoundError), writing_whole(path):
        pass
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file.json"]


@unix
def test_the_file_has_the_permissions_of_any_new_file(tmp_path: Path, umask: int) -> None:
    write_whole(tmp_path / "file.json", "new")
    assert stat.S_IMODE((tmp_path / "file.json").stat().st_mode) == 0o666 & ~umask


@unix
def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is a named pipe, no file"):
        write_whole(tmp_path / "pipe", "x")
    assert (tmp_path / "pipe").is_fifo()
    assert names(tmp_path) == ["pipe"]


def test_a_folder_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError), writing_whole(tmp_path / "folder"):
        pytest.fail("the work has begun")
    assert names(tmp_path) == ["folder"]


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "none" / "file.json", "x")
    assert not names(tmp_path)


@unix
@pytest.mark.parametrize("letter", ["a", "ä", "\N{GRINNING FACE}"])
def test_a_name_may_be_as_long_as_the_file_system_lets_it(tmp_path: Path, letter: str) -> None:
    name = letter * (os.pathconf(tmp_path, "PC_NAME_MAX") // len(letter.encode()))
    write_whole(tmp_path / name, "x")
    assert names(tmp_path) == [name]


@unix
def test_a_disk_that_is_full_leaves_nothing(tmp_path: Path) -> None:
    """The real thing: a process that may write no more than a few bytes into a file."""
    (tmp_path / "file.json").write_text("old")
    code = """if True:
        import resource, signal, sys
        from mrecg_onnx.converters.files import write_whole
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_whole(sys.argv[1], "x" * 100000)
        except OSError as error:
            sys.exit(f"caught {error.strerror}")
    """
    path = tmp_path / "file.json"
    ended = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert ended.stderr.strip() == f"caught {os.strerror(errno.EFBIG)}"
    assert names(tmp_path) == ["file.json"]
    assert (tmp_path / "file.json").read_text() == "old"


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_what_was_made_elsewhere_is_moved_whole(tmp_path: Path, folder: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made, path = tmp_path / "made", tmp_path / "there" / "moved"
    path.parent.mkdir()
    if folder:
        (made / "inner").mkdir(parents=True)
        (made / "inner" / "a").write_text("x")
    else:
        made.write_text("x")
    rename, seen = Path.rename, []

    def watched(self: Path, target: Path) -> Path:
        seen.append((names(path.parent) == [self.parent.name], target))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watched)
    move_whole(made, path)
    assert seen == [(True, path)]  # until then under another name
    assert (path / "inner" / "a" if folder else path).read_text() == "x"
    assert names(path.parent) == ["moved"]
    assert not made.exists()


def test_what_cannot_be_moved_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, there = tmp_path / "made", tmp_path / "there"
    made.write_text("x")
    there.mkdir()

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mrecg_onnx.converters.files._to_disk", full)
    with pytest.raises(OSError, match="No space left"):
        move_whole(made, there / "moved")
    assert names(there) == []
