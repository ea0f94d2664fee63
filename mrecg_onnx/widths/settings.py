"""Budgets of bits, as a user gives them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from mrecg_onnx.converters.choices import AtLeast, Between, OneOf
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.learning import LearningSettings
from mrecg_onnx.planning import WIDE_BITS, BitSettings
from mrecg_onnx.quantizers import RangeSettings

__all__ = ["BudgetSettings"]


@dataclass(frozen=True, kw_only=True)
class BudgetSettings(LearningSettings, RangeSettings, BitSettings):
    """Budgets; what a width costs depends on how ranges are found and rounding is learned.

    Attributes:
        allocation: "milp": integer programming gives every layer its own widths, ``wbits`` and ``abits`` on average; "none".
        size_budget: bytes of the file with packed codes within which every layer's weights get widths of their own, None without.
        avg_wbits: the same, bits a weight on average, the first and the last layer not counted.
        max_drop: the same, by as few bits as lose at most so many points of top-1 on ONNX Runtime (without labels: percent of
            predictions that change).
    """

    allocation: Annotated[str, OneOf("none", "milp")] = "none"
    size_budget: Annotated[int | None, AtLeast(1)] = None
    avg_wbits: Annotated[float | None, Between(2.0, 8.0)] = None
    max_drop: Annotated[float | None, Between(0.0, 100.0)] = None

    @property
    def mixed(self) -> bool:
        """Layers get weight widths of their own."""
        budgets = (self.size_budget, self.avg_wbits, self.max_drop)
        return self.allocation == "milp" or any(value is not None for value in budgets)

    def check(self) -> None:
        """One budget at most, and averages that integer programming can reach."""
        super().check()
        given = [n for n in ("size_budget", "avg_wbits", "max_drop") if getattr(self, n) is not None]
        if len(given) > 1:
            options = " and ".join(f"--{name.replace('_', '-')}" for name in given)
            raise SettingsError(f"{options} are budgets of the same bits: give one of them")
        if self.allocation == "milp" and self.abits == WIDE_BITS:
            raise SettingsError(
                f"--allocate milp chooses among 2 to 8 bits, which cannot be {WIDE_BITS} on average: use a budget"
            )
