"""Why two executions differ: harmless rounding, a node at fault, or a network that does not bear its widths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from torch import Tensor

from mrecg_onnx.checking.outputs import MIN_SQNR_DB, MOST_LOST_DB, Arrays
from mrecg_onnx.checking.tracing import Run, Trace, bisect
from mrecg_onnx.network import Network, Simulation

__all__ = ["Shortfall", "Traced"]

#: Energy of a node's own differences over that of rounding up to which they are no fault: 0.4 dB more noise.
TOLERATED = 0.1
#: Nodes at fault that are named.
NAMED = 3


@dataclass(frozen=True)
class Traced:
    """Every quantizer of two executions that differ, fed the same codes (:mod:`mrecg_onnx.checking.tracing`).

    Attributes:
        where: which two.
        codes: how many were compared.
        moved: how many differ.
        on_edge: those of them that lie on the edge between two steps and differ by one.
        most: largest difference, in steps.
        sqnr_db: the worst output's SQNR, fed the same codes.
    """

    where: str
    codes: int
    moved: int
    on_edge: int
    most: float
    sqnr_db: float

    @classmethod
    def of(cls, where: str, trace: Trace) -> Traced:
        """The sums of a trace."""
        found = trace.departures.values()
        moved = sum(d.moved for d in found)
        worst = min((x.sqnr_db for x in trace.outputs.values() if x.floating), default=np.inf)
        most = max((d.most for d in found), default=0.0)
        return cls(where, sum(d.values for d in found), moved, moved - sum(d.far for d in found), most, worst)


@dataclass(frozen=True)
class Shortfall:
    """A figure that fell short, between two executions that should be one.

    Attributes:
        where: which two.
        simulation: what was learned.
        worst: the output that is furthest off, and its SQNR.
        lost_db: how much further from the float model it is than the other one.
    """

    where: str
    simulation: Simulation
    worst: tuple[str, float]
    lost_db: float = 0.0

    def judge(self, trace: Trace, notes: list[str], warnings: list[str]) -> Traced:
        """Put into ``notes`` why that is harmless, or into ``warnings`` which node is at fault and what to do."""
        found = Traced.of(self.where, trace)
        name, figure = self.worst
        text = f"{self.where}: output '{name}' has {figure:.1f} dB"
        faults = [d for d in trace.departures.values() if d.rounding > TOLERATED or d.most > 1.5]
        faults.sort(key=lambda d: d.rounding, reverse=True)
        wrong = [n for n, sums in trace.outputs.items() if sums.floating and not sums.sqnr_db >= MIN_SQNR_DB]
        alone = f"{found.moved} of {found.codes} codes differ, {found.on_edge} of them on the edge between two steps"
        if not faults and not wrong and not self.lost_db > MOST_LOST_DB:
            notes.append(
                f"{text}, and every node is right: fed the same codes {alone}, none by more than one step; later layers only "
                "round differently"
            )
        elif faults:
            said = [
                f"{self._node(d.tensor)} differs by up to {d.most:.0f} steps in {d.share:.1%} of its values"
                for d in faults[:NAMED]
            ]
            more = f", and {len(faults) - NAMED} more" if faults[NAMED:] else ""
            first = self._node_name(faults[0].tensor)
            warnings.append(
                f"{text}, expected {MIN_SQNR_DB:.0f}: fed the same codes {'; '.join(said)}{more}; keep that in float with "
                f"--exclude '{first}', or run the file with graph optimizations off"
            )
        elif wrong:
            warnings.append(
                f"{text}, expected {MIN_SQNR_DB:.0f}: {self._node(wrong[0])} in front of output '{wrong[0]}' gives "
                f"{trace.outputs[wrong[0]].sqnr_db:.1f} dB when it is fed the same codes; keep it in float with "
                f"--exclude '{self._node_name(wrong[0])}', or run the file with graph optimizations off"
            )
        else:
            warnings.append(
                f"{text} and lies {self.lost_db:.1f} dB further from the float model, though no node is at fault ({alone}): "
                "the network does not bear these widths; give it more bits with --protect or --bits"
            )
        return found

    def by_type(self, written: onnx.ModelProto, plain: Arrays, data: Mapping[str, Tensor], run: Run) -> str:
        """What is at fault where looking at codes changes what runs: one operator type kept in float at a time."""
        name, figure = self.worst
        rows = len(next(iter(data.values())))
        wanted = {n: x[:rows] for n, x in plain.items()}
        found = bisect(written, wanted, {n: x.numpy() for n, x in data.items()}, run, MOST_LOST_DB)
        text = f"{self.where}: output '{name}' has {figure:.1f} dB, expected {MIN_SQNR_DB:.0f}"
        if found is None:
            return f"{text}, with any operator type kept in float: run the file with graph optimizations off"
        op, nodes = found
        more = f" and {len(nodes) - NAMED} more" if nodes[NAMED:] else ""
        return (
            f"{text}: the integer kernel of {op} is at fault (node {', '.join(nodes[:NAMED])}{more}); keep it in float with "
            f"--exclude '{nodes[0]}', or run the file with graph optimizations off"
        )

    def _step_of(self, tensor: str) -> tuple[str, str] | None:
        """Name and op of the node that makes ``tensor``, in front of the Relu or Clip that became bounds of its codes."""
        network: Network = self.simulation.network
        makers = {made: step for step in network.steps for made in step.outputs}
        step = makers.get(tensor)
        while step is not None and step.op in {"Clip", "Min", "Relu"} and step.arguments[0] in makers:
            step = makers[step.arguments[0] or ""]
        return (step.node, step.op) if step is not None else None

    def _node(self, tensor: str) -> str:
        found = self._step_of(tensor)
        return f"node '{found[0]}' ({found[1]})" if found is not None else f"input '{tensor}'"

    def _node_name(self, tensor: str) -> str:
        found = self._step_of(tensor)
        return found[0] if found is not None else tensor
