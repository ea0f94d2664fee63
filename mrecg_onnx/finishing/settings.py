"""How the whole network is learned after its units, as a user chooses it."""

from __future__ import annotations

from dataclasses import dataclass

from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.learning import LearnerSettings

__all__ = ["FinishSettings"]


@dataclass(frozen=True, kw_only=True)
class FinishSettings(LearnerSettings):
    """The finishing stage.

    Attributes:
        finish: steps in which the whole network is learned together after its units, towards the float network's answers; 0 for
            none, None for two fifths of ``iters``, at most 400, where the method learns units and most weights have 2 or 3 bits.
    """

    finish: int | None = 0

    def check(self) -> None:
        """Steps are counted."""
        super().check()
        if self.finish is not None and self.finish < 0:
            raise SettingsError(f"finish is {self.finish}: it must be 0 or more")
