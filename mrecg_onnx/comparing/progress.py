"""Where a comparison is, as its caller is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from mrecg_onnx.comparing.result import Cell
    from mrecg_onnx.progress import Progress

__all__ = ["ComparisonProgress", "Tell"]


@dataclass(frozen=True)
class ComparisonProgress:
    """Where a comparison is.

    Attributes:
        name: the cell at work, "latency" at the end.
        number: which one it is, counted from 1.
        total: how many there are.
        inner: where the cell's quantization is; None in its other stages.
        stage: "quantize", "validate", "latency".
        finished: the cell that has just been finished, or was by an earlier call.
    """

    name: str
    number: int
    total: int
    stage: str
    inner: Progress | None = None
    finished: Cell | None = None

    def __str__(self) -> str:
        """One line, so that ``progress=print`` says where a comparison is."""
        said = f"cell {self.number}/{self.total} {self.name}: "
        if self.finished is not None:
            return f"{said}{self.finished.error or 'finished'}"
        return said + (str(self.inner) if self.inner is not None else self.stage)


class Tell:
    """The report of one cell."""

    def __init__(self, report: Callable[[ComparisonProgress], None] | None, name: str, number: int, total: int) -> None:
        self.report, self.name, self.number, self.total = report, name, number, total

    def __call__(self, finished: Cell | None = None, stage: str = "quantize", inner: Progress | None = None) -> None:
        """Tell it."""
        if self.report is not None:
            self.report(ComparisonProgress(self.name, self.number, self.total, stage, inner, finished))
