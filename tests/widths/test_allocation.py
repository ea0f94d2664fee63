"""Bit allocation: the cheapest widths within the average, exactly."""

from __future__ import annotations

import itertools
import os
import re

import numpy as np
import pytest
from helpers.learned import codes, distance, results
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import milp

from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.planning import BitRule
from mrecg_onnx.settings import Settings
from mrecg_onnx.widths.allocation import WIDTHS, choose_widths


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    return results(tmp_path_factory.mktemp("allocation"))


def averages(result) -> tuple[float, float]:
    """Mean width of weights (by number) and of the tensors that layers read, without the first and the last layer."""
    inner = [layer for layer in result.plan.layers if not (layer.first or layer.last)]
    read = {q.name: q.bits for q in result.plan.activations for x in inner if x.input in q.members}
    return sum(x.wbits * x.params for x in inner) / sum(x.params for x in inner), sum(read.values()) / len(read)


# --- the choice --------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_choice_is_the_best_there_is(data):
    count = data.draw(st.integers(1, 3))
    offers = data.draw(st.lists(st.sets(st.sampled_from(WIDTHS), min_size=1), min_size=count, max_size=count))
    sizes = data.draw(st.lists(st.integers(1, 400).map(lambda k: 9 * k), min_size=count, max_size=count))
    spent = [{w: w * size for w in sorted(widths)} for widths, size in zip(offers, sizes, strict=True)]
    costs = [{w: data.draw(st.floats(0, 5)) for w in row} for row in spent]
    least, most = (sum(f(row.values()) for row in spent) for f in (min, max))
    total = data.draw(st.integers(least, most))

    def cost(widths) -> float:
        return sum(row[w] for row, w in zip(costs, widths, strict=True))

    chosen = choose_widths(costs, spent, total)
    allowed = [
        pick for pick in itertools.product(*spent) if sum(row[w] for row, w in zip(spent, pick, strict=True)) <= total
    ]
    assert tuple(chosen) in allowed
    assert cost(chosen) <= min(map(cost, allowed)) + 1e-5


@pytest.mark.parametrize("spare", [0, 1, 999])
def test_budget_is_kept_to_the_last_bit(spare):
    sizes, falling = [1_000_003, 999_983, 7], [{w: 2.0**-w for w in WIDTHS}] * 3
    spent = [{w: w * size for w in WIDTHS} for size in sizes]
    total = 4 * sum(sizes) + spare
    chosen = choose_widths(falling, spent, total)
    assert sum(s * w for s, w in zip(sizes, chosen, strict=True)) <= total
    assert choose_widths(falling, spent, 2 * sum(sizes)) == [2, 2, 2]
    with pytest.raises(ValueError, match="less than the smallest possible"):
        choose_widths(falling, spent, 2 * sum(sizes) - 1)


def test_the_solver_prints_nothing(capfd, monkeypatch):
    def noisy(*args, **kwargs):
        os.write(1, b"tmpSolver.run();")
        return milp(*args, **kwargs)

    monkeypatch.setattr("mrecg_onnx.widths.allocation.milp", noisy)
    assert choose_widths([{2: 1.0, 4: 0.0}], [{2: 2, 4: 4}], 3) == [2]
    print("results")
    assert capfd.readouterr().out == "results\n"


def test_nothing_to_choose():
    assert choose_widths([], [], 0) == []


# --- whole runs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wbits", "abits"), [(4, 4), (2, 3)])
def test_averages_are_kept_and_measured_errors_add_up_to_less(quantized, tmp_path, wbits, abits):
    uniform = quantized("nearest", wbits=wbits, abits=abits)
    chosen = results(tmp_path)("nearest", wbits=wbits, abits=abits, allocation="milp")
    weights, tensors = averages(chosen)
    assert weights <= wbits
    assert tensors <= abits
    assert averages(uniform) == (wbits, abits)
    assert chosen.verification.warnings == ()
    ends = [layer for layer in chosen.plan.layers if layer.first or layer.last]
    assert {(x.wbits, x.abits) for x in ends} == {(8, 8)}
    tables = (chosen.allocation.costs.weights, chosen.allocation.costs.tensors)

    def cost(result) -> float:
        bits = {x.name: x.wbits for x in result.plan.layers} | {q.name: q.bits for q in result.plan.activations}
        return sum(row[bits[name]] for table in tables for name, row in table.items())

    assert cost(chosen) <= cost(uniform)
    for table in tables:
        assert all(row[8] < row[2] for row in table.values())


def test_rules_are_in_the_settings_of_the_result(quantized):
    result = quantized("nearest", wbits=3, allocation="milp")
    for layer in result.plan.layers:
        rules = [r for r in result.settings.bits if re.search(r.pattern, layer.name)]
        assert len(rules) == (0 if layer.first or layer.last else 1)
        assert all((r.wbits, r.abits) == (layer.wbits, layer.abits) for r in rules)
        made = codes(result)[layer.name]
        channels = made.reshape(len(made), -1)
        assert int(np.ptp(channels, axis=1).max()) < 2**layer.wbits


def test_learning_goes_on_from_the_widths(quantized):
    nearest = quantized("nearest", wbits=2, allocation="milp")
    learned = quantized("brecq", wbits=2, allocation="milp", iters=40)
    assert [x.wbits for x in learned.plan.layers] == [x.wbits for x in nearest.plan.layers]
    assert distance(learned.model) > distance(nearest.model)


def test_fixed_widths_stay_and_count(quantized):
    result = quantized("nearest", wbits=4, allocation="milp", bits=(BitRule("a1", 8, None),))
    assert result.plan.layer("a1").wbits == 8
    assert averages(result)[0] <= 4


def test_float_activations_leave_weights_to_choose(quantized):
    result = quantized("nearest", wbits=3, abits=32, allocation="milp")
    assert result.plan.activations == ()
    inner = [x for x in result.plan.layers if not (x.first or x.last)]
    assert sum(x.wbits * x.params for x in inner) <= 3 * sum(x.params for x in inner)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (
            BitRule("a1|a2", 8, None),
            "--wbits 2 is too little for the weights: the smallest possible is .* bits on average",
        ),
        (BitRule("a1|a2", None, 8), "--abits 3 is too little for the activations: the smallest possible is .* bits on"),
    ],
)
def test_too_much_fixed_is_said(quantized, rule, text):
    with pytest.raises(SettingsError, match=text):
        quantized("nearest", wbits=2, abits=3, allocation="milp", bits=(rule,))


def test_unknown_choice_is_refused():
    with pytest.raises(SettingsError, match="allocation is 'other'"):
        Settings(allocation="other")
