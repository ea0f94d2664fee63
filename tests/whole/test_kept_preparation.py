"""Equalization and ranges of an earlier run: the same files with them as without, and nothing taken that does not hold."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.rescalable import spread
from helpers.stages import feeds, saved

from mrecg_onnx import preparation
from mrecg_onnx.calibrating import kept_grids
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.planning import BitRule
from mrecg_onnx.quantization import quantize
from mrecg_onnx.settings import Settings

NEAREST = Settings(method="nearest", wbits=4, abits=4, threads=1)
#: Weights take part in the decisions on three streams, and one of them is rescaled.
BOUNDED = replace(NEAREST, relu6="auto")
KINDS = {"equalization", "activation ranges", "weight ranges"}


@dataclass
class Here:
    """A model, images and the folder of a first run."""

    model: Path
    images: Path
    folder: Path
    made: dict[str, list[str]]

    def run(self, settings: Settings = NEAREST, *, kept: bool = True, **more: Any) -> bytes:
        """The file; :attr:`made` has then what was decided anew for it, by kind."""
        for names in self.made.values():
            names.clear()
        model, images = more.pop("model", self.model), more.pop("images", self.images)
        found = quantize(model, images, settings, checkpoint=self.folder if kept else None, **more)
        return found.model.SerializeToString()

    def file(self, kind: str) -> Path:
        return self.folder / "prepared" / f"{kind.replace(' ', '-')}.json"

    def anew(self) -> set[str]:
        return {kind for kind, names in self.made.items() if names}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Here:
    onnx.save(spread(), tmp_path / "model.onnx")
    images = saved(tmp_path / "calib.npz", **feeds(spread(), 32))
    found = Here(tmp_path / "model.onnx", images, tmp_path / "kept", {kind: [] for kind in sorted(KINDS)})
    choose, search, nearest = preparation.choose_scales, preparation.activation_grids, kept_grids.nearest_weights

    def choose_scales(network, streams, *arguments):
        found.made["equalization"] += [stream.name for stream in streams]
        return choose(network, streams, *arguments)

    def activation_grids(*arguments, only, **options):
        found.made["activation ranges"] += only
        return search(*arguments, only=only, **options)

    def nearest_weights(network, layers, **options):
        found.made["weight ranges"] += [layer.name for layer in layers]
        return nearest(network, layers, **options)

    monkeypatch.setattr(preparation, "choose_scales", choose_scales)
    monkeypatch.setattr(preparation, "activation_grids", activation_grids)
    monkeypatch.setattr(kept_grids, "nearest_weights", nearest_weights)
    first = found.run()
    assert found.anew() == KINDS
    assert {path.stem.replace("-", " ") for path in (found.folder / "prepared").iterdir()} == KINDS
    assert first == found.run(kept=False)
    return found


def test_the_same_command_decides_nothing_again(here, caplog):
    assert here.run() == here.run(kept=False)
    assert here.anew() == KINDS  # of the run without a folder
    here.run()
    assert here.anew() == set()
    assert "made anew" not in caplog.text


#: Settings of a second run and the kinds of which something is decided anew for it.
CHANGES: list[tuple[dict[str, Any], set[str]]] = [
    ({"wbits": 3}, {"weight ranges"}),
    ({"method": "aciq", "range": "output", "channel_bits": "off"}, set()),
    ({"method": "brecq", "iters": 2, "batch_size": 8}, set()),
    ({"seed": 1}, set()),
    ({"range": "mse"}, {"activation ranges"}),
    ({"range": "percentile"}, {"activation ranges"}),
    ({"range_samples": 8}, {"activation ranges"}),
    ({"abits": 3}, {"equalization", "activation ranges"}),
    ({"relu6": "auto"}, KINDS),
    ({"equalize": "off"}, set()),  # nothing was rescaled
    ({"samples": 20}, {"equalization", "activation ranges"}),
]


@pytest.mark.parametrize(
    ("change", "anew"),
    [pytest.param(*row, id=str(row[0]), marks=pytest.mark.slow if i % 3 else ()) for i, row in enumerate(CHANGES)],
)
def test_other_settings_start_from_what_holds(here, change, anew):
    settings = replace(NEAREST, **change)
    found = here.run(settings)
    assert here.anew() == anew
    here.run(settings)
    assert here.anew() == set()
    assert here.run() == here.run(kept=False)
    assert here.run(settings, kept=False) == found


def test_only_what_a_rule_touches_is_decided_anew(here, caplog):
    settings = replace(NEAREST, bits=(BitRule.parse("project=W8A4"),))
    found = here.run(settings)
    assert here.made == {"equalization": [], "activation ranges": [], "weight ranges": ["project"]}
    assert "weight ranges kept in " in caplog.text
    assert ": 1 of 4 made anew (different: bits)" in caplog.text
    assert found == here.run(settings, kept=False)


def test_left_out_nodes_leave_the_rest(here):
    settings = replace(NEAREST, exclude=("project",))
    found = here.run(settings)
    assert here.anew() == {"activation ranges"}
    assert len(here.made["activation ranges"]) == 1
    assert found == here.run(settings, kept=False)


@pytest.mark.parametrize(
    ("change", "streams"),
    [
        ({"bits": (BitRule.parse("project=W4A8"),)}, ["depthwise_out"]),
        ({"bits": (BitRule.parse("project=W8A4"),)}, ["depthwise_out"]),
        ({"exclude": ("project",)}, ["depthwise_out"]),
        ({"wbits": 3}, ["stem_out", "depthwise_out"]),
    ],
    ids=str,
)
def test_streams_are_decided_one_by_one(here, caplog, change, streams):
    """What a stream's own tensors and readers have decides: decisions on the others hold."""
    here.run(BOUNDED)
    caplog.clear()
    settings = replace(BOUNDED, **change)
    found = here.run(settings)
    assert here.made["equalization"] == streams
    assert f"{len(streams)} of 3 made anew" in caplog.text
    assert found == here.run(settings, kept=False)
    assert here.run(BOUNDED) == here.run(BOUNDED, kept=False)


