"""Errors meant for the person at the keyboard: one line saying what is wrong, where, and what to do.

They live on the ground floor because every floor raises them. The command line turns them into one line on stderr and
an exit code; Python callers catch :class:`MrecgError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mrecg_onnx.converters.text import did_you_mean, with_arguments

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "ConversionError",
    "DataError",
    "ExportError",
    "MetricError",
    "ModelError",
    "MrecgError",
    "RefusedError",
    "SettingsError",
    "WorkerError",
    "first_line",
]


class MrecgError(Exception):
    """Base of all errors this package raises on purpose; ``exit_code`` is what the command line returns.

    Messages name what to give as options; outside the command line the names of the arguments stand behind them.
    """

    exit_code = 1

    def __str__(self) -> str:
        """The message, with the arguments that its options are in Python."""
        return with_arguments(super().__str__())


class SettingsError(MrecgError, ValueError):
    """A setting is out of its range or contradicts another one (a usage error).

    ``choices`` is the end of a message that stays whole however long it is: all words that there are.
    """

    exit_code = 2
    choices = ""

    @classmethod
    def among(cls, said: str, words: Iterable[str], given: object = None) -> SettingsError:
        """``said``, all ``words`` there are to choose among, and the one that ``given`` was most likely meant to be."""
        known = list(words)
        choices = f": choose among {', '.join(known)}{did_you_mean(given, known) if given is not None else ''}"
        error = cls(said + choices)
        error.choices = choices
        return error


class ModelError(MrecgError):
    """The ONNX file cannot be read, is not valid, or holds nothing to quantize."""


class ConversionError(MrecgError):
    """A node cannot be converted to torch, or computes something else there."""


class RefusedError(ConversionError):
    """A node asks for what no inference of it can give (training mode): it is not left to ONNX Runtime either."""


class DataError(MrecgError):
    """Images or arrays cannot be read or do not fit the model's inputs."""


class ExportError(MrecgError):
    """The quantized file could not be written, opened or verified."""


class MetricError(MrecgError):
    """A metric fails, or gives no number; what it raised is the cause."""


class WorkerError(MrecgError):
    """Another process of a job on several devices or machines is gone."""


def first_line(error: BaseException) -> str:
    """Return the first line of what ``error`` says, its type where it says nothing: messages here are one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
