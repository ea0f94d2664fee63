"""Array files that are hostile, or only large or rare: read by row, or refused in one line; nothing in them is run."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from helpers.hostile import Arguments, Case, Hostile, float_model, rows
from numpy.lib import format as npy

WRITTEN = "model_nearest_w4a4.*"
SHAPE = 3, 16, 16


def numbers(count: int = 8, dtype: str = "<f4") -> np.ndarray:
    return np.random.default_rng(2).normal(size=(count, *SHAPE)).astype(dtype)


def file_of(array: np.ndarray, **more: bool) -> bytes:
    written = io.BytesIO()
    np.save(written, array, **more)
    return written.getvalue()


def declared(shape: str, dtype: str = "<f4", more: bytes = b"", version: int = 1) -> bytes:
    """An .npy file whose header says so."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return (
        npy.MAGIC_PREFIX
        + bytes((version, 0))
        + struct.pack("<H" if version == 1 else "<I", len(header))
        + header
        + more
    )


def archive(method: int = zipfile.ZIP_DEFLATED, **members: bytes) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", method) as into:
        for name, content in members.items():
            into.writestr(f"{name}.npy", content)
    return written.getvalue()


def bomb(megabytes: int, order: str = "C") -> bytes:
    """Zeros: a thousandth of that in the file."""
    count = megabytes * 2**20 // (4 * 3 * 16 * 16)
    header = io.BytesIO()
    npy.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": order == "F", "shape": (count, *SHAPE)})
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as into, into.open("x.npy", "w") as member:
        member.write(header.getvalue())
        left = count * 4 * 3 * 16 * 16
        while left:
            left -= member.write(bytes(min(left, 2**24)))
    return written.getvalue()


