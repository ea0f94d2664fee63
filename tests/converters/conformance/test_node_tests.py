"""No node test of the onnx package falls to a worse class than the one it is committed in.

Plain pytest leaves out the tests that say an operator again as its function's body: their operators have tests of their own.
"""

from __future__ import annotations

from functools import cache

import pytest
from helpers.node_tests import CLASSES, LISTS, Outcome, node_tests, read_list, run_bridge
from helpers.versions import older_runtime

from mrecg_onnx.converters.registry import _TORCHVISION_FAILURE

# Of 1,884 tests of onnx 1.23. What they may not fall below, whatever the lists say.
LEAST_NATIVE = 1400
LEAST_CONVERTED = 1370

#: Tests that only newer versions of ONNX Runtime pass, by the first that does, and with them what runs through it.
LATER = {
    "1.27": {
        *(f"test_cast_e8m0_{one}" for one in ("FLOAT8E8M0_to_FLOAT", "FLOAT8E8M0_to_FLOAT16")),
        *(f"test_cast_e8m0_{one}_to_FLOAT8E8M0" for one in ("FLOAT", "FLOAT16")),
        "test_strnormalizer_export_monday_casesensintive_nochangecase",
    }
}


@cache
def run(*, expanded: bool) -> dict[str, Outcome]:
    """Outcomes of the tests whose operator is said as its function's body, or of the others."""
    return {name: run_bridge(case) for name, case in node_tests().items() if name.endswith("_expanded") == expanded}


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["operators", "expanded"])
def outcomes(request):
    return run(expanded=request.param)


@pytest.fixture(scope="module")
def committed():
    return {name: kind for kind in CLASSES for name in read_list(kind)}


def spared():
    """Tests that go another way where torchvision works, which the lists are made without, or ONNX Runtime is older."""
    found = {name for version, names in LATER.items() if older_runtime(version) for name in names}
    if not _TORCHVISION_FAILURE:
        found |= {name for kind in CLASSES for name, reason in read_list(kind).items() if "torchvision" in reason}
    return found


@pytest.mark.slow
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


@pytest.mark.slow
def test_counts_hold():
    outcomes = run(expanded=False) | run(expanded=True)
    passed = read_list("onnxruntime")
    converted = [name for name in passed if name in outcomes and outcomes[name].kind != "refused"]
    assert sum(outcome.kind == "native" for outcome in outcomes.values()) >= LEAST_NATIVE
    assert len(converted) >= LEAST_CONVERTED


def test_the_lists_hold_the_counts():
    """With which those that :func:`test_no_test_drops_a_class` goes through hold them."""
    refused = read_list("refused")
    assert len(read_list("native")) >= LEAST_NATIVE
    assert len([name for name in read_list("onnxruntime") if name not in refused]) >= LEAST_CONVERTED


def test_the_pages_have_the_counts_of_the_lists():
    passed = read_list("onnxruntime").keys()
    text = (LISTS / "README.md").read_text(encoding="utf-8")
    for kind in CLASSES:
        names = read_list(kind).keys()
        assert f"| `{kind}.txt` | {len(names):,} | {len(names & passed):,} |" in text
    assert f"{len(passed):,} that ONNX Runtime" in text
    native, fallback, refused = (len(read_list(kind)) for kind in CLASSES)
    overview = " ".join((LISTS.parents[2] / "docs" / "models.md").read_text(encoding="utf-8").split())
    assert f"{native:,} run in torch, {fallback:,} through ONNX Runtime and {refused:,} not at all" in overview


def test_every_refusal_has_a_reason():
    refused = read_list("refused")
    assert refused
    assert all(refused.values())
