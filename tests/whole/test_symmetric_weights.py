"""Symmetric weights through every method, width and container: codes of as many bits around zero point 0."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.command_line import works
from helpers.contained import outputs
from helpers.learned import codes, distance, results, small
from helpers.stages import feeds, saved, simulated
from helpers.targets import on_sample
from onnx import TensorProto, numpy_helper

from mrecg_onnx import Settings, quantize
from mrecg_onnx.methods import METHODS
from mrecg_onnx.targets import TARGET_NAMES, load_target, longest_entry
from mrecg_onnx.widths.packed_size import PackedSize
from mrecg_onnx.writing.containers import contained


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Results on the small network by method and settings, symmetric unless told otherwise."""
    found = results(tmp_path_factory.mktemp("symmetric"))
    return lambda method, **more: found(method, **({"symmetric_weights": True, "iters": 20} | more))


def ends(bits: int) -> tuple[int, int]:
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if bits < 8 else (-127, 127)


def fit(result) -> None:
    """Every weight's codes lie on the signed range of its width, and use more than one bit less."""
    zeros = {t.name: numpy_helper.to_array(t) for t in result.model.graph.initializer if t.name.endswith("_zero_point")}
    for layer in result.plan.layers:
        found, (low, high) = codes(result)[layer.name], ends(layer.wbits)
        assert low <= found.min() <= found.max() <= high, layer
        assert found.min() < ends(layer.wbits - 1)[0] if layer.wbits > 2 else len(np.unique(found)) > 2
        assert not zeros[f"{layer.weight}_zero_point"].any()


@pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=() if name in {"nearest", "brecq"} else pytest.mark.slow) for name in sorted(METHODS)],
)
def test_every_method_learns_codes_of_as_many_bits(made, method):
    wbits = max(3, METHODS[method].least_wbits)
    result = made(method, wbits=wbits, lapq_images=16, lapq_evaluations=20, channel_bits="off")
    fit(result)
    assert not result.verification.warnings
    assert distance(result.model) > 3.0


@pytest.mark.parametrize("wbits", range(2, 9))
def test_every_width_is_as_good_as_asymmetric_codes_but_for_the_zero_point(made, wbits):
    symmetric, other = (made("nearest", wbits=wbits, abits=8, symmetric_weights=on) for on in (True, False))
    fit(symmetric)
    # Weights drawn around 0 lose less than a bit by it.
    assert distance(symmetric.model) > distance(other.model) - 6.0
    if wbits == 8:
        assert symmetric.model.graph.initializer == other.model.graph.initializer


@pytest.mark.parametrize("rounding", ["adaround", "flexround", "ste"])
def test_every_rounding_learns_around_zero(made, rounding):
    learned, nearest = made("brecq", rounding=rounding, iters=80), made("nearest")
    fit(learned)
    assert distance(learned.model) > distance(nearest.model) + 1.0


def test_the_finishing_stage_stays_on_the_codes(made):
    result = made("brecq", finish=10)
    fit(result)
    assert result.finished is not None


def test_layers_within_a_budget_have_symmetric_codes_of_their_own_width(made):
    result = made("nearest", avg_wbits=3.0)
    assert len({layer.wbits for layer in result.plan.layers}) > 1
    fit(result)


def test_widths_a_channel_lie_around_zero_too(made):
    result = made("aciq", wbits=3)
    noted = next(e.value for e in result.model.metadata_props if e.key == "mrecg_onnx.channel_bits")
    for layer in result.plan.layers:
        widths = json.loads(noted).get(layer.weight, [layer.wbits] * len(codes(result)[layer.name]))
        for channel, bits in zip(codes(result)[layer.name], widths, strict=True):
            low, high = ends(bits) if bits > 1 else (-bits, 0)
            assert low <= channel.min() <= channel.max() <= high


