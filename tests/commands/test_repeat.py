"""The command on the page of a finished file makes the same bytes again, whatever the file was made with."""

from __future__ import annotations

import ast
import html
import json
import re
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.command_line import works

import mrecg_onnx
from mrecg_onnx import Preprocess, Settings
from mrecg_onnx.commands import main
from mrecg_onnx.planning import BitRule
from mrecg_onnx.settings import STORED_ORDER, WITHOUT_OPTION

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

#: Fields by the runs that change them; every field is in one of them.
RUNS = {
    "widths": {
        "method": "nearest", "wbits": 3, "abits": 8, "first_last_bits": 6, "exclude": ("^fc$",), "samples": 9,
        "bits": (BitRule("conv3", 4, None), BitRule("conv4", None, 6), BitRule("it's [a]?|conv1", 5, 5)), "residual": "shared",
        "symmetric_weights": True, "batch_size": 8, "seed": 5, "device": "cpu", "threads": 1, "equalize": "off",
        "range": "percentile", "percentile": 99.5, "container": "packed", "protect": 1, "bias_correction": True,
    },
    "learning": {
        "method": "qdrop", "iters": 3, "drop": 0.25, "rounding": "adaround", "anneal": "cosine", "loss": "mse", "window": 0,
        "augment": "flip", "stop": "auto", "finish": 2, "relu6": "auto", "absorb": "auto", "symmetric_weights": False,
    },
    "finish left to a rule": {"method": "brecq", "wbits": 2, "iters": 5, "finish": None},
    "units": {
        "method": "mrecg", "iters": 3, "base": "brecq", "scheme": "modcap", "selection": "eq4", "merges": 1, "alpha": 1.0,
        "penalty": 0.5, "joint_iters": "same", "target": "openvino",
    },
    "a file of units": {"method": "mrecg", "iters": 2, "scheme": "scheme.json"},
    "a file of rules": {"method": "nearest", "target": "own.toml"},
    "channels": {"method": "aciq", "channel_bits": "weights"},
    "steps": {"method": "lapq", "lapq_evaluations": 3, "lapq_images": 4},
    "integer programming": {"method": "nearest", "allocate": "milp"},
    "size": {"method": "nearest", "size_budget": 21_000, "bits": (BitRule("conv3", 4, None),)},
    "average": {"method": "nearest", "avg_wbits": 3.5},
    "drop": {"method": "nearest", "max_drop": 90.0},
    "drop by answers": {"method": "nearest", "max_drop": 95.0},
    "drop by metric": {"method": "nearest", "max_drop": 50.0},
    "all images": {"method": "nearest", "samples": 1024},
    "nothing": {"method": "nearest"},
    "made images": {"method": "nearest", "zeroq_iters": 2},
    "so many made images": {"method": "nearest", "zeroq_iters": 1, "samples": 256},
    "methods": {
        "method": "brecq", "iters": 10, "probe_fraction": 0.5, "lr_rounding": 0.1, "lr_scale": 0.1, "knee": 1.0,
        "learn_bias": False, "learn_weight_scales": False, "rounding_weight": 0.1, "range_samples": 6, "held_out": 0.25,
    },
    **{f"images {i}": {"method": "nearest", "preprocess": how} for i, how in enumerate((
        Preprocess(mean=(0.5,), std=(0.25,)), Preprocess(mean=(0.1, 0.2, 1 / 3), std=(0.5, 0.6, 0.7), scale=1 / 127.5),
        "raw", Preprocess(color="bgr"), Preprocess(color="gray", interpolation="bicubic", resize=20),
        Preprocess(resize=(18, 20), mean=(-0.25,), std=(1.0,)), Preprocess(resize="off"),
    ))},
}  # fmt: skip
#: What cannot change the file, and stands in none.
NOWHERE = {"memory", "timeout"}
#: What no command line on this machine can change: kernels of torch.compile are made on a GPU, or take a minute.
FOR_GPUS = {"compile"}


