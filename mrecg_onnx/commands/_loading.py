"""Torch and what is built on it, imported as fast as they can be, and not in silence."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mrecg_onnx.commands._console import is_quiet, say

__all__ = ["loading"]

#: What takes the time; where it is there, nobody waits.
_HEAVY = "torch"
_WORDS = "starting ..."


@contextmanager
def loading() -> Iterator[None]:
    """Say that the command starts; on a terminal the line goes away when it has.

    The collector of garbage waits while modules are imported, and passes by what they made from then on: nothing of it is
    garbage, and looking through it again and again takes a quarter of the import (.6 of 2.8 s).
    """
    waits = not gc.isenabled()
    gc.disable()
    try:
        with _announced():
            yield
    finally:
        gc.freeze()
        if not waits:
            gc.enable()


@contextmanager
def _announced() -> Iterator[None]:
    """Without rich, whose import would come first."""
    if _HEAVY in sys.modules or is_quiet():
        yield
    elif not sys.stderr.isatty():
        say(_WORDS)
        yield
    else:
        sys.stderr.write(_WORDS)
        sys.stderr.flush()
        try:
            yield
        finally:
            sys.stderr.write("\r" + " " * len(_WORDS) + "\r")
            sys.stderr.flush()
