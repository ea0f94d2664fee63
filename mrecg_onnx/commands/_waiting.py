"""How torch's idle threads wait for the next piece of work."""

from __future__ import annotations

import os

__all__ = ["wait_briefly"]

#: Turns of the loop in which a thread of GNU's OpenMP, which torch computes with on Linux, looks for work before it sleeps.
#: Its own 300,000 hold a core for as long as others let it: beside other programs a run of small operators takes many times
#: as long. 3,000 outlast the gaps between operators (benchmarks/results/shared_cores.md).
SPINS = 3_000


def wait_briefly() -> None:
    """Let idle threads give their core up soon, unless the environment says how they wait; to be called before torch loads."""
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