def test_every_field_is_changed_by_a_run():
    changed = {name for run in RUNS.values() for name in run}
    assert changed | NOWHERE | FOR_GPUS == set(STORED_ORDER)


def test_what_has_no_option_is_known():
    options = {p.name for p in main.commands["quantize"].params} | {"exclude", "bits", "preprocess"}
    assert set(STORED_ORDER) - options == WITHOUT_OPTION


def command_of(page: Path) -> tuple[list[str], list[str]]:
    """Comments and words of the command on a page."""
    (text,) = re.findall("<pre><code>(.*?)</code></pre>", page.read_text(), re.DOTALL)
    lines = html.unescape(re.sub("</?span>", "", text)).split("\n")  # words in spans break at spaces alone
    said = [line for line in lines if line.startswith("# ")]
    program, *words = shlex.split("\n".join(lines[len(said) :]))
    assert program == "mrecg-onnx"
    return said, words


@pytest.fixture
def room(here: Path) -> Path:
    """With files of units and of rules."""
    (here / "scheme.json").write_text(json.dumps({"scheme": [1, [1, 1], 1, 1]}))
    rules = Path(mrecg_onnx.__file__).parent / "targets" / "rules" / "portable.toml"
    (here / "own.toml").write_bytes(rules.read_bytes())
    return here