class Code:
    """Unpickled, it writes a file."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, ("unpickled",)


def made(name: str, content: Callable[[], bytes], *more: str, sparse: int = 0) -> Callable[[Path], Arguments]:
    def make(folder: Path) -> Arguments:
        (folder / "model.onnx").write_bytes(float_model())
        (folder / name).write_bytes(content())
        if sparse:
            os.truncate(folder / name, sparse)
        return "quantize", "model.onnx", "--calib", name, "--method", "nearest", "--threads", "1", *more

    return make


def bad(title: str, content: Callable[[], bytes], *says: str, name: str = "x.npy", **more: object) -> Case:
    return Case(title, made(name, content), says=(name, *says), **{"cpu_s": 3, "megabytes": 80, **more})  # type: ignore[arg-type]


def good(title: str, content: Callable[[], bytes], name: str = "x.npy", **more: object) -> Case:
    return Case(title, made(name, content), code=0, lines=("",), writes=(WRITTEN,), **more)  # type: ignore[arg-type]


def big_file(order: str) -> Callable[[Path], Arguments]:
    """1 GB of zeros that take no room on the disk."""
    count = 2**30 // (4 * 3 * 16 * 16)
    header = io.BytesIO()
    npy.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": order == "F", "shape": (count, *SHAPE)})
    size = len(header.getvalue()) + count * 4 * 3 * 16 * 16
    return made("x.npy", header.getvalue, "--samples", "64", sparse=size)


READ = [
    good("big-endian numbers", lambda: file_of(numbers(dtype=">f4"))),
    good("Fortran order", lambda: file_of(np.asfortranarray(numbers()))),
    good("half precision", lambda: file_of(numbers(dtype="<f2"))),
    good("an archive with other things in it", lambda: archive(x=file_of(numbers()), y=file_of(np.arange(8))), "x.npz"),
    good("an archive stored as it is", lambda: archive(zipfile.ZIP_STORED, x=file_of(numbers())), "x.npz"),
    good("a header of version 2", lambda: declared("(8, 3, 16, 16)", more=numbers().tobytes(), version=2)),
    good("an array behind which something lies", lambda: file_of(numbers()) + b"more"),
    good("an archive by its content, an array by its name", lambda: archive(x=file_of(numbers()))),
    Case(
        "a file of a gigabyte", big_file("C"), code=0, lines=("",), writes=(WRITTEN,), megabytes=250,
    ),
    Case("an archive of 300 KB that inflates to 300 MB", made("x.npz", lambda: bomb(300), "--samples", "64"), code=0, lines=("",),
         writes=(WRITTEN,), megabytes=250, cpu_s=12),
]  # fmt: skip
REFUSED = [
    bad("nothing", lambda: b"", "magic string"),
    bad("text", lambda: b"hello, world", "magic string"),
    bad("an archive of nothing", archive, "no array for input", name="x.npz"),
    bad("an archive cut short", lambda: archive(x=file_of(numbers()))[:3000], name="x.npz"),
    bad("an archive with a wrong checksum", lambda: archive(zipfile.ZIP_STORED, x=file_of(numbers())).replace(
        numbers().tobytes()[:8], bytes(8), 1), "Bad CRC", name="x.npz"),
    bad("shorter than its header says", lambda: file_of(numbers())[:-1], "its header says"),
    bad("a shape of 196 TB", lambda: declared("(2**36, 3, 16, 16)"), "cannot read"),
    bad("a shape of 200 TB in numbers", lambda: declared(f"({2**36}, 3, 16, 16)"), "its header says"),
    bad("a shape beyond 64 bits", lambda: declared(f"({2**80}, 3, 16, 16)"), "its header says"),
    bad("a shape below zero", lambda: declared("(-1, 3, 16, 16)", more=bytes(3072)), "its header says the shape"),
    bad("a shape of code", lambda: declared("(__import__('os').mkdir('unpickled'), 3)"), "cannot read"),
    bad("a header of 4 GB", lambda: npy.MAGIC_PREFIX + bytes((2, 0)) + struct.pack("<I", 2**32 - 1), "its header takes"),
    bad("a header of 4 GB in an archive", lambda: archive(
        x=npy.MAGIC_PREFIX + bytes((2, 0)) + struct.pack("<I", 2**32 - 1) + bytes(2**25)),
        "its header takes", name="x.npz"),
    bad("Python objects that write a file", lambda: file_of(np.array([Code()] * 3, object), allow_pickle=True), "never read"),
    bad("a pickle", lambda: pickle.dumps(Code()), "magic string"),
    bad("objects in an archive", lambda: archive(x=file_of(np.array([Code()], object), allow_pickle=True)), "never read",
        name="x.npz"),
    bad("fields with names", lambda: file_of(np.zeros((4, *SHAPE), [("a", "<f4")])), "wants float32"),
    bad("text in an array", lambda: file_of(np.zeros((4, *SHAPE), "<U3")), "wants float32"),
    bad("complex numbers", lambda: file_of(numbers(dtype="<c8")), "wants float32"),
    bad("integers", lambda: file_of(numbers(dtype="<i4")), "wants float32"),
    bad("no rows", lambda: file_of(numbers(0)), "is empty"),
    bad("rows of nothing", lambda: file_of(np.zeros((4, 3, 0, 16), np.float32)), "does not fit"),
    bad("one number", lambda: file_of(np.float32(1)), "does not fit"),
    Case("one row", made("x.npy", lambda: file_of(numbers(1))), says=("at least two images",)),
    bad("NaN", lambda: file_of(np.full((4, *SHAPE), np.nan, np.float32)), "NaN, Inf"),
    bad("Inf in the last row", lambda: file_of(np.concatenate([numbers(3), np.full((1, *SHAPE), np.inf, np.float32)])), "row 3"),
    bad("beyond float32", lambda: file_of(np.full((4, *SHAPE), 1e300)), "too large for float32"),
    bad("an archive that inflates without bound (lzma)", lambda: archive(zipfile.ZIP_LZMA, x=file_of(numbers())), "save it again",
        name="x.npz"),
    bad("names of control characters in an archive", lambda: archive(**{"\x1b[31m\n": file_of(numbers()), "b": b""}),
        "no array for input", name="x.npz"),
    bad("10,000 arrays in an archive", lambda: archive(**{f"a{i}": b"" for i in range(10_000)}), "and 9992 more", name="x.npz"),
]  # fmt: skip


def labels(content: Callable[[], bytes], *says: str) -> tuple[Callable[[Path], Arguments], tuple[str, ...]]:
    def make(folder: Path) -> Arguments:
        for name in ("model.onnx", "other.onnx"):
            (folder / name).write_bytes(float_model())
        (folder / "x.npy").write_bytes(file_of(numbers()))
        (folder / "y.npy").write_bytes(content())
        return "validate", "model.onnx", "other.onnx", "--data", "x.npy", "--labels", "y.npy"

    return make, says


LABELS = [
    Case(f"labels: {title}", make, says=says, megabytes=80)
    for title, (make, says) in {
        "objects": labels(
            lambda: file_of(np.array([Code()] * 8, object), allow_pickle=True), "cannot read labels", "never read"
        ),
        "a shape of 200 TB": labels(lambda: declared(f"({2**44},)", "<i8"), "cannot read labels", "its header says"),
        "numbers below zero": labels(lambda: file_of(np.full(8, -1)), "is no class"),
        "of more rows": labels(lambda: file_of(np.zeros(9, np.int64)), "9 for 8 rows"),
        "beyond 64 bits": labels(lambda: file_of(np.full(8, 2**64 - 1, np.uint64)), "no class index"),
    }.items()
]


@rows(READ + REFUSED + LABELS)
def test_arrays(case: Case, hostile: Hostile) -> None:
    hostile(case)
