"""No node test of the onnx package falls to a worse class than the one it is committed in."""

from __future__ import annotations

import pytest
from helpers.node_tests import CLASSES, LISTS, node_tests, read_list, run_bridge

from mrecg_onnx.converters.registry import _TORCHVISION_FAILURE

# Of 1,884 tests of onnx 1.23. What they may not fall below, whatever the lists say.
LEAST_NATIVE = 1400
LEAST_CONVERTED = 1370


@pytest.fixture(scope="module")
def outcomes():
    return {name: run_bridge(case) for name, case in node_tests().items()}


@pytest.fixture(scope="module")
def committed():
    return {name: kind for kind in CLASSES for name in read_list(kind)}


def spared():
    """Tests that go another way where torchvision works: the lists are made without."""
    if not _TORCHVISION_FAILURE:
        return {name for kind in CLASSES for name, reason in read_list(kind).items() if "torchvision" in reason}
    return set()


def test_no_test_drops_a_class(outcomes, committed):
    known = [name for name in outcomes.keys() - spared() if name in committed]
    fallen = [
        f"{name}: {committed[name]} before, now {outcomes[name].kind} ({outcomes[name].reason})"
        for name in known
        if CLASSES.index(outcomes[name].kind) > CLASSES.index(committed[name])
    ]
    assert known
    assert not fallen, "\n".join(fallen)


def test_the_lists_name_every_gain(outcomes, committed):
    gained = [
        f"{name}: {outcomes[name].kind}, listed as {committed[name]}"
        for name in outcomes.keys() - spared()
        if name in committed and CLASSES.index(outcomes[name].kind) < CLASSES.index(committed[name])
    ]
    assert not gained, "run tests/converters/conformance/regenerate.py and commit the lists:\n" + "\n".join(gained)


def test_counts_hold(outcomes):
    passed = read_list("onnxruntime")
    converted = [name for name in passed if name in outcomes and outcomes[name].kind != "refused"]
    assert sum(outcome.kind == "native" for outcome in outcomes.values()) >= LEAST_NATIVE
    assert len(converted) >= LEAST_CONVERTED


def test_the_readmes_have_the_counts_of_the_lists():
    passed = read_list("onnxruntime").keys()
    text = (LISTS / "README.md").read_text(encoding="utf-8")
    for kind in CLASSES:
        names = read_list(kind).keys()
        assert f"| `{kind}.txt` | {len(names):,} | {len(names & passed):,} |" in text
    assert f"{len(passed):,} that ONNX Runtime" in text
    native, fallback, refused = (len(read_list(kind)) for kind in CLASSES)
    overview = " ".join((LISTS.parents[2] / "README.md").read_text(encoding="utf-8").split())
    assert f"{native:,} run in torch, {fallback:,} through ONNX Runtime and {refused:,} not at all" in overview


def test_every_refusal_has_a_reason():
    refused = read_list("refused")
    assert refused
    assert all(refused.values())
