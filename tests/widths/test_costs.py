"""What layers cost: learned rounding is measured where there are images to learn from."""

from __future__ import annotations

from helpers.learned import small
from helpers.stages import simulated, tensors

from mrecg_onnx.progress import Clock
from mrecg_onnx.settings import Settings
from mrecg_onnx.widths.costs import WIDTHS, measure_costs

NEAREST = {"method": "nearest", "equalize": "off", "abits": 4}


def test_learned_rounding_takes_away_what_nearest_overstates():
    data = tensors(small(), 96)
    stage = simulated(small(), data, wbits=4, **NEAREST)
    offers = {x.name: (2, 8) for x in stage.plan.layers}
    nearest, learned = (
        measure_costs(stage.network, stage.plan, data, Settings(method=m, seed=1), layers=offers, tensors={}).weights
        for m in ("nearest", "brecq")
    )
    assert all(learned[n][2] <= nearest[n][2] for n in offers)
    assert sum(row[2] for row in learned.values()) < 0.7 * sum(row[2] for row in nearest.values())
    assert {n: row[8] for n, row in learned.items()} == {n: row[8] for n, row in nearest.items()}


def test_few_images_judge_and_do_not_teach():
    data = tensors(small(), 34)
    stage = simulated(small(), data, wbits=4, **NEAREST)
    told = []
    with Clock(told.append).stage("allocate"):
        costs = [
            measure_costs(stage.network, stage.plan, data, Settings(method=m), layers={"a1": WIDTHS}, tensors={})
            for m in ("nearest", "brecq")
        ]
    assert costs[0] == costs[1]
    assert [(p.done, p.total) for p in told if p.of == "layers and tensors"] == [(1, 1), (1, 1)]
