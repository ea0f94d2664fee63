"""Python's collector of garbage, held back where much is made and little of it is garbage."""

from __future__ import annotations

import gc
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["collecting_seldom"]

# Objects between two collections; Python's own is 700, or 2,000. At 200 bytes each a collection comes every 40 MB.
_THRESHOLD = 200_000


class _Host:
    """The threshold of the host program, and how many runs hold it up: those of several threads end in any order."""

    lock = threading.Lock()
    runs = 0
    threshold = (0, 0, 0)


@contextmanager
def collecting_seldom() -> Iterator[None]:
    """Let the collector look for cycles 300 times less often, and then as the host program had it.

    A graph of 10,000 nodes is a million objects that stay; looking through them again and again takes a third of the time that it
    takes to convert them. What is in no cycle, as tensors are, is freed at once all the same. Where the host has turned the
    collector off, or has it look less often than that, nothing changes.
    """
    with _Host.lock:
        if _Host.runs == 0:
            _Host.threshold = gc.get_threshold()
            if 0 < _Host.threshold[0] < _THRESHOLD:
                gc.set_threshold(_THRESHOLD, *_Host.threshold[1:])
        _Host.runs += 1
    try:
        yield
    finally:
        with _Host.lock:
            _Host.runs -= 1
            if _Host.runs == 0:
                gc.set_threshold(*_Host.threshold)
