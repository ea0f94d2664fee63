"""The plan: kept as JSON, and its units after merging."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from helpers.architectures import PATTERNS, residual
from helpers.chains import blocks
from helpers.stages import planned

from mrecg_onnx.planning.plan import Plan, UnitPlan


@pytest.mark.parametrize("pattern", PATTERNS)
def test_plan_survives_a_trip_through_json(pattern):
    _, plan = planned(PATTERNS[pattern](), scheme="modcap")
    plan = replace(plan, losses=tuple(float(i) / 3 for i in range(len(plan.units))))
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    bare = replace(plan, losses=None)
    assert Plan.from_json(json.loads(json.dumps(bare.to_json()))) == bare


def test_joined_unit_has_the_borders_of_its_parts():
    _, plan = planned(blocks(3))
    joined = replace(plan, merges=((0,), (1, 2, 3), (4,))).merged_units()
    assert [u.name for u in joined] == ["stem", "a0 .. b0 ... a2 .. b2", "fc"]
    assert joined[1].layers == ("a0", "b0", "a1", "b1", "a2", "b2")
    assert joined[1].inputs == ("stem_relu_out",)
    assert joined[1].outputs == ("flatten_out",)
    assert joined[1].capacity == sum(u.capacity for u in plan.units[1:4])
    assert [u.members for u in joined] == [1, 3, 1]


def test_joined_unit_still_hands_on_what_others_read():
    # u0 makes a, u1 reads it and makes b, u2 reads a and b.
    parts = (
        UnitPlan("u0", ("n0",), ("l0",), ("x",), ("a",), 1),
        UnitPlan("u1", ("n1",), ("l1",), ("a",), ("b",), 1),
        UnitPlan("u2", ("n2",), ("l2",), ("a", "b"), ("y",), 1),
    )
    plan = Plan((), (), parts, ((0, 1), (2,)))
    first = plan.merged_units()[0]
    assert (first.inputs, first.outputs) == (("x",), ("a", "b"))
    everything = replace(plan, merges=((0, 1, 2),)).merged_units()[0]
    assert (everything.inputs, everything.outputs) == (("x",), ("y",))


def test_layer_is_found_by_name():
    _, plan = planned(residual())
    assert plan.layer("conv3").shape == (16, 8, 3, 3)
    with pytest.raises(KeyError):
        plan.layer("conv9")
