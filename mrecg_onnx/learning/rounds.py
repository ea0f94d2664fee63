"""Iterations of a unit in rounds, each a whole schedule, and when another one is not worth it (docs/method.md 2)."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["rounds", "settled"]

#: A shorter round does not bring its roundings to a decision.
SHORTEST = 125
#: Rounds at most: more, at as many iterations in all, are shorter and each costs a look at the held-out images.
MOST = 8
#: A unit has settled when the last ``PATIENCE`` rounds lowered its least loss by no more than this share.
LEAST_GAIN, PATIENCE = 0.06, 2


def rounds(iters: int) -> tuple[int, ...]:
    """Iterations of each round, as equal as they can be, ``iters`` in all."""
    count = max(1, min(MOST, iters // SHORTEST))
    return tuple(iters * (k + 1) // count - iters * k // count for k in range(count))


def settled(losses: Sequence[float]) -> bool:
    """Whether another round is not worth it, by the held-out loss behind each one so far."""
    if len(losses) <= PATIENCE:
        return False
    return min(losses) > (1.0 - LEAST_GAIN) * min(losses[:-PATIENCE])
