"""Runs of a graph on ONNX Runtime that end: a model may hold a Loop that would go on for years.

The limit is one for the process, like the number of threads: sessions lie deep inside modules that know no settings.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from mrecg_onnx.converters.errors import MrecgError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnxruntime

__all__ = ["LIMIT_S", "TimeLimitError", "limit_runs", "run_limited"]

LIMIT_S = 600.0
"""Seconds that one call of ONNX Runtime may take unless :func:`limit_runs` says otherwise: a batch of images takes far less."""

_limit = LIMIT_S


class TimeLimitError(MrecgError):
    """A run took longer than it may."""


def limit_runs(seconds: float) -> None:
    """Let each later call of ONNX Runtime in this process take ``seconds`` at most."""
    global _limit  # noqa: PLW0603 - one limit for the process
    _limit = seconds


def run_limited(
    session: onnxruntime.InferenceSession, names: Sequence[str] | None, feeds: Mapping[str, Any], what: str
) -> list[Any]:
    """Run ``feeds`` on an open session; one that takes too long is ended between two nodes, or two trips of a Loop.

    Args:
        session: Open.
        names: Outputs wanted, all by default.
        feeds: Inputs by name.
        what: What is run, for the message.

    Raises:
        TimeLimitError: It took longer than the limit.
        Exception: Whatever else ONNX Runtime raises.
    """
    import onnxruntime  # noqa: PLC0415 - settings, and so help pages, know the limit without it

    options, late, limit = onnxruntime.RunOptions(), threading.Event(), _limit
    options.log_severity_level = 4  # nothing on stderr: what fails is raised

    def end() -> None:
        late.set()
        options.terminate = True

    timer = threading.Timer(min(limit, threading.TIMEOUT_MAX), end)
    timer.daemon = True
    timer.start()
    try:
        found: list[Any] = session.run(names, dict(feeds), options)
    except Exception as error:
        if not late.is_set():
            raise
        raise TimeLimitError(
            f"{what} took longer than {limit:g} s on ONNX Runtime and was ended; give it longer with --timeout SECONDS"
        ) from error
    finally:
        timer.cancel()
    return found
