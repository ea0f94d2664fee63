"""torch's folder for compiled kernels, which it makes before it compiles any."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys

__all__ = ["without_cache_folder"]

_MODULE = "torch._dynamo"
_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def without_cache_folder() -> None:
    """Import what torch's optimizers import, and leave no empty folder behind in the temporary one.

    Importing ``torch._dynamo`` makes ``torchinductor_USER`` there and names it in the environment. What compiles makes it
    again; a folder that somebody else has named, or that holds kernels, stays.
    """
    if _MODULE in sys.modules or _VARIABLE in os.environ:
        return
    importlib.import_module(_MODULE)
    made = os.environ.pop(_VARIABLE, None)
    if made is not None:
        with contextlib.suppress(OSError):  # it holds something, or another run has removed it
            os.rmdir(made)  # noqa: PTH106 - what is not empty must stay
