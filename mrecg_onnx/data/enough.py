"""How many calibration samples there have to be, and should be."""

from __future__ import annotations

from mrecg_onnx.converters.errors import DataError, SettingsError

__all__ = ["FIT_ALONE", "few", "require_enough"]

#: Fewer are warned of: ranges hold what these show, and roundings that are learned fit them.
ENOUGH = 32
#: How the sentence about them begins.
FIT_ALONE = "ranges and rounding fit"


def require_enough(count: int, read: int, samples: int | None, processes: int) -> None:
    """Refuse one sample, and fewer than two for each process.

    Args:
        count: how many there are.
        read: how many of those looked at could be read.
        samples: how many were asked for at most.
        processes: how many share them.

    Raises:
        SettingsError: one was asked for.
        DataError: there are too few.
    """
    if read < 2:
        if samples == 1:
            raise SettingsError("calibration needs at least two images: --samples 1 takes one (in Python: samples=)")
        raise DataError("calibration needs at least two images, and here is one: give more")
    if count < 2 * processes:
        raise DataError(f"{count} calibration images are too few for {processes} processes: each needs two")


def few(count: int, what: str) -> tuple[str, ...]:
    """A sentence where ``count`` calibration samples, which are ``what``, are few."""
    if count >= ENOUGH:
        return ()
    return (f"{FIT_ALONE} {count} calibration {what} alone: give 256 to 1,024, or the file may do badly on others",)
