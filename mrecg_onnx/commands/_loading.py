"""Torch and what is built on it, imported as fast as they can be."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["loading"]


@contextmanager
def loading() -> Iterator[None]:
    """The collector of garbage waits while modules are imported, and passes by what they made from then on.

    Nothing of it is garbage, and looking through it again and again takes a quarter of the import (.6 of 2.8 s).
    """
    waits = not gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if not waits:
            gc.enable()
