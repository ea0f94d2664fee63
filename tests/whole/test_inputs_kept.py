"""Nothing that a call from Python reads is written over, by the call or by what it returned (tests/commands has the terminal)."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.command_line import fails
from helpers.learned import small
from helpers.stages import feeds

import mrecg_onnx
from mrecg_onnx.converters.errors import MrecgError, SettingsError

NEAREST = {"method": "nearest", "equalize": "off", "threads": 1}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with its tensors beside it, arrays, labels, rules and an image, in the folder of the process."""
    monkeypatch.chdir(tmp_path)
    onnx.save(small(), "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    x = feeds(small(), 8)["input"]
    np.save("c.npy", x)
    np.savez("v.npz", x=x)
    np.save("l.npy", np.arange(8) % 10)
    shutil.copy(str(files("mrecg_onnx.targets") / "rules" / "ort.toml"), "t.toml")
    Path("images").mkdir()
    Path("images/1.png").write_bytes(b"")
    Path("link.onnx").symlink_to("m.onnx")
    Path("boxes.json").write_text("{}", encoding="utf-8")
    Path("p.json").write_text('{"image_mean": [0.5], "image_std": [0.5], "rescale_factor": 1}', encoding="utf-8")
    Path("arrays").mkdir()
    np.save("arrays/x.npy", x)
    Path("out").mkdir()
    Path("out/comparison.json").write_text("[1]", encoding="utf-8")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("output", "more", "says"),
    [
        ("m.onnx", {}, "m.onnx is the model itself: choose another file"),
        ("link.onnx", {}, "is the model itself"),
        (Path("m.data"), {}, "has tensors of m.onnx: choose another file"),
        ("c.npy", {}, "is read, too (calib): choose another file"),
        ("c.npy", {"calib": "mapped"}, "is read, too (calib)"),
        ("images/1.png", {"calib": "images"}, "is in images, which is read (calib)"),
        ("images/1.png", {"calib": ["images/1.png"]}, "is read, too (calib)"),
        ("images/1.png", {"calib": [("images/1.png", 1)]}, "is read, too (calib)"),
        ("v.npz", {"data": "v.npz"}, "is read, too (data)"),
        ("l.npy", {"labels": "l.npy"}, "is read, too (labels)"),
        ("boxes.json", {"labels": "boxes.json:order"}, "is read, too (labels)"),
        ("t.toml", {"settings": {"target": "t.toml"}}, "is read, too (target)"),
        ("p.json", {"settings": {"preprocess": "p.json"}}, "is read, too (preprocess)"),
    ],
)
def test_quantize(here: Path, output: str | Path, more: dict[str, Any], says: str) -> None:
    before, calib = contents(here), more.pop("calib", "c.npy") if more else "c.npy"
    if "settings" in more:
        more = {"settings": mrecg_onnx.Settings(**more["settings"])}
    calib = np.load("c.npy", mmap_mode="r") if calib == "mapped" else calib
    with pytest.raises(SettingsError) as error:
        mrecg_onnx.quantize("m.onnx", calib, output=output, **more)
    assert says in str(error.value)
    assert contents(here) == before


@pytest.mark.parametrize(
    "call",
    [
        lambda: mrecg_onnx.convert("m.onnx", "packed", output="m.onnx"),
        lambda: mrecg_onnx.convert("m.onnx", "packed", output="m.data"),
        lambda: mrecg_onnx.convert("m.onnx", to="tflite", output="m.onnx"),
        lambda: mrecg_onnx.to_litert("m.onnx", output="m.data"),
        lambda: mrecg_onnx.to_litert("m.onnx", output="v.npz", data="v.npz"),
        lambda: mrecg_onnx.report("m.onnx", "m.data"),
        lambda: mrecg_onnx.report("q.onnx", "m.onnx", against="m.onnx", data="v.npz"),
        lambda: mrecg_onnx.report("q.onnx", "l.npy", against="m.onnx", data="v.npz", labels="l.npy"),
        lambda: mrecg_onnx.compare("m.onnx", "c.npy", "arrays", "arrays/out", methods="nearest", bits="W4A4"),
        lambda: mrecg_onnx.compare(
            *("m.onnx", "c.npy", "v.npz", "out"),
            methods=["nearest"],
            bits=["W4A4"],
            settings=mrecg_onnx.Settings(scheme="out/comparison.json"),
            force=True,
        ),
    ],
)
def test_other_calls(here: Path, call: Any) -> None:
    before = contents(here)
    with pytest.raises(
        SettingsError,
        match=r"is the model itself|is one of the models|has tensors of|is read, too|is searched for data",
    ):
        call()
    assert contents(here) == before


