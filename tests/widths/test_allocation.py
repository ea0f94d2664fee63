"""Bit allocation: the cheapest widths within an average or a size, exactly."""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.architectures import gemm
from helpers.learned import codes, distance, results
from helpers.stages import feeds
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import milp

from mrecg_onnx import targets
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.machine import parse_byte_size
from mrecg_onnx.planning import BitRule
from mrecg_onnx.quantization import quantize
from mrecg_onnx.settings import Settings
from mrecg_onnx.widths.allocation import WIDTHS, _apart, choose_widths
from mrecg_onnx.writing.containers import contained


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

    monkeypatch.setattr("scipy.optimize.milp", noisy)
    assert choose_widths([{2: 1.0, 4: 0.0}], [{2: 2, 4: 4}], 3) == [2]
    print("results")
    assert capfd.readouterr().out == "results\n"


def test_nothing_to_choose():
    assert choose_widths([], [], 0) == []


def test_where_no_layer_counts_nothing_is_chosen_and_one_file_is_tried():
    """Two layers: the first and the last, which have widths of their own."""
    model, data = gemm(), feeds(gemm(), 8)
    settings = Settings(method="nearest", equalize="off", avg_wbits=3.0, allocate="milp")
    result = quantize(model, data, settings)
    assert [s["limit"] for s in result.allocation.spent] == ["", ""]
    assert result.allocation.spent[0]["used"] == "nothing to choose, no layer lies between the first and the last"
    tried = quantize(model, data, Settings(method="nearest", equalize="off", max_drop=100.0), data=data).trials
    assert [trial.average for trial in tried] == [8.0]


# --- whole runs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wbits", "abits"), [(4, 4), (2, 3)])
def test_averages_are_kept_and_measured_errors_add_up_to_less(quantized, tmp_path, wbits, abits):
    uniform = quantized("nearest", wbits=wbits, abits=abits)
    chosen = results(tmp_path)("nearest", wbits=wbits, abits=abits, allocate="milp")
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
    result = quantized("nearest", wbits=3, allocate="milp")
    for layer in result.plan.layers:
        rules = [r for r in result.settings.bits if re.search(r.pattern, layer.name)]
        assert len(rules) == (0 if layer.first or layer.last else 1)
        assert all((r.wbits, r.abits) == (layer.wbits, layer.abits) for r in rules)
        made = codes(result)[layer.name]
        channels = made.reshape(len(made), -1)
        assert int(np.ptp(channels, axis=1).max()) < 2**layer.wbits


def test_learning_goes_on_from_the_widths(quantized):
    nearest = quantized("nearest", wbits=2, allocate="milp")
    learned = quantized("brecq", wbits=2, allocate="milp", iters=40)
    assert [x.wbits for x in learned.plan.layers] == [x.wbits for x in nearest.plan.layers]
    assert distance(learned.model) > distance(nearest.model)


def test_fixed_widths_stay_and_count(quantized):
    result = quantized("nearest", wbits=4, allocate="milp", bits=(BitRule("a1", 8, None),))
    assert result.plan.layer("a1").wbits == 8
    assert averages(result)[0] <= 4


def test_float_activations_leave_weights_to_choose(quantized):
    result = quantized("nearest", wbits=3, abits=32, allocate="milp")
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
        quantized("nearest", wbits=2, abits=3, allocate="milp", bits=(rule,))


def test_unknown_choice_is_refused():
    with pytest.raises(SettingsError, match="allocate is 'other'"):
        Settings(allocate="other")


def inner(result):
    return [x for x in result.plan.layers if not (x.first or x.last)]


def packed(result) -> int:
    return contained(result.model, "packed").model.ByteSize()


def _smallest(error) -> int:
    """Bytes that the message says are possible."""
    return parse_byte_size("", re.search(r"smallest possible is ([\d.]+ [kM]B)", str(error.value))[1])


# --- averages and sizes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", [2.0, 2.7, 5.5, 8.0])
def test_average_is_kept_and_used(quantized, average):
    result = quantized("nearest", avg_wbits=average)
    found = sum(x.wbits * x.params for x in inner(result)) / sum(x.params for x in inner(result))
    assert average - 1 < found <= average
    assert {x.wbits for x in result.plan.layers if x.first or x.last} == {8}
    assert {x.abits for x in inner(result)} == {4}  # activations were not asked for
    assert result.allocation.costs.tensors == {}
    assert result.verification.warnings == ()


