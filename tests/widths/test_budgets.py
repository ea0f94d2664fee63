"""Mixed precision within a budget: an average, a packed size, a largest drop."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.learned import results, small
from helpers.stages import feeds, simulated, tensors
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.planning import BitRule
from mrecg_onnx.quantization import quantize
from mrecg_onnx.settings import Settings
from mrecg_onnx.targets import targets
from mrecg_onnx.validating import validate
from mrecg_onnx.widths.costs import WIDTHS, measure_costs
from mrecg_onnx.widths.drop_search import AVERAGES, Trial, search
from mrecg_onnx.widths.packed_size import PackedSize, stored_bits
from mrecg_onnx.writing.containers import contained

NEAREST = {"method": "nearest", "equalize": "off", "abits": 4}


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    return results(tmp_path_factory.mktemp("budgets"))


def inner(result):
    return [x for x in result.plan.layers if not (x.first or x.last)]


def packed(result) -> int:
    return contained(result.model, "packed").model.ByteSize()


def _smallest(error) -> int:
    """Bytes that the message says are possible."""
    return round(float(re.search(r"smallest possible is ([\d.]+) MB", str(error.value))[1]) * 1e6)


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
    result = quantized("nearest", avg_wbits=3.5, allocation="milp")
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
    result = quantized("nearest", avg_wbits=4.0, allocation="milp", **narrow)
    assert {x.wbits for x in inner(result)} <= {3, 4, 5}
    assert {x.abits for x in inner(result)} <= {3, 4, 5}


def test_impossible_size_says_the_smallest_possible_and_that_is_possible(quantized):
    with pytest.raises(SettingsError, match=r"--size-budget 0\.0001 MB is too little .* smallest possible is") as error:
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


def test_three_bits_are_stored_as_four():
    assert [stored_bits(w) for w in range(2, 9)] == [2, 4, 4, 8, 8, 8, 8]


@pytest.mark.parametrize("wbits", [2, 4, 8])
def test_size_is_known_before_the_file_is_made(quantized, wbits):
    result = quantized("nearest", wbits=wbits, residual="shared")
    stage = simulated(small(), wbits=wbits, residual="shared", **NEAREST)
    metadata = {p.key: p.value for p in result.model.metadata_props}
    planned = PackedSize.planned(stage.graph, stage.network, stage.plan, metadata)
    widths = {x.name: x.wbits for x in stage.plan.quantized_layers}
    # Offsets that all channels share are stored once, which only the codes decide: at most that much less.
    assert 0 <= planned.total(widths) - packed(result) <= 100 * len(widths)


# --- costs ---------------------------------------------------------------------------------------------------------------


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
    costs = [
        measure_costs(
            stage.network, stage.plan, data, Settings(method=m), layers={"a1": WIDTHS}, tensors={},
            report=lambda *done: told.append(done),
        )
        for m in ("nearest", "brecq")
    ]  # fmt: skip
    assert costs[0] == costs[1]
    assert told == [(1, 1), (1, 1)]


# --- the largest drop ----------------------------------------------------------------------------------------------------


@effort(max_examples=40, deadline=None)
@given(least=st.sampled_from(AVERAGES), bound=st.floats(0.1, 20))
def test_search_finds_the_fewest_bits_in_few_trials(least, bound):
    def trial(average):
        return Trial(average, bound if average >= least else bound + 1, labelled=True, images=1)

    trials = search(bound, trial)
    assert min(t.average for t in trials if t.drop <= bound) == least
    assert len(trials) <= 5
    assert len({t.average for t in trials}) == len(trials)


def test_bound_out_of_reach_says_the_smallest_drop():
    with pytest.raises(
        SettingsError, match=r"--max-drop 1: the smallest drop reached is 3\.00 points of top-1.* 8 bits"
    ):
        search(1.0, lambda a: Trial(a, 11.0 - a, labelled=True, images=1))


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrays")
    np.savez(folder / "calib.npz", **feeds(small(), 48))
    np.savez(folder / "data.npz", **feeds(small(), 64, seed=7))
    return folder


def test_drop_is_within_the_bound_on_the_runtime(arrays):
    settings = Settings(**NEAREST, max_drop=30.0)
    result = quantize(small(), arrays / "calib.npz", settings, data=arrays / "data.npz", output=arrays / "out.onnx")
    chosen = min((t for t in result.trials if t.drop <= 30.0), key=lambda t: t.average)
    again = validate(small(), arrays / "out.onnx", arrays / "data.npz", repeats=0)
    assert 100 * (1 - again.agreement) == pytest.approx(chosen.drop)
    assert not chosen.labelled
    assert all(t.drop > 30.0 for t in result.trials if t.average < chosen.average)
    found = sum(x.wbits * x.params for x in inner(result)) / sum(x.params for x in inner(result))
    assert found <= chosen.average
    assert result.output == arrays / "out.onnx"


def test_drop_needs_images_to_measure_it_on(arrays):
    with pytest.raises(SettingsError, match="--max-drop needs --data"):
        quantize(small(), arrays / "calib.npz", Settings(**NEAREST, max_drop=1.0))


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
