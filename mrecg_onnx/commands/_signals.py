"""Signals that ask a command to end: the first lets it tidy up and say what is there, the second ends it at once.

Only the command line listens to them: whoever calls this package from Python has handlers of its own.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["Stopped", "stoppable"]

#: Those that ask, where the system has them; what else ends a process leaves no time for words.
ASKING = ("SIGINT", "SIGTERM", "SIGHUP")
#: Seconds until a signal is sent again that came where Python lets no exception out.
AGAIN_S = 0.05


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end; ``number`` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise :class:`Stopped` at the first signal and leave the next to the system.

    Signals that are ignored (nohup, a job in the background) or that somebody else handles stay so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    default = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in (getattr(signal, name, None) for name in ASKING) if number}
    ours = [number for number, handler in before.items() if handler in default]
    hook = sys.unraisablehook

    def stop(number: int, _: FrameType | None) -> None:
        for one in ours:
            signal.signal(one, signal.SIG_DFL)
        raise Stopped(number)

    def listen() -> None:
        for number in ours:
            signal.signal(number, stop)

    def unraisable(what: Any) -> None:
        # Inside a destructor or a callback of a library: Python prints the exception and goes on as if nothing had come.
        if not isinstance(what.exc_value, Stopped):
            hook(what)
            return
        listen()
        threading.Timer(AGAIN_S, os.kill, (os.getpid(), what.exc_value.number)).start()

    sys.unraisablehook = unraisable
    listen()
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":  # a process of torchrun ends with it
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number in ours:
            signal.signal(number, before[number])
