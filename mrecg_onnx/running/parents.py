"""A process ends with the one that it works for, also where that is killed. Stands alone beside ``worker.py``."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

__all__ = ["end_with"]

#: Seconds between two looks at a parent.
LOOKS = 0.5


def end_with(parent: int) -> None:
    """Have this process killed when ``parent`` is gone, in whose name it was started.

    Linux does it, also to a process that is inside a library, where the parent itself started it. A thread does it where a
    program between them did, and on other systems.
    """
    if os.name != "posix":
        return
    if sys.platform == "linux" and os.getppid() == parent:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    threading.Thread(target=_watch, args=(parent, os.getppid()), daemon=True).start()


def _watch(parent: int, starter: int) -> None:
    while os.getppid() == starter and _exists(parent):
        time.sleep(LOOKS)
    os._exit(1)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's by now, or so it seems
        pass
    return True