def test_equalization_that_is_left_out_leaves_nothing_of_it(here):
    here.run(BOUNDED)
    off = replace(BOUNDED, equalize="off")
    assert here.run(off) == here.run(off, kept=False)


@pytest.mark.parametrize("what", ["model", "images"])
def test_other_model_and_other_images(here, tmp_path, what):
    if what == "model":
        onnx.save(spread(seed=1), tmp_path / "other.onnx")
        more: dict[str, Any] = {"model": tmp_path / "other.onnx"}
    else:
        more = {"images": saved(tmp_path / "other.npz", **feeds(spread(), 32, seed=1))}
    found = here.run(**more)
    assert {"equalization", "activation ranges"} <= here.anew()
    assert found == here.run(kept=False, **more)
    assert here.run() == here.run(kept=False)


def test_changed_value_in_an_image_is_another_image(here, tmp_path):
    arrays = feeds(spread(), 32)
    arrays["input"][5, 0, 0, 0] += 0.5
    changed = saved(tmp_path / "changed.npz", **arrays)
    assert here.run(images=changed) == here.run(images=changed, kept=False)
    here.folder = here.folder.with_name("second")
    here.run()
    here.run(images=changed)
    assert {"equalization", "activation ranges"} <= here.anew()


def test_protected_tensors_are_kept_too(here):
    settings = replace(NEAREST, protect=2)
    found = here.run(settings)
    assert len(here.made["activation ranges"]) == 2
    assert here.run(settings) == found
    assert here.anew() == set()
    assert found == here.run(settings, kept=False)


def test_many_images_for_ranges_are_part_of_it(here, tmp_path):
    more = saved(tmp_path / "more.npz", **feeds(spread(), 96))
    settings = replace(NEAREST, range_samples=80)
    found = here.run(settings, images=more)
    assert here.run(settings, images=more) == found == here.run(settings, images=more, kept=False)
    here.run(replace(settings, range_samples=90), images=more)
    assert here.anew() == {"activation ranges"}


# --- damage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("damage", ["gone", "empty", "half", "digit"])
def test_damage_is_decided_anew(here, caplog, kind, damage):
    path, whole = here.file(kind), here.run(kept=False)
    text = path.read_text()
    at = text.index("scale") + 12
    changed = {
        "empty": "",
        "half": text[: len(text) // 2],
        "digit": text[:at] + str((int(text[at]) + 1) % 10 if text[at].isdigit() else 1) + text[at + 1 :],
    }
    path.unlink() if damage == "gone" else path.write_text(changed[damage])
    assert here.run() == whole
    assert here.anew() == {kind}
    assert (str(path) in caplog.text) == (damage != "gone")
    here.run()
    assert here.anew() == set()


def test_pickles_are_not_run(here, tmp_path):
    """A file that any unpickling would execute."""
    path = here.file("activation ranges")
    path.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "run").encode() + b"'\ntR.")
    assert here.run() == here.run(kept=False)
    assert not (tmp_path / "run").exists()


def test_folder_that_cannot_be_made_is_named(here, tmp_path):
    (tmp_path / "file").write_text("")
    here.folder = tmp_path / "file"
    with pytest.raises(SettingsError, match=r"--checkpoint .*file: cannot be used \(File exists\)"):
        here.run()


def test_decisions_of_a_first_run_without_gain_hold_too(here):
    """Streams that stay as they are were judged as well."""
    settings = replace(NEAREST, wbits=8, abits=8)
    here.run(settings)
    assert here.made["equalization"]
    here.run(settings)
    assert here.anew() == set()
    assert np.isfinite(json.loads(here.file("equalization").read_text())["stem_out"][0]["value"]["spread"])
