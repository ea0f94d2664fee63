"""How far two executions of a network lie apart, output by output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrecg_onnx.measures import Heads, OutputSums, agreement, prediction_output

__all__ = [
    "MIN_SQNR_DB", "MOST_LOST_DB", "Arrays", "OutputCheck", "check_outputs", "equal_predictions", "exact_images", "same_rows",
    "worst_output",
]  # fmt: skip

Arrays = Mapping[str, npt.NDArray[np.generic]]
#: Below this SQNR of an output, or where it lies so much further from the float model, every node has to answer for itself.
MIN_SQNR_DB, MOST_LOST_DB = 40.0, 3.0
#: Relative difference up to which an image counts as equal, and the SQNR from which that is so of an output.
EXACT, EXACT_DB = 1e-4, 80.0


@dataclass(frozen=True)
class OutputCheck:
    """One output, in dB (SQNR, docs/method.md 19); those without floats have a share instead.

    Attributes:
        name: the output.
        simulation_db: simulation against the graph as written.
        sqnr_db: the written file at its runtime's default level against the graph as written.
        written_db: graph as written against the float network.
        default_db: default level against the float network.
        equal: share of equal values, default level against the graph as written; None where values are floats.
    """

    name: str
    simulation_db: float
    sqnr_db: float
    written_db: float
    default_db: float
    equal: float | None = None

    @property
    def falls(self) -> bool:
        """At the default level it is not what is written."""
        if self.equal is not None or self.sqnr_db >= EXACT_DB:
            return False
        return not self.sqnr_db >= MIN_SQNR_DB or not self.written_db - self.default_db <= MOST_LOST_DB


def same_rows(few: Arrays, all_rows: Arrays) -> bool:
    """The first rows are those of ``few``, but for the last digits."""
    floats = {n: x for n, x in few.items() if x.dtype.kind == "f"}
    return all(OutputSums.of(all_rows[n][: len(x)], x).sqnr_db >= MIN_SQNR_DB for n, x in floats.items())


def equal_predictions(floating: Arrays, one: Arrays, other: Arrays, heads: Heads) -> float | None:
    """Share of equal predictions, None where no output holds class scores."""
    rows = min(len(x[next(iter(floating))]) for x in (one, other))
    name = prediction_output(floating, heads)
    return agreement(*(x[name][:rows].reshape(rows, -1) for x in (one, other))) if name is not None else None


def check_outputs(floating: Arrays, simulated: Arrays, plain: Arrays, default: Arrays) -> list[OutputCheck]:
    """Every output, the worst first."""
    found = []
    for name, wanted in floating.items():
        rows = len(default[name])
        made = OutputSums.of(plain[name][:rows], default[name])
        pairs = ((simulated[name], plain[name]), (wanted, plain[name]), (wanted[:rows], default[name]))
        simulation, written, there = (OutputSums.of(r, o).sqnr_db for r, o in pairs)
        equal = None if made.floating else made.equal
        found.append(OutputCheck(name, simulation, made.sqnr_db, written, there, equal))
    return sorted(found, key=lambda c: (c.equal is not None, min(c.sqnr_db, c.simulation_db)))


def worst_output(checks: Sequence[OutputCheck], figure: str) -> tuple[str, float]:
    """Name and dB of the output that is least."""
    worst = min((c for c in checks if c.equal is None), key=lambda c: float(getattr(c, figure)))
    return worst.name, float(getattr(worst, figure))


def exact_images(reference: Arrays, other: Arrays) -> float:
    """Share of images whose outputs all agree to :data:`EXACT`, relative."""
    equal = np.ones(len(next(iter(reference.values()))), bool)
    for name, value in reference.items():
        flat, there = (x[name].reshape(len(value), -1).astype(np.float64) for x in (reference, other))
        difference = there - flat
        equal = equal & (np.linalg.norm(difference, axis=1) <= EXACT * np.linalg.norm(flat, axis=1))
    return float(np.mean(equal))