def test_results(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a result was made of stays, also where the process went elsewhere meanwhile; its own file is written again."""
    made = mrecg_onnx.quantize(
        "m.onnx", "c.npy", mrecg_onnx.Settings(**NEAREST), output="q.onnx", data="v.npz", labels="l.npy"
    )
    found = made.validate("v.npz", labels="l.npy", repeats=0)
    ranked = mrecg_onnx.sensitivity("m.onnx", "c.npy", mrecg_onnx.Settings(**NEAREST), top=1)
    before = contents(here)
    with pytest.raises(SettingsError, match="choose another file"):
        made.report(here / "q.onnx")
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    read = (
        (made, ("m.onnx", "m.data", "c.npy", "v.npz", "l.npy")),
        (found, ("m.onnx", "m.data", "q.onnx", "v.npz", "l.npy")),
        (ranked, ("m.onnx", "m.data", "c.npy")),
        (mrecg_onnx.inspect(here / "m.onnx"), ("m.onnx", "m.data")),
        (mrecg_onnx.inspect_result(here / "q.onnx"), ("q.onnx",)),
        (mrecg_onnx.benchmark(here / "m.onnx", runs=1), ("m.onnx", "m.data")),
    )
    for result, paths in read:
        for path in paths:
            with pytest.raises(SettingsError, match="choose another file"):
                result.save(here / path)
    for result in (made, found, ranked):
        with pytest.raises(MrecgError, match="choose another file"):
            result.report(here / "m.data")
    assert contents(here) == before
    assert made.save(here / "q.onnx").is_file()
    assert found.save(here / "found.json").is_file()


def test_no_page_and_no_json_takes_the_place_of_a_model_that_nobody_named(here: Path) -> None:
    result = mrecg_onnx.quantize(small(), "c.npy", mrecg_onnx.Settings(**NEAREST), output="q.onnx")
    before = contents(here)
    checked = mrecg_onnx.validate(small(), result, "c.npy", repeats=0)
    for call, name in ((checked.save, "JSON"), (checked.report, "a page"), (result.report, "a page")):
        with pytest.raises(SettingsError, match=rf"^(output )?m\.onnx is no name of {name}: call it m\.(json|html)$"):
            call("m.onnx")
    fails("inspect", "q.onnx", "--json", "c.npy", code=2, says=("--json c.npy is no name of JSON: call it c.json",))
    fails("report", "q.onnx", "-o", "m.onnx", code=2, says=("--output m.onnx is no name of a page: call it m.html",))
    fails("benchmark", "q.onnx", "--plot", "m.onnx", code=2, says=("--plot m.onnx is no name of a picture",))
    assert contents(here) == before


def test_nothing_takes_the_place_of_what_is_of_another_kind(here: Path) -> None:
    """A script, a table, a page and an array stay, whatever their names end in; what is empty or of the kind is replaced."""
    made = mrecg_onnx.quantize(small(), np.load("c.npy"), mrecg_onnx.Settings(**NEAREST), output="q.onnx")
    found = made.validate("c.npy", repeats=0)
    for name, content in {
        "train": b"import torch\n",
        "labels.txt": b"a.png,1\n",
        "page.htm": b"<!doctype html>",
        "values": b'{"a": 1}',
        "array": Path("c.npy").read_bytes(),
        "picture": b"\x89PNG\r\n\x1a\n",
    }.items():
        Path(name).write_bytes(content)
        others = [(made.save, "a model"), (found.save, "JSON"), (found.report, "a page")]
        kinds = {"page.htm": "a page", "values": "JSON"}
        for call, kind in others:
            if kinds.get(name) != kind:
                with pytest.raises(SettingsError, match=rf"{name} is there and is not {kind}: choose another file"):
                    call(name)
        with pytest.raises(SettingsError, match=rf"output {name} is there and is not a model"):
            mrecg_onnx.quantize(small(), np.load("c.npy"), output=name)
        assert Path(name).read_bytes() == content
    Path("empty").write_bytes(b"")
    assert made.save("empty").stat().st_size > 0
    assert made.save("empty").is_file()
    assert found.save("values").is_file()
    fails(
        "quantize",
        "m.onnx",
        "--calib",
        "c.npy",
        "-o",
        "x.tflite",
        code=2,
        says=("x.tflite", "call it x.onnx", "--to tflite"),
    )
    fails(
        "quantize",
        "m.onnx",
        "--calib",
        "c.npy",
        "-o",
        "train",
        "--force",
        code=2,
        says=("train is there and is not a model",),
    )
