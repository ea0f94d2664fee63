"""Ranking of layers and tensors, and what more bits, or float, bring back."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from io import StringIO

import numpy as np
import onnx
import pytest
from helpers.learned import small
from helpers.stages import feeds
from onnx import numpy_helper
from rich.console import Console

from mrecg_onnx.commands.sensitivity import _tables
from mrecg_onnx.converters import normalize
from mrecg_onnx.converters.errors import DataError, SettingsError
from mrecg_onnx.inspecting.ranked import Ranking
from mrecg_onnx.inspecting.ranking import sensitivity
from mrecg_onnx.inspecting.suggesting import suggested
from mrecg_onnx.machine import Run
from mrecg_onnx.measures import Metric
from mrecg_onnx.planning import BitRule, make_plan
from mrecg_onnx.preparation import prepare
from mrecg_onnx.quantization import quantize
from mrecg_onnx.reporting import report_ranking
from mrecg_onnx.running import open_session
from mrecg_onnx.settings import Settings
from mrecg_onnx.validating import validate
from mrecg_onnx.widths.costs import WIDTHS

#: A convolution, and a head whose channels have ranges of their own.
HEAD = """
<ir_version: 9, opset_import: ["" : 17]>
head (float[N, 3, 32, 32] images) => (float[N, 64, 4] boxes)
{
    features = Conv <kernel_shape = [4, 4], strides = [4, 4]> (images, w1)
    sharp = Relu (features)
    raw = Conv (sharp, w2, b2)
    flat = Reshape (raw, shape)
    moved = Transpose <perm = [0, 2, 1]> (flat)
    boxes = Mul (moved, ranges)
}
"""


def head() -> onnx.ModelProto:
    random = np.random.default_rng(0)
    ranges = np.array([100, 1, 1, 0.1], np.float32)
    weights = {
        "w1": random.normal(0, 0.2, (8, 3, 4, 4)),
        "w2": random.normal(0, 0.2, (4, 8, 1, 1)) * ranges[:, None, None, None],
        "b2": ranges,
        "ranges": 1 / ranges,
    }
    model = onnx.parser.parse_model(HEAD)
    for node in model.graph.node:
        node.name = {"features": "stem", "raw": "head"}.get(node.output[0], node.output[0])
    constants = {n: np.asarray(w, np.float32) for n, w in weights.items()} | {"shape": np.array([0, 4, 64])}
    model.graph.initializer.extend(numpy_helper.from_array(w, n) for n, w in constants.items())
    return model


def shown(found: Ranking, top: int = 3) -> str:
    """What the command says of it."""
    console = Console(width=200, file=StringIO())
    console.print(*_tables(found, str, top, None))
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


SETTINGS = Settings(method="nearest", wbits=2, abits=4, equalize="off")


@pytest.fixture(scope="module")
def calib(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranking") / "calib.npz"
    np.savez(path, **feeds(small(), 48))
    return path


@pytest.fixture(scope="module")
def found(calib):
    return sensitivity(small(), calib, SETTINGS, top=3)


def test_every_layer_and_every_quantized_tensor_is_ranked(found):
    layers = [r for r in found.ranked if r.kind == "weights"]
    tensors = [r for r in found.ranked if r.kind == "activations"]
    assert [r.layers for r in layers] == [(r.name,) for r in layers]
    assert {r.name for r in layers} == {x.name for x in make_plan(normalize(small()), SETTINGS).layers}
    assert {name for r in tensors for name in r.layers} == {r.name for r in layers}
    assert [r.loss for r in found.ranked] == sorted((r.loss for r in found.ranked), reverse=True)
    read = [r for r in found.ranked if r.layers]
    assert all(tuple(r.losses) == WIDTHS and r.losses[8] < r.losses[2] for r in read)
    # What a sum or an average alone reads has the width that it has.
    others = {r.name: tuple(r.losses) for r in found.ranked if not r.layers}
    assert others == {"stem_relu_out": (8,), "a2_out": (8,), "b1_relu_out": (8,)}
    assert {r.name for r in tensors} >= {a.name for a in make_plan(normalize(small()), SETTINGS).activations}
    assert {r.bits for r in layers} == {2, 8}  # the first and the last layer keep 8


def test_suggestions_are_options_of_quantize_and_bring_back_what_they_say(found, calib):
    assert len(found.suggestions) == 3
    best = found.suggestions[0]
    assert best.quality.order > found.quality.order
    assert found.together.error < found.quality.error
    assert best.option == "--bits"
    for one in found.suggestions:
        entries = [found.ranked[rank - 1] for rank in one.ranks]
        assert entries
        assert all(re.search(one.value.rpartition("=")[0], name) for e in entries for name in e.layers)
        first = found.ranked[one.ranks[0] - 1]
        row = next(line for line in shown(found).splitlines() if f"{one.option} '{one.value}'" in line)
        assert row.split("'")[2].split()[0].rstrip(",") == str(one.ranks[0])
        assert f"\n {one.ranks[0]:>2}   {first.name} " in shown(found)
        assert f"for {', '.join(map(str, one.ranks))}: {one.option} '{one.value}'" in str(found)
    assert found.to_json()["suggestions"][0]["ranks"] == best.ranks
    result = quantize(small(), calib, replace(SETTINGS, bits=(BitRule.parse(best.value),)))
    # The file itself, on the same images: agreement with the float network is what was promised.
    measured = validate(small(), result.model, calib, repeats=0)
    assert measured.agreement == pytest.approx(best.quality.agreement, abs=0.03)


def test_of_eight_bits_what_stays_in_float_is_tried_and_the_output_of_a_head_is_first(tmp_path):
    """A head whose offsets and logits share one scale of 8 bits: no layer reads what it makes."""
    np.savez(tmp_path / "calib.npz", images=np.random.default_rng(0).random((24, 3, 32, 32), np.float32))
    eight = Settings(method="nearest", wbits=8, abits=8, equalize="off")
    found = sensitivity(head(), tmp_path / "calib.npz", eight, top=4)
    worst = found.ranked[0]
    assert (worst.name, worst.kind, worst.layers, tuple(worst.losses)) == ("raw", "activations", (), (8,))
    assert {s.option for s in found.suggestions} == {"--exclude"}
    assert len({s.value for s in found.suggestions}) == len(found.suggestions)
    best = found.suggestions[0]
    assert best.value == "^head$"
    assert best.quality.error < 0.2 * found.quality.error
    assert found.helps


def test_what_a_sum_alone_reads_is_left_in_float_with_the_sum(calib):
    ready = prepare(small(), calib, replace(SETTINGS, wbits=8, abits=8), Run())
    ((option, value),) = suggested(ready, "a2_out", "activations", (), {8: 1e-4}, 8)
    assert option == "--exclude"
    left = make_plan(ready.graph, replace(ready.settings, exclude=(value,)))
    assert "a2_out" not in {a.name for a in left.activations}
    assert {x.name for x in left.layers if x.excluded} <= {"a2"}


def test_suggestions_that_do_not_help_together_are_not_offered_so(found, tmp_path):
    worse = replace(found, together=replace(found.quality, agreement=found.quality.agreement - 0.01))
    better = replace(found, together=replace(found.quality, agreement=found.quality.agreement + 0.01))
    assert better.helps
    assert not worse.helps
    assert not replace(worse, together=found.quality).helps  # nor those that bring nothing
    assert not replace(found, together=None).helps
    said = shown(worse)
    assert "all that help" not in said
    assert (
        "together  those that help alone bring back nothing (-1.00 points): what each brings may be the noise of 48"
        in said
    )
    assert "all that help" in shown(better)
    rules = [value for option, value in found.helpful if option == "--bits"]
    assert rules
    assert [rule.text for rule in better.all_that_help.bits] == rules
    assert replace(found.settings, bits=rules).bits == better.all_that_help.bits
    assert str(better).endswith(f"Settings(..., bits={rules}), which is .all_that_help")
    assert worse.all_that_help == found.settings
    assert "all that help" not in str(worse)
    worse.report(tmp_path / "page.html")
    assert "Suggestions together" in (tmp_path / "page.html").read_text()
    chance, sure = (replace(better, together_p=p) for p in (1.0, 0.01))
    for result, following, says in (
        (worse, "", ()),
        (sure, "", ("all that help", "quantize(model, calib, result.all_that_help)")),
        (sure, "mrecg-onnx quantize m.onnx --bits '^a$=W8'", ("mrecg-onnx quantize m.onnx --bits '^a$=W8'",)),
        (
            chance,
            "",
            ("all that help", f"{better.gain(better.together)}, within noise", "suggestions below, within noise"),
        ),
    ):
        report_ranking(result, tmp_path / "page.html", following=following)
        page = html.unescape((tmp_path / "page.html").read_text()).replace("\xa0", " ")
        page = re.sub("<wbr>|</?span>", "", page)
        assert all(text in page for text in says)
        assert ("result.all_that_help" in page) == (result is sure and not following)
        assert ('<td class="text key" title="all that help">' in page) == (result is not worse)


def test_what_brings_back_few_answers_is_marked(found):
    """One of 256 images was advertised as +0.39 points."""
    assert all(s.p is not None and 0 < s.p <= 1 for s in found.suggestions)
    one, *_ = found.suggestions
    chance, sure = (replace(found, suggestions=(replace(one, p=p),)) for p in (1.0, 0.01))
    assert "points, within noise" in shown(chance)
    assert (
        "noise     what few answers change by may be chance (McNemar's p is 0.05 or more) on these 48 images"
        in shown(chance)
    )
    assert "noise" not in shown(sure).replace("may be the noise of", "")
    assert not replace(one, p=None).is_noise


def test_widths_that_nothing_gives_are_explained(found):
    last = replace(found, ranked=found.ranked[:1])
    assert "one width" not in shown(replace(last, ranked=tuple(r for r in found.ranked if r.layers)[:3]))
    some = tuple(r for r in found.ranked if not r.layers)[:1]
    assert "one width  what no layer reads (a sum, an output): no option gives it another" in shown(
        replace(found, ranked=some)
    )


def test_where_nothing_is_lost_nothing_is_suggested(calib):
    eight = sensitivity(small(), calib, replace(SETTINGS, wbits=8, abits=8), top=3, limit=16)
    assert eight.nothing_lost == (eight.quality.agreement == 1.0)
    assert bool(eight.suggestions) != eight.nothing_lost
    kept = replace(eight, quality=eight.float_quality, suggestions=())
    assert kept.nothing_lost
    assert "suggestions  none: nothing is lost on these 16 of 48 images: --limit takes more" in shown(kept)


def test_what_the_images_are_is_said(found, calib):
    assert "images     48, no labels: agreement with the float network" in shown(found)
    few = sensitivity(small(), calib, SETTINGS, top=0, limit=16)
    assert (few.images, few.available) == (16, 48)
    assert "images     16 of 48, no labels" in shown(few, top=0)
    assert "suggestions" not in shown(few, top=0)
    assert "suggestions  none: no option" in shown(few)
    counted = replace(
        few, metric=Metric(lambda o, t: 0.5, "mine"), quality=replace(few.quality, score=0.5), targets=True
    )
    assert "images     16 of 48, with targets for mine" in shown(counted)
    assert "without targets for mine" in shown(replace(counted, targets=False))
    assert "16 of 48, labelled\n" in shown(replace(few, labelled=True, quality=replace(few.quality, top1=0.5)))
    assert "no class scores: error of the outputs" in shown(replace(few, quality=replace(few.quality, agreement=None)))


def test_float_network_is_its_own_measure(found):
    assert found.float_quality.agreement == 1.0
    assert found.float_quality.error == 0.0
    assert not found.labelled
    assert found.quality.top1 is None


def test_report_is_plain(found):
    plain = json.loads(json.dumps(found.to_json()))
    assert plain["ranked"][0]["losses"]["2"] == found.ranked[0].losses[2]
    assert plain["settings"]["wbits"] == 2


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"top": -1}])
def test_senseless_numbers_are_refused(calib, wrong):
    with pytest.raises(SettingsError, match="limit is"):
        sensitivity(small(), calib, SETTINGS, **wrong)


def test_labels_of_arrays_are_what_suggestions_are_tried_on(calib, tmp_path):
    x = feeds(small(), 48)
    said = open_session(small()).run(None, x)[0].argmax(1)
    np.savez(tmp_path / "labelled.npz", **x, y=said)
    found = sensitivity(small(), calib, SETTINGS, data=tmp_path / "labelled.npz", top=1)
    assert (found.labelled, found.float_quality.top1) == (True, 1.0)
    np.save(tmp_path / "y.npy", said + 1000)
    with pytest.raises(DataError, match=r"of image 0 is beyond .*y\.npy"):
        sensitivity(small(), calib, SETTINGS, data=calib, labels=tmp_path / "y.npy", top=1)
