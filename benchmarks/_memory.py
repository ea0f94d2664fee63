"""Peak memory of this process; light to import, so that a parent's own size never reaches its children's figures."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

__all__ = ["anonymous", "caching", "held", "in_use", "peak", "reset_peak"]

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _field(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


def held() -> int:
    """Bytes that the process holds now (resident)."""
    return _field("VmRSS")


def anonymous() -> int:
    """Those of them that are in no file: pages of libraries come and go as the system likes."""
    return _field("RssAnon")


class _Allocated(ctypes.Structure):
    """glibc's ``struct mallinfo2``, over all its arenas."""

    _fields_ = (
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks")),
        *((name, ctypes.c_size_t) for name in ("uordblks", "fordblks", "keepcost")),
    )


def in_use() -> int:
    """Bytes that were allocated and not freed, whatever pages they lie on (glibc from 2.33 on).

    Tensors, sessions and large Python objects are in it; small Python objects have an allocator of their own, whose blocks
    ``sys.getallocatedblocks`` counts.
    """
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = _Allocated
    found = ask()
    return int(found.uordblks + found.hblkhd)


def peak() -> int:
    """The most bytes that the process held since it began, or since :func:`reset_peak`.

    Linux's VmHWM counts from exec on; ru_maxrss, used elsewhere, may count what a parent held before it.
    """
    if _STATUS.exists():
        return _field("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak() -> None:
    """Give back what is freed but still held, and count :func:`peak` from here on (Linux with glibc)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR.write_text("5")


@contextmanager
def caching(room: int | None) -> Iterator[None]:
    """Runs inside have ``room`` bytes for cached activations, 0 for none, as where memory is short; None for what is free."""
    from mrecg_onnx.machine import Run  # noqa: PLC0415 - light to import

    if room is None:
        yield
        return
    with mock.patch.object(Run, "cache_budget", return_value=room):
        yield
