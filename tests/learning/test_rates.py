"""Rates of Adam: the papers' at their iterations, larger in shorter runs."""

from __future__ import annotations

from mrecg_onnx.learning.rates import LR_SCALE, PAPER_ITERS, PAPER_LR_ROUNDING, SHORTEST, default_rates


def test_rates_grow_as_iterations_shrink_from_the_papers():
    paper = default_rates(PAPER_ITERS)
    assert (paper.rounding, paper.scale) == (PAPER_LR_ROUNDING, LR_SCALE)
    assert default_rates(10 * PAPER_ITERS) == paper
    found = [default_rates(iters) for iters in (SHORTEST, 500, 2000, PAPER_ITERS)]
    assert all(a.rounding > b.rounding and a.scale > b.scale for a, b in zip(found, found[1:], strict=False))
    assert default_rates(1) == default_rates(SHORTEST)
