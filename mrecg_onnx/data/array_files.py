"""Rows of the arrays in ``.npy`` and ``.npz`` files, read when they are asked for.

What an array takes is known from its header. Nothing is mapped into memory, as pages of a mapped file count as the process' own,
and nothing is unpickled. A small member of an ``.npz`` is inflated once and held; of a large one, whatever it inflates to, only
the rows wanted are kept while it streams by.
"""

from __future__ import annotations

import math
import struct
import zipfile
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy

from mrecg_onnx.converters.errors import DataError, first_line
from mrecg_onnx.converters.files import require_regular
from mrecg_onnx.converters.text import first_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["HELD", "ArrayFile", "Repeated", "RowReader"]

#: Bytes of a member of an .npz that is inflated once and held, unless its reader is told another number; larger ones are inflated
#: again by every pass over them.
HELD = 64 * 10**6
#: Bytes read at a time, or inflated.
_BLOCK = 4 << 20
#: Bytes of a header at most: a shape and a type fit in a hundred. NumPy looks only when it has read what the file says.
_HEADER = 4096


class RowReader:
    """One array, of which a header was read.

    Attributes:
        shape: of the whole array.
        dtype: of its elements.
        where: what messages call it.
        hold: bytes up to which a member of an archive is read whole, and stays.
    """

    def __init__(self, file: ArrayFile, stream: IO[bytes], size: int, where: str, *, inflates: bool) -> None:
        """Read the header of an array of ``size`` bytes at the start of ``stream``, of ``file``.

        Raises:
            DataError: it is no array of numbers, or shorter than its header says.
        """
        self.where, self._stream, self._file = where, stream, file  # the file is open as long as somebody reads of it
        self.shape, self._fortran, self.dtype = _header(stream, where)
        self._start = stream.tell()
        if self.nbytes > size - self._start:
            raise DataError(
                f"cannot read {where}: its header says {self.nbytes:,} bytes, and {max(0, size - self._start):,} are there"
            )
        self._inflates, self.hold = inflates, HELD
        self._whole: NDArray[Any] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """``rows`` of the array, in any order: ``[len(rows), ...]``.

        Raises:
            DataError: the file ends too early, or is damaged.
        """
        try:
            if self._inflates and self.nbytes <= self.hold:
                if self._whole is None:
                    self._whole = self._read(np.arange(self.shape[0]))
                return self._whole[rows]
            wanted, places = np.unique(rows, return_inverse=True)
            found = self._read(wanted)
            return found if np.array_equal(wanted, rows) else found[places]
        except (DataError, MemoryError):
            raise
        except Exception as error:  # damaged deflate streams each raise their own
            raise DataError(
                f"cannot read {self.where}: {getattr(error, 'strerror', None) or first_line(error)}"
            ) from error

    def _read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Sorted ``rows``, each once."""
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        if self._fortran and len(self.shape) > 1:
            self._go_to(self._start)
            flat = np.empty((math.prod(self.shape[1:]), len(rows)), self.dtype)
            for first, columns in self._columns():
                flat[first : first + len(columns)] = columns[:, rows]
            # Fortran order: the first of the other axes runs fastest behind the rows.
            return np.ascontiguousarray(flat.reshape(*self.shape[:0:-1], len(rows)).T)
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        runs = np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) > 1) + 1) if len(rows) else []
        for run in runs:
            self._go_to(self._start + int(rows[run[0]]) * size)
            self._fill(out[run[0] : run[-1] + 1])
        return out

    def _go_to(self, place: int) -> None:
        """Stand at byte ``place``; a member of an archive is inflated up to there."""
        if not self._inflates:
            self._stream.seek(place)
            return
        if self._stream.tell() > place:
            self._stream.seek(0)
        while self._stream.tell() < place:
            if not self._stream.read(min(_BLOCK, place - self._stream.tell())):
                raise DataError(f"cannot read {self.where}: it ends too early")

    def _columns(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """Columns of all rows in the order of the file, ``[columns, rows]``, and the number of the first one."""
        count, size = self.shape[0], max(1, self.shape[0] * self.dtype.itemsize)
        first, total = 0, math.prod(self.shape[1:])
        while first < total:
            block = np.empty((min(total - first, max(1, _BLOCK // size)), count), self.dtype)
            self._fill(block)
            yield first, block
            first += len(block)

    def _fill(self, out: NDArray[Any]) -> None:
        """Read the next bytes into ``out``."""
        view = out.view(np.uint8).reshape(-1) if out.size else out.reshape(-1)
        done = 0
        while done < out.nbytes:
            part = self._stream.read(min(_BLOCK, out.nbytes - done))
            if not part:
                raise DataError(f"cannot read {self.where}: it ends too early")
            view[done : done + len(part)] = np.frombuffer(part, np.uint8)
            done += len(part)


class Repeated(RowReader):
    """An array of one row, which stands for ``count`` of them."""

    def __init__(self, reader: RowReader, count: int) -> None:
        self.where, self.dtype, self.hold = reader.where, reader.dtype, reader.hold
        self.shape = (count, *reader.shape[1:])
        self._row = reader.read(np.zeros(1, np.int64))

    def read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """As the base class has it."""
        return np.repeat(self._row, len(rows), axis=0)


class ArrayFile:
    """An ``.npy`` file or an ``.npz`` archive, open.

    Attributes:
        names: of the arrays in an archive, in its order; None for a lone array.

    Raises:
        DataError: it cannot be read.
    """

    def __init__(self, path: Path, called: str = "") -> None:
        """Open ``path``; messages call what is in it ``called``, with a space behind."""
        self._path, self._called = path, called
        self._archive: zipfile.ZipFile | None = None
        self.names: list[str] | None = None
        self._members: dict[str, zipfile.ZipInfo] = {}
        try:
            require_regular(path)
            self._file = path.open("rb")
            if self._file.read(2) == b"PK":  # by what it holds, as NumPy does
                self._archive = zipfile.ZipFile(self._file)
                for info in self._archive.infolist():
                    self._members.setdefault(info.filename.removesuffix(".npy"), info)
                self.names = list(self._members)
        except Exception as error:  # zip directories raise nearly anything
            self.close()
            if isinstance(error, MemoryError):
                raise
            raise DataError(
                f"cannot read {called}{path}: {getattr(error, 'strerror', None) or first_line(error)}"
            ) from error

    def close(self) -> None:
        """Let the file go; arrays of it are read no more."""
        if hasattr(self, "_file"):
            self._file.close()

    __del__ = close

    def array(self, name: str | None = None) -> RowReader:
        """The lone array, or the one of an archive that is called ``name``.

        Raises:
            DataError: it is no array of numbers, or damaged.
        """
        if self._archive is None:
            self._file.seek(0)
            return RowReader(self, self._file, self._path.stat().st_size, f"{self._called}{self._path}", inflates=False)
        assert name is not None
        info, where = self._members[name], f"{self._called}'{name}' in {self._path}"
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # Of others zipfile inflates all that it has read at once, whatever that makes.
            raise DataError(f"cannot read {where}: it is compressed in a way that NumPy does not write: save it again")
        try:
            stream = self._archive.open(info)
        except Exception as error:  # encrypted, or compressed by what Python was built without
            raise DataError(f"cannot read {where}: {first_line(error)}") from error
        return RowReader(self, stream, info.file_size, where, inflates=True)

    def listed(self) -> str:
        """The names of the arrays, for messages."""
        return first_of(self.names or [], 8) or "nothing"


def _header(stream: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and type of the array at the start of ``stream``, which then stands at its first element."""
    try:
        shape, fortran, dtype = _read_header(stream)
    except MemoryError:
        raise
    except Exception as error:  # damaged headers each raise their own
        raise DataError(f"cannot read {where}: {getattr(error, 'strerror', None) or first_line(error)}") from error
    if dtype.hasobject:
        raise DataError(f"cannot read {where}: it holds Python objects, which are never read: save an array of numbers")
    if any(size < 0 for size in shape):
        raise DataError(f"cannot read {where}: its header says the shape {shape}")
    return tuple(shape), bool(fortran), dtype


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(stream)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"version {version[0]}.{version[1]} of the format is for fields with names")
    at, kind = stream.tell(), "<H" if version == (1, 0) else "<I"
    (length,) = struct.unpack(kind, stream.read(struct.calcsize(kind)))
    if length > _HEADER:
        raise ValueError(f"its header takes {length:,} bytes, an array's takes a hundred")
    stream.seek(at)
    shape, fortran, dtype = read(stream)
    return shape, fortran, dtype
