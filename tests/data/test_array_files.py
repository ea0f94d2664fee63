"""Rows of arrays, however they are stored: read when they are wanted, without the rest, and refused by what headers say."""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers.images import RAW, one_line, spec
from numpy.lib import format as npy

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.data import array_files, open_calibration, open_validation
from mrecg_onnx.data.array_files import ArrayFile

ORDERS = [[0], [6], [2, 3, 4], [5, 0, 3, 3, 1], list(range(7))]


def random(*shape: int, dtype: str = "<f4") -> np.ndarray:
    return (np.random.default_rng(3).random(shape) * 100).astype(dtype)


def saved(path: Path, array: np.ndarray, *, compressed: bool = True) -> Path:
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        (np.savez_compressed if compressed else np.savez)(path, x=array)
    return path


def opened(path: Path) -> array_files.RowReader:
    file = ArrayFile(path)
    return file.array("x") if file.names else file.array()


@pytest.mark.parametrize("held", [0, 1 << 20])
@pytest.mark.parametrize("kind", ["npy", "npz", "stored npz"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(7,), (7, 1), (7, 3, 4, 5), (7, 1, 6)])
def test_rows_are_those_of_the_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], order: str, kind: str, held: int
) -> None:
    monkeypatch.setattr(array_files, "HELD", held)
    monkeypatch.setattr(array_files, "_BLOCK", 100)  # blocks end inside rows and columns
    for dtype in ("<f4", ">f4", ">i2", "u1"):
        array = np.asarray(random(*shape, dtype=dtype), order=order)  # type: ignore[call-overload]
        path = saved(tmp_path / f"a.{kind[-3:]}", array, compressed="stored" not in kind)
        reader = opened(path)
        assert reader.shape == shape
        for rows in [*ORDERS, *ORDERS[::-1]]:  # on and back again
            np.testing.assert_array_equal(reader.read(np.array(rows)), array[rows])


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_no_more_is_held_than_the_rows_wanted(
    tmp_path: Path, name: str, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of 80 MB that are 80 KB in the archive."""
    monkeypatch.setattr(array_files, "HELD", 1 << 20)
    monkeypatch.setattr(array_files, "_BLOCK", 1 << 20)
    path = saved(tmp_path / name, np.asarray(np.zeros((500, 40_000), np.float32), order=order))  # type: ignore[call-overload]
    reader = opened(path)
    tracemalloc.start()
    reader.read(np.arange(100, 110))
    reader.read(np.arange(20, 30))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_small_member_is_inflated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_calibration(saved(tmp_path / "a.npz", random(8, 3, 4, 4)), [spec(None, 3, 4, 4)], RAW)
    first = data.load()["x"]
    monkeypatch.setattr(array_files.RowReader, "_read", None)
    np.testing.assert_array_equal(data.load()["x"], first)


def test_a_quarter_of_the_memory_holds_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = random(8, 3, 4, 4)
    data = open_calibration(saved(tmp_path / "a.npz", array), [spec(None, 3, 4, 4)], RAW)
    read = array_files.RowReader._read
    whole: list[int] = []
    monkeypatch.setattr(array_files.RowReader, "_read", lambda self, rows: whole.append(len(rows)) or read(self, rows))
    monkeypatch.setattr("mrecg_onnx.data.arrays.HELD", 0)
    few = open_calibration(tmp_path / "a.npz", [spec(None, 3, 4, 4)], RAW, samples=1)
    few.decode_within(1 << 30)
    few.batch([0])
    assert whole == [1]  # not worth it
    for most, times in ((4 * array.nbytes, [8]), (4 * array.nbytes - 1, [1, 1])):
        whole.clear()
        data.decode_within(most)
        for _ in range(2):
            data.batch([2])
        assert whole == times


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_what_rows_take_is_known_before_any_is_read(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_calibration(saved(tmp_path / name, random(5, 3, 40, 40)), [spec(None, 3, None, None)], RAW)
    monkeypatch.setattr(array_files.RowReader, "_read", None)
    row = 3 * 40 * 40 * 4
    needed, where = data.decode_within(1 << 30)
    assert needed == row
    assert where == f"{tmp_path / name} with {row:,} bytes a row"


def declared(shape: str, dtype: str = "<f4", *, version: tuple[int, int] = (1, 0), more: bytes = b"") -> bytes:
    """An .npy file whose header says ``shape`` and ``dtype``, with nothing but ``more`` behind."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    length = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    return npy.MAGIC_PREFIX + bytes(version) + length + header + more


class Trap:
    """Unpickled, it says so."""

    opened = False

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return setattr, (Trap, "opened", True)


BAD = {
    "far more than is there": (
        declared("(1000000000000, 3, 4, 4)"),
        "its header says 192,000,000,000,000 bytes, and 0 are there",
    ),
    "beyond 64 bits": (declared(f"({2**70}, 3, 4, 4)"), "bytes, and 0 are there"),
    "less than nothing": (declared("(-3, 3, 4, 4)"), r"its header says the shape \(-3, 3, 4, 4\)"),
    "a row less": (declared("(2, 3, 4, 4)", more=bytes(300)), "its header says 384 bytes, and 300 are there"),
    "objects": (
        declared("(2, 3, 4, 4)", "|O", more=pickle.dumps(Trap())),
        "it holds Python objects, which are never read",
    ),
    "a pickle": (pickle.dumps(Trap()), "magic string"),
    "a header of 4 GB": (
        npy.MAGIC_PREFIX + bytes((2, 0)) + struct.pack("<I", 2**32 - 1),
        "its header takes 4,294,967,295 bytes",
    ),
    "a header cut short": (declared("(2, 3, 4, 4)")[:20], "EOF"),
    "no length": (npy.MAGIC_PREFIX + bytes((1, 0)), "unpack"),
    "a later version": (
        npy.MAGIC_PREFIX + bytes((3, 0)) + bytes(80),
        "version 3.0 of the format is for fields with names",
    ),
    "code": (declared("(__import__('os').getpid(), 3)"), ""),
    "nothing": (b"", "magic string"),
}


@pytest.mark.parametrize("inside", [False, True], ids=["npy", "npz"])
@pytest.mark.parametrize("name", BAD)
def test_headers_are_not_trusted(tmp_path: Path, name: str, inside: bool) -> None:
    content, says = BAD[name]
    path = tmp_path / ("a.npz" if inside else "a.npy")
    if inside:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", content)
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=f"cannot read .*a.*{says}") as error:
        open_calibration(path, [spec(None, 3, 4, 4)], RAW).load()
    one_line(error)
    assert not Trap.opened


