"""Prepared images in a file without a name, so that those read in several passes are decoded once."""

from __future__ import annotations

import logging
import tempfile
import threading
import weakref
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from mrecg_onnx.converters.errors import first_line

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["KeptPixels"]

logger = logging.getLogger(__name__)

#: Bytes of the file at most; what comes later is decoded again.
MOST = 2 << 30


class KeptPixels:
    """Pixels of the model's size by path, on disk (TMPDIR): they cost no memory, and go away with the process however it ends."""

    def __init__(self) -> None:
        self._file: BinaryIO | None = None
        self._places: dict[Path, tuple[int, tuple[int, ...]]] = {}
        self._end, self._most = 0, MOST
        self._lock = threading.Lock()

    def get(self, path: Path) -> NDArray[np.uint8] | None:
        """What was kept of ``path``; None without."""
        with self._lock:
            if path not in self._places or self._file is None:
                return None
            start, shape = self._places[path]
            self._file.seek(start)
            found = np.frombuffer(self._file.read(int(np.prod(shape))), np.uint8)
        return found.reshape(shape)

    def put(self, path: Path, pixels: NDArray[np.uint8]) -> None:
        """Keep the pixels of ``path`` where there is room."""
        with self._lock:
            if path in self._places or self._end + pixels.size > self._most:
                return
            try:
                if self._file is None:
                    self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - open as long as this object
                    weakref.finalize(self, self._file.close)
                self._file.seek(self._end)
                written = self._file.write(np.ascontiguousarray(pixels).data)
            except OSError as error:  # a full disk: images are decoded again, which is slower and no less right
                logger.info("prepared images are not kept: %s", error.strerror or first_line(error))
                self._most = 0
                return
            if written == pixels.size:
                self._places[path] = self._end, pixels.shape
                self._end += pixels.size