def write_normalized(path: str) -> None:
    """A model with BatchNormalization, of which images can be made."""
    import torch
    from helpers.architectures import BasicBlock

    layers = torch.nn.Sequential(BasicBlock(3, 8, 2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()
    kept = {"do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE, "input_names": ["x"]}
    torch.onnx.export(layers, (torch.zeros(2, 3, 16, 16),), path, dynamo=False, dynamic_axes={"x": {0: "n"}}, **kept)


def write_softmax(path: str) -> None:
    """The model with shares as its output, which are answers without labels, too."""
    model = onnx.load(path)
    (output,) = model.graph.output
    model.graph.node.append(onnx.helper.make_node("Softmax", [output.name], ["shares"], "shares"))
    output.name = "shares"
    onnx.save(model, path)


#: Plain pytest runs these, the slow tests all.
QUICK = {"widths", "learning", "nothing"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in RUNS])
def test_the_command_makes_the_same_bytes(room: Path, name: str):
    chosen = {"threads": 1, **({} if name in {"all images", "nothing"} else {"samples": 16}), **RUNS[name]}
    if "made" in name:
        chosen = {key: value for key, value in chosen.items() if key != "samples" or "samples" in RUNS[name]}
    model, calib = ("norm.onnx", "zeroq") if "made" in name else ("model.onnx", "images")
    if model != "model.onnx":
        write_normalized(model)
    if name.endswith("answers"):
        write_softmax(model)
    judged = {"data": "images"} if "max_drop" in chosen else {}
    judged |= {"answers": {"labels": "none"}, "metric": {"metric": "top-5"}}.get(name.partition(" by ")[2], {})
    mrecg_onnx.quantize(model, calib, Settings(**chosen), output="first.onnx", **judged)
    works("report", "first.onnx", "-o", "page.html")
    said, words = command_of(room / "page.html")
    if "scheme.json" in chosen.values():
        (held,) = [line for line in said if line.startswith("# SCHEME.json holds ")]
        Path("SCHEME.json").write_text(held.removeprefix("# SCHEME.json holds "))
    if "own.toml" in chosen.values():
        assert "target of one's own, called own" in said[0]
    there = {"MODEL.onnx": model, "IMAGES/": calib, "VALIDATION/": "images", "TARGET.toml": "own.toml"}
    words = [there.get(word, word) for word in words]
    apart = [line for line in said if line.startswith("# no option, set in Python: ")]
    assert bool(apart) == bool(RUNS[name].keys() & WITHOUT_OPTION)
    works(*words, "-o", "second.onnx")
    if apart:  # Python says what the command line cannot
        fields = dict(re.findall(r"(\w+)=([^,)]+)", apart[0]))
        assert {key: ast.literal_eval(value) for key, value in fields.items()} == {
            key: value for key, value in RUNS[name].items() if key in WITHOUT_OPTION
        }
        return
    assert Path("first.onnx").read_bytes() == Path("second.onnx").read_bytes(), shlex.join(words)


def test_a_file_beside_the_model_is_not_read_in_place_of_what_was_said(room: Path):
    works("quantize", "model.onnx", "--calib", "images", "--method", "nearest", "-o", "first.onnx")
    works("report", "first.onnx", "--against", "model.onnx", "--data", "images", "-o", "page.html")
    (room / "preprocessor_config.json").write_text(
        json.dumps({"do_normalize": True, "image_mean": [0.5], "image_std": [0.5]})
    )
    _, words = command_of(room / "page.html")
    assert words[1] == "model.onnx"
    works(*["images" if word == "IMAGES/" else word for word in words], "-o", "second.onnx")
    assert Path("first.onnx").read_bytes() == Path("second.onnx").read_bytes()


@pytest.mark.parametrize("stated", [{}, {"mean": (0.5,), "std": (0.25,)}])
def test_arrays_are_fed_as_they_are(room: Path, stated: dict):
    np.save("images.npy", np.random.default_rng(0).normal(size=(12, 3, 16, 16)).astype(np.float32))
    settings = Settings(method="nearest", threads=1, **({"preprocess": Preprocess(**stated)} if stated else {}))
    mrecg_onnx.quantize("model.onnx", "images.npy", settings, output="first.onnx")
    works("report", "first.onnx", "-o", "page.html")
    _, words = command_of(room / "page.html")
    there = {"MODEL.onnx": "model.onnx", "ARRAYS.npy": "images.npy"}
    works(*[there.get(word, word) for word in words], "-o", "second.onnx")
    assert Path("first.onnx").read_bytes() == Path("second.onnx").read_bytes()


@pytest.mark.slow
def test_a_metric_of_ones_own_is_said_in_words(room: Path):
    (room / "mine.py").write_text("def level(outputs, targets):\n    return float(abs(outputs).mean())\n")
    command = ("quantize", "model.onnx", "--calib", "images", "--method", "nearest", "--threads", 1, "--data", "images")
    own = ("--max-drop", "50", "--metric", "mine:level", "--lower-is-better")
    works(*command, *own, "-o", "first.onnx")
    works("report", "first.onnx", "-o", "page.html")
    said, words = command_of(room / "page.html")
    assert any("MODULE:FUNCTION: a metric of one's own, called level" in line for line in said)
    there = {"MODEL.onnx": "model.onnx", "IMAGES/": "images", "VALIDATION/": "images", "MODULE:FUNCTION": "mine:level"}
    works(*[there.get(word, word) for word in words], "-o", "second.onnx")
    assert Path("first.onnx").read_bytes() == Path("second.onnx").read_bytes()


def marked(page: Path) -> list[str]:
    return re.findall('class="marked"><dt>(.*?)</dt>', page.read_text())


def test_only_what_somebody_chose_is_marked(room: Path):
    command = ("quantize", "model.onnx", "--calib", "images", "-o", "q.onnx", "--report", "page.html")
    works(*command, "--method", "nearest", "--mean", ".5", "--std", ".25")
    assert marked(room / "page.html") == ["method", "preprocess"]
    works("report", "q.onnx", "-o", "later.html")
    assert marked(room / "later.html") == ["method", "preprocess"]
    assert "settings" not in works("inspect", "q.onnx").stdout
    works(*command, "--force", "--method", "nearest", "--threads", 1, "--samples", 64)
    assert marked(room / "page.html") == ["method", "samples", "threads"]
    assert "samples 64" in works("inspect", "q.onnx").stdout
    text = (room / "page.html").read_text()
    assert 0 < text.index("No option: parts of the method") < text.index("<dt>knee</dt>")