def test_fields_with_names_are_no_numbers(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npy", np.zeros((2, 3, 4, 4), [("a", "<f4"), ("b", "<i4")]))
    with pytest.raises(DataError, match="wants float32"):
        open_calibration(path, [spec(None, 3, 4, 4)], RAW)


@pytest.mark.parametrize("held", [0, 1 << 20])
def test_an_archive_that_ends_in_a_member_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    """The directory at its end says what is not there."""
    monkeypatch.setattr(array_files, "HELD", held)
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("x.npy", declared("(9, 3, 4, 4)", more=bytes(range(192)) * 9))
    content = bytearray(whole.getvalue())
    at = content.index(bytes(range(192)) * 2)
    for path, changed in (
        ("a.npz", bytes([*content[:at], 7, *content[at + 1 :]])),
        ("b.npz", bytes(content[:at] + content[at + 900 :])),
    ):
        (tmp_path / path).write_bytes(changed)
        with pytest.raises(DataError, match=f"{path}"):
            open_calibration(tmp_path / path, [spec(None, 3, 4, 4)], RAW).load()


def test_an_archive_of_what_is_no_array_names_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for number in range(50):
            archive.writestr(f"{number}.txt", "hello")
    with pytest.raises(DataError, match=r"no array for input 'x' in .*: it holds 0\.txt, .* and 42 more") as error:
        open_calibration(tmp_path / "a.npz", [spec(None, 3, 4, 4)], RAW)
    one_line(error)


def test_labels_beside_arrays_are_not_read_where_they_cannot_be_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "a.npz", x=random(4, 3, 4, 4), y=np.zeros((4, 10_000), np.int64))
    monkeypatch.setattr(array_files.RowReader, "_read", None)
    with pytest.raises(DataError, match=r"labels 'y' in .* are int64 \(4, 10000\): one whole number a row"):
        open_validation(tmp_path / "a.npz", [spec(None, 3, 4, 4)], RAW)


def test_members_that_inflate_without_bound_are_refused(tmp_path: Path) -> None:
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
            archive.writestr("x.npy", declared("(2, 3, 4, 4)", more=bytes(384)))
        with pytest.raises(DataError, match="compressed in a way that NumPy does not write: save it again"):
            open_calibration(tmp_path / "a.npz", [spec(None, 3, 4, 4)], RAW)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no list of open files here")
def test_files_are_closed_with_their_data(tmp_path: Path) -> None:
    before = len([*Path("/proc/self/fd").iterdir()])
    for number in range(20):
        saved(tmp_path / f"{number:02}.npz", random(2, 3, 4, 4))
    data = open_calibration(tmp_path, [spec(None, 3, 4, 4)], RAW)
    assert data.load()["x"].shape == (40, 3, 4, 4)
    assert len([*Path("/proc/self/fd").iterdir()]) <= before + 1
