"""Rows of one shape, kept in memory up to so many bytes and in a temporary file without a name beyond that."""

from __future__ import annotations

import tempfile
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from mrecg_onnx.converters.errors import DataError, first_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Spool"]


class Spool:
    """Rows as they come.

    Args:
        hold: bytes kept in memory; with more all of them go to a file in TMPDIR, which goes away with the process.
        shape: of a row.
        dtype: of its elements.
    """

    def __init__(self, hold: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=max(1, hold))  # noqa: SIM115 - open as long as this object
        weakref.finalize(self, self._file.close)
        self._shape, self._dtype = shape, dtype
        self._size = int(np.prod(shape)) * dtype.itemsize
        self.count = 0

    def add(self, rows: NDArray[Any]) -> None:
        """Keep ``rows``, ``[n, *shape]``.

        Raises:
            DataError: the disk is full.
        """
        try:
            self._file.seek(self.count * self._size)
            self._file.write(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise DataError(
                f"the temporary folder has no room for the samples ({error.strerror or first_line(error)}): "
                "let TMPDIR name another one, or use fewer"
            ) from error
        self.count += len(rows)

    def read(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[Any]:
        """``rows`` in any order, ``[len(rows), *shape]``."""
        out = np.empty((len(rows), *self._shape), self._dtype)
        flat = out.reshape(len(rows), -1).view(np.uint8).reshape(len(rows), -1) if self._size else out
        for place, row in enumerate(rows):
            self._file.seek(int(row) * self._size)
            flat[place] = np.frombuffer(self._file.read(self._size), np.uint8)
        return out
