"""Every learned rounding in whole runs: closer than rounding to nearest, the same file again, options named."""

from __future__ import annotations

import pytest
from helpers.learned import activation_scales, codes, distance, results

from mrecg_onnx.commands._unused import unused_options
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.methods import METHODS, method_of
from mrecg_onnx.quantizers.rounding import ANNEALS, ROUNDINGS
from mrecg_onnx.settings import Settings

NAMES = sorted(ROUNDINGS)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    return results(tmp_path_factory.mktemp("roundings"))


# --- the table ---------------------------------------------------------------------------------------------------


def test_settings_and_rows_know_the_same_names():
    assert [Settings(rounding=name).rounding for name in NAMES] == NAMES
    assert {row.rounding for row in METHODS.values()} <= set(ROUNDINGS)
    assert {row.anneal for row in METHODS.values()} <= set(ANNEALS)
    for field in ("rounding", "anneal"):
        with pytest.raises(SettingsError, match=f"{field} is 'other'"):
            Settings(**{field: "other"})


@pytest.mark.parametrize("name", NAMES)
def test_settings_replace_what_the_row_says(name):
    assert method_of(Settings(method="brecq", rounding=name)).rounding == name
    assert method_of(Settings(method="mrecg", rounding=name)).rounding == name
    assert method_of(Settings(method="adaquant")).rounding == "ste"
    assert method_of(Settings(method="adaround", anneal="cosine")).anneal == "cosine"


# --- whole runs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_each_beats_rounding_to_nearest_and_the_file_computes_it(quantized, name):
    result = quantized("brecq", rounding=name)
    assert distance(result.model) > distance(quantized("nearest").model) + 2
    assert result.verification.warnings == ()
    assert result.verification.sqnr_db > 60
    assert any(unit.kept == "learned" for unit in result.units)


@pytest.mark.parametrize("name", ["flexround", "ste"])
def test_same_seed_same_file(quantized, tmp_path, name):
    chosen = {"rounding": name, "iters": 15}
    again = results(tmp_path)("brecq", **chosen)
    assert again.model.SerializeToString() == quantized("brecq", **chosen).model.SerializeToString()


def test_roundings_differ_in_nothing_else(quantized):
    made = [quantized("brecq", rounding=name) for name in NAMES]
    assert len({tuple(u.layers for u in r.units) for r in made}) == 1
    assert len({tuple(sorted(activation_scales(r))) for r in made}) == 1
    first, second = codes(made[0]), codes(made[1])
    assert any((first[name] != second[name]).any() for name in first)


def test_adaround_anneals_as_it_is_told(quantized):
    linear, cosine = (quantized("adaround", anneal=shape) for shape in ("linear", "cosine"))
    nearest = distance(quantized("nearest").model)
    assert all(distance(r.model) > nearest + 2 for r in (linear, cosine))
    assert linear.model.SerializeToString() != cosine.model.SerializeToString()


# --- options -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "given", "named"),
    [
        ({"method": "nearest"}, ["rounding", "anneal", "loss", "allocate"], ["--rounding", "--anneal", "--loss"]),
        ({"method": "nearest", "bias_correction": True}, ["augment", "bias_correction"], []),
        ({"method": "adaquant"}, ["anneal", "rounding"], ["--anneal"]),
        ({"method": "brecq", "rounding": "flexround"}, ["anneal", "rounding"], ["--anneal"]),
        ({"method": "adaround", "anneal": "cosine"}, ["anneal"], []),
        ({"method": "brecq-paper", "loss": "fisher"}, ["loss", "drop", "rounding"], ["--drop"]),
    ],
    ids=str,
)
def test_options_without_a_use_are_named(settings, given, named):
    sentences = unused_options(Settings(**settings), given)
    assert [sentence.split()[0] for sentence in sentences] == named
