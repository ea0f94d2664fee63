"""What libraries in C write on their own account is kept off the process's streams."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["silent"]


@contextmanager
def silent(descriptor: int) -> Iterator[None]:
    """Nothing reaches stdout (1) or stderr (2) while the context lasts, from C code either; errors are raised all the same."""

    def flush() -> None:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        # C keeps a buffer of its own; where it cannot be reached (Windows) its lines may come out after all.
        with suppress(AttributeError, OSError, TypeError):
            ctypes.CDLL(None).fflush(None)

    flush()
    kept, sink = os.dup(descriptor), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, descriptor)
        yield
        flush()
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)
        os.close(sink)