def test_activations_join_where_asked(quantized):
    result = quantized("nearest", avg_wbits=3.5, allocate="milp")
    read = {q.name: q.bits for q in result.plan.activations if q.name in result.allocation.costs.tensors}
    assert {n: result.allocation.widths[n] for n in read} == read
    assert sum(read.values()) <= 4 * len(read)
    assert {s["kind"] for s in result.allocation.spent} == {"weights", "tensors"}


@pytest.mark.parametrize("share", [0.2, 0.6])
def test_size_budget_counts_the_packed_file(quantized, share):
    low, high = (packed(quantized("nearest", wbits=w, first_last_bits=w)) for w in (2, 8))
    low = min(low, high)
    budget = round(low + 400 + share * (high - low)) + 2000
    result = quantized("nearest", size_budget=budget)
    assert packed(result) <= budget
    assert {x.wbits for x in result.plan.layers} <= {2, 4, 8}


def test_widths_are_those_that_the_target_takes(quantized, tmp_path):
    """OpenVINO has no 2-bit type: such codes would take four bits of the file."""
    smallest = []
    for target in ("ort", "openvino"):
        with pytest.raises(SettingsError, match="too little") as error:
            quantized("nearest", size_budget=10, target=target)
        smallest.append(_smallest(error))
    assert smallest[0] < smallest[1]
    layers = quantized("nearest", size_budget=smallest[1], target="openvino").plan.layers
    assert {x.wbits for x in layers} <= {4, 8}
    rules = (Path(targets.__file__).parent / "rules" / "qnn.toml").read_text()
    for name in ("wbits", "abits"):
        rules = rules.replace(f"{name} = [2, 8]", f"{name} = [3, 5]")
    (tmp_path / "narrow.toml").write_text(rules)
    narrow = {"target": str(tmp_path / "narrow.toml"), "first_last_bits": 5, "wbits": 3}
    result = quantized("nearest", avg_wbits=4.0, allocate="milp", **narrow)
    assert {x.wbits for x in inner(result)} <= {3, 4, 5}
    assert {x.abits for x in inner(result)} <= {3, 4, 5}


def test_impossible_size_says_the_smallest_possible_and_that_is_possible(quantized):
    with pytest.raises(SettingsError, match=r"--size-budget 10 bytes is too little .* smallest possible is") as error:
        quantized("nearest", size_budget=10)
    smallest = _smallest(error)
    result = quantized("nearest", size_budget=smallest)
    assert packed(result) <= smallest


def test_impossible_average_says_the_smallest_possible(quantized):
    with pytest.raises(SettingsError, match=r"--avg-wbits 2 is too little .* is \d\.\d\d bits on average"):
        quantized("nearest", avg_wbits=2.0, bits=(BitRule("a1", 8, None),))


def test_what_bits_fixes_stays(quantized):
    result = quantized("nearest", avg_wbits=5.0, bits=(BitRule("a1", 6, None),))
    assert result.plan.layer("a1").wbits == 6
    assert "a1" not in result.allocation.widths


# --- settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"avg_wbits": 3.0, "size_budget": 10}, "--size-budget and --avg-wbits are budgets of the same bits"),
        ({"avg_wbits": 3.0, "max_drop": 1.0}, "--avg-wbits and --max-drop"),
        ({"avg_wbits": 1.5}, "avg_wbits is 1.5: it must lie between 2 and 8"),
        ({"max_drop": -1.0}, "max_drop is -1.0"),
        ({"size_budget": 0}, "size_budget is 0"),
    ],
)
def test_contradictions_are_refused(given, text):
    with pytest.raises(SettingsError, match=text):
        replace(Settings(), **given)


@pytest.mark.parametrize(
    ("limit", "least", "said"),
    [
        (1000, 5000, ("1.00 kB", "5.00 kB")),
        (1_004_900, 1_005_000, ("1.00 MB", "1.01 MB")),
        (1_004_000, 1_003_900, ("1.00 MB", "1.01 MB")),
        (1_006_000, 1_006_010, ("1.006 MB", "1.007 MB")),
        (10, 11, ("10 bytes", "11 bytes")),
    ],
)
def test_a_limit_and_the_least_that_works_have_three_digits_unless_they_would_look_the_same(limit, least, said):
    assert (_apart(limit, least, up=False), _apart(least, limit, up=True)) == said