def test_a_run_that_was_stopped_goes_on_with_the_same_codes(tmp_path):
    calib = saved(tmp_path / "calib.npz", **feeds(small(), 32))
    chosen = Settings(
        method="brecq", wbits=2, iters=10, batch_size=8, threads=1, equalize="off", symmetric_weights=True
    )
    whole = quantize(small(), calib, chosen, checkpoint=tmp_path / "kept")
    again = quantize(small(), calib, chosen, checkpoint=tmp_path / "kept")
    assert again.model.SerializeToString() == whole.model.SerializeToString()
    other = quantize(small(), calib, replace(chosen, symmetric_weights=False), checkpoint=tmp_path / "kept")
    assert max(int(c.max()) for n, c in codes(other).items() if other.plan.layer(n).wbits == 2) > 1


@pytest.mark.parametrize(
    ("wbits", "kind"), [(2, "INT2"), (3, "INT4"), (4, "INT4"), (5, "INT8"), (6, "INT8"), (7, "INT8"), (8, "INT8")]
)
def test_packed_codes_are_signed_and_need_no_offset(made, wbits, kind):
    plain = made("nearest", wbits=wbits, first_last_bits=wbits).model
    held = contained(plain, "packed").model
    stored = {t.data_type for t in held.graph.initializer if len(t.dims) > 1}
    assert stored == {getattr(TensorProto, kind)}
    assert not any(node.op_type == "Sub" for node in held.graph.node)
    assert contained(held, "int8").model.SerializeToString() == plain.SerializeToString()
    for one, other in zip(outputs(plain), outputs(held), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("wbits", [2, 3, 4])
def test_typed_codes_are_int4_without_a_zero_point(made, wbits):
    plain = made("nearest", wbits=wbits, first_last_bits=wbits).model
    held = contained(plain, "typed").model
    tensors = {t.name: t for t in held.graph.initializer}
    weights = [t for n, t in tensors.items() if n.endswith("weight_quantized")]
    assert {t.data_type for t in weights} == {TensorProto.INT4}
    assert not any(
        numpy_helper.to_array(tensors[f"{t.name.removesuffix('_quantized')}_zero_point"]).any() for t in weights
    )
    for model in (held, contained(held, "int8").model):
        for one, other in zip(outputs(plain), outputs(model), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("wbits", [2, 4, 8])
def test_the_packed_size_is_known_before(made, wbits):
    result = made("nearest", wbits=wbits, residual="shared", abits=4)
    stage = simulated(small(), wbits=wbits, residual="shared", method="nearest", equalize="off", symmetric_weights=True)
    metadata = {p.key: p.value for p in result.model.metadata_props}
    widths = {x.name: x.wbits for x in stage.plan.quantized_layers}
    planned = PackedSize.planned(stage.graph, stage.network, stage.plan, metadata).total(widths)
    # The plan has room for what the file may say of the versions that it needs.
    assert 0 <= planned - contained(result.model, "packed").model.ByteSize() <= 40 * len(widths) + longest_entry()


def test_the_target_says_what_is_not_asked_for():
    for name in TARGET_NAMES:
        asked = load_target(name).weights == "symmetric"
        assert Settings(target=name).weights_symmetric is asked
        assert Settings(target=name, symmetric_weights=not asked).weights_symmetric is not asked


@pytest.mark.slow
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    works(*on_sample("--symmetric-weights", "--first-last-bits", "4", "-o", "symmetric.onnx"))
    works(*on_sample("--no-symmetric-weights", "--first-last-bits", "4", "-o", "asymmetric.onnx"))
    works(*on_sample("--first-last-bits", "4", "-o", "default.onnx"))
    widest = {}
    for name in ("symmetric", "asymmetric", "default"):
        tensors = onnx.load(f"{name}.onnx").graph.initializer
        weights = [numpy_helper.to_array(t) for t in tensors if t.data_type == TensorProto.INT8 and len(t.dims) > 1]
        widest[name] = (min(int(w.min()) for w in weights), max(int(w.max()) for w in weights))
    assert widest["symmetric"] == (-8, 7)
    assert widest["asymmetric"] == widest["default"] != (-8, 7)
