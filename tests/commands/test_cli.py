"""The command line: what a user types, what comes out, and what a mistake gets: one line, an exit code, no file."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from helpers.architectures import Graph, two_inputs
from helpers.command_line import classifier, fails, files, run, works
from onnx import TensorProto, helper, numpy_helper

import mrecg_onnx
from mrecg_onnx import Settings
from mrecg_onnx.commands._progress import TimeLeft, duration
from mrecg_onnx.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable


ROOT = Path(__file__).resolve().parents[2]
FAST = ("--iters", "5", "--samples", "16", "--threads", "1")


# --- what a user sees when all is well -------------------------------------------------------------------------------


def test_quantize_writes_a_checked_file_and_says_what_it_did(here: Path) -> None:
    source = (here / "model.onnx").read_bytes()
    result = works("quantize", "model.onnx", "--calib", "images", *FAST, "--protect", "1", "--json", "r.json")

    assert (here / "model.onnx").read_bytes() == source
    written = onnx.load("model_w4a4.onnx")
    onnx.checker.check_model(written, full_check=True)
    assert {entry.domain for entry in written.opset_import} == {""}
    for text in (
        "model_w4a4.onnx",
        "in FP32",
        "W4A4",
        "mrecg on brecq, scheme loss, 5 iterations",
        "simulation against the file as written: ",
        "file as written against ONNX Runtime's default: ",
        "FP32 against that default: ",
        "QLinearConv 7 of 7",
        "(8 bits)",
        "16 calibration images",
        "mean 0.485 0.456 0.406",
        "probe ",
        "mrecg-onnx validate model.onnx model_w4a4.onnx --data",
    ):
        assert text in result.stdout
    stages = re.findall(r"^(\w+) done in", result.stderr, re.MULTILINE)
    assert stages == [
        "load",
        "equalize",
        "calibrate",
        "sensitivity",
        "read",
        "probe",
        "reconstruct",
        "export",
        "verify",
    ]
    assert re.search(r"^probe 1/5 stem: loss .* about .* left$", result.stderr, re.MULTILINE)
    assert re.search(r"^reconstruct 1/\d stem: loss .* 5 iterations in", result.stderr, re.MULTILINE)

    report = json.loads((here / "r.json").read_text())
    assert report["output"] == "model_w4a4.onnx"
    assert report["settings"]["iters"] == 5
    assert report["images"] == 16
    assert len(report["protected"]) == 1
    assert report["plan"]["layers"][0]["name"] == "stem"
    assert len(report["units"]) == len(report["plan"]["merges"])
    assert report["verification"]["fused"]["QLinearConv"] == 7
    assert {path.name for path in here.iterdir()} == {"model.onnx", "images", "model_w4a4.onnx", "r.json"}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(here: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        works("quantize", "model.onnx", "--calib", "images", *FAST, "--seed", seed, "-o", f"{name}.onnx")
    a, b, c = ((here / f"{name}.onnx").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def grey(folder: Path) -> None:
    """A model of one channel in place of the one of three."""
    g = Graph()
    g.classifier(g.relu(g.conv(g.relu(g.conv(g.input(1), 1, 8, "stem"), "relu"), 8, 8, "conv"), "relu2"), 8)
    onnx.save(g.model(), folder / "model.onnx")


@pytest.mark.parametrize(
    "command",
    [
        ("quantize", "model.onnx", "--calib", "images"),
        ("inspect", "model.onnx", "--calib", "images"),
        ("sensitivity", "model.onnx", "--calib", "images"),
        ("compare", "model.onnx", "--calib", "images", "--data", "images", "--methods", "nearest", "-o", "out"),
    ],
)
def test_one_channel_asks_for_its_numbers(here: Path, command: tuple[str, ...]) -> None:
    grey(here)
    fails(*command, code=2, says=("has 1 channel", "--mean and --std", "--preprocess imagenet|unit|raw|FILE"))
    fails(*command, "--mean", "0.5", code=2, says=("--mean and --std",))
    fails(*command, "--preprocess", "units", code=2, says=("no such file", "imagenet, unit, raw"))


def test_names_files_and_options_say_how_images_become_inputs(here: Path) -> None:
    grey(here)
    quick = ("--method", "nearest", "--samples", "8", "--threads", "1", "--equalize", "off")

    def stored(*options: object) -> dict[str, object]:
        result = works("quantize", "model.onnx", "--calib", "images", *quick, *options, "-o", "q.onnx")
        entries = {e.key: e.value for e in onnx.load("q.onnx").metadata_props}
        assert str(here) not in str(entries)
        stated = json.loads(entries["mrecg_onnx.preprocess"])
        assert json.loads(entries["mrecg_onnx.settings"])["preprocess"] == stated
        return stated | {"shown": re.search(r"^preprocessing +(.*)$", result.stdout, re.MULTILINE)[1]}  # type: ignore[index]

    unit = stored("--preprocess", "unit")
    assert (unit["mean"], unit["std"], unit["scale"], unit["color"]) == ([0.0], [1.0], 1 / 255, "gray")
    assert stored("--mean", "0.13", "--std", "0.31")["mean"] == [0.13]
    assert stored("--preprocess", "imagenet", "--std", "0.5")["std"] == [0.5]
    Path("preprocessor_config.json").write_text(
        json.dumps(
            {
                "do_normalize": True,
                "image_mean": [0.2],
                "image_std": [0.3],
                "size": {"height": 16, "width": 16},
                "resample": 3,
            }
        )
    )
    beside = stored()
    assert (beside["mean"], beside["resize"], beside["interpolation"]) == ([0.2], [16, 16], "bicubic")
    assert str(beside["shown"]).endswith("mean 0.2, std 0.3; from preprocessor_config.json")
    assert stored("--mean", "0.4")["mean"] == [0.4]
    assert stored("--mean", "0.4")["std"] == [0.3]
    assert stored("--resize", "20", "--interpolation", "lanczos")["resize"] == 20
    assert stored("--preprocess", "unit")["resize"] is None  # a name goes before the file
    Path("mine.json").write_text(json.dumps({"mean": [0.7], "std": [0.7]}))
    assert stored("--preprocess", "mine.json")["mean"] == [0.7]

    for command in (("inspect", "model.onnx"), ("sensitivity", "model.onnx", "--top", "0")):
        result = works(*command, "--calib", "images", *(quick[2:] if command[0] == "inspect" else quick))
        assert "from preprocessor_config.json" in result.stdout
    works("quantize", "model.onnx", "--calib", "images", *quick, "-o", "q.onnx")
    Path("preprocessor_config.json").unlink()
    check = ("validate", "model.onnx", "q.onnx", "--data", "images", "--repeats", "0")
    assert "mean 0.2, std 0.3" in works(*check).stdout
    assert "mean 0.2, std 0.6" in works(*check, "--std", "0.6").stdout
    assert "mean 0, std 1" in works(*check, "--preprocess", "unit").stdout
    Path("preprocessor_config.json").write_text("{")
    fails(
        "quantize",
        "model.onnx",
        "--calib",
        "images",
        *quick,
        code=2,
        says=("preprocessor_config.json: is no JSON", "--preprocess"),
    )


def test_arrays_and_images_do_not_meet_unasked(here: Path) -> None:
    rows = np.random.default_rng(0).uniform(-2, 2, (24, 3, 16, 16)).astype(np.float32)
    np.savez("xy.npz", input=rows, y=np.arange(24) % 10)
    quick = ("--method", "nearest", "--samples", "16", "--threads", "1", "--equalize", "off")
    works("quantize", "model.onnx", "--calib", "xy.npz", *quick, "-o", "q.onnx")
    check = ("validate", "model.onnx", "q.onnx", "--repeats", "0")
    fails(
        *check,
        "--data",
        "images",
        code=2,
        says=("q.onnx was calibrated on arrays", "--mean, --std and --scale", "--preprocess"),
    )
    fails(*check, "--data", "images", "--crop", "16", code=2, says=("calibrated on arrays",))
    assert "top-1" in works(*check, "--data", "images", "--preprocess", "imagenet").stdout
    assert "top-1" in works(*check, "--data", "xy.npz").stdout
    assert "top-1" not in works(*check, "--data", "xy.npz", "--labels", "none").stdout
    mixed = ("--calib", "xy.npz", "--data", "images")
    says = ("images holds images", "--preprocess")
    fails("quantize", "model.onnx", *mixed, *quick, "--max-drop", "1", code=2, says=says)
    fails("sensitivity", "model.onnx", *mixed, *quick, code=2, says=says)
    fails("compare", "model.onnx", *mixed, *quick[2:], "--methods", "nearest", "-o", "out", code=2, says=says)
    result = works(
        "quantize", "model.onnx", *mixed, *quick, "--max-drop", "100", "--preprocess", "imagenet", "-o", "m.onnx"
    )
    assert "options about images have no effect" not in result.output


def test_folders_that_are_no_classes_get_one_line_and_a_way_out(here: Path) -> None:
    works("quantize", "model.onnx", "--calib", "images", "--method", "nearest", "--samples", "8", "-o", "q.onnx")
    (here / "images" / "9").rename(here / "images" / "2023")
    check = ("validate", "model.onnx", "q.onnx", "--data", "images", "--repeats", "0")
    fails(
        *check,
        says=(
            "label 2023 of ",
            "beyond the 10 classes of output 'output'",
            "--labels FILE, or --labels none",
            "folders",
        ),
    )
    assert "agreement" in works(*check, "--labels", "none").stdout


def test_options_reach_the_settings(here: Path) -> None:
    (here / "scheme.json").write_text(json.dumps({"scheme": [1, [1, 1], 1, 1]}))
    options = [
        *("--wbits", "3", "--abits", "5", "--first-last-bits", "7", "--exclude", "project", "--bits", "conv3=W6A7"),
        *("--bits", "conv1=W2", "--method", "mrecg", "--base", "brecq", "--scheme", "scheme.json", "--equalize", "off"),
        *("--iters", "2", "--batch-size", "4", "--samples", "8", "--seed", "3", "--window", "8", "--drop", "0.25"),
        *("--mean", "0.5", "--std", "0.2,0.3,0.4", "--scale", "1/128", "--resize", "20", "--crop", "16x16"),
        *("--layout", "nchw", "--color", "bgr", "--device", "cpu", "--json", "r.json"),
    ]
    result = works("quantize", "model.onnx", "--calib", "images", *options)
    report = json.loads((here / "r.json").read_text())
    settings = report["settings"]
    assert (here / "model_w3a5.onnx").is_file()
    assert (settings["wbits"], settings["abits"], settings["first_last_bits"]) == (3, 5, 7)
    assert (settings["base"], settings["batch_size"], settings["seed"]) == ("brecq", 4, 3)
    assert (settings["window"], settings["drop"], settings["equalize"]) == (8, 0.25, "off")
    preprocess = settings["preprocess"]
    assert preprocess["mean"] == [0.5] * 3
    assert preprocess["std"] == [0.2, 0.3, 0.4]
    assert preprocess["scale"] == 1 / 128
    assert (preprocess["resize"], preprocess["crop"], preprocess["color"]) == (20, [16, 16], "bgr")
    widths = {layer["name"]: (layer["wbits"], layer["excluded"]) for layer in report["plan"]["layers"]}
    assert widths["conv1"] == (2, False)
    assert widths["conv3"] == (6, False)
    assert widths["project"][1]
    assert [1, 2] in report["plan"]["merges"]
    assert "1 layers in float" in result.stdout
    assert "bgr nchw; shorter side to 20, centre crop to 16x16; scale 0.0078125" in result.stdout


@pytest.mark.parametrize("method", ["nearest", "bit-split", "adaround", "brecq", "qdrop"])
def test_every_method_runs_from_the_command_line(here: Path, method: str) -> None:
    works("quantize", "model.onnx", "--calib", "images", *FAST[2:], "--iters", "2", "--method", method)
    assert (here / "model_w4a4.onnx").is_file()


def test_an_option_without_effect_is_pointed_out(here: Path) -> None:
    arguments = ("quantize", "model.onnx", "--calib", "images", *FAST[2:])
    result = works(*arguments, "--method", "nearest", "--scheme", "modcap", "--iters", "7")
    assert "Warning: --scheme has no effect with --method nearest" in result.stderr
    assert "Warning: --iters has no effect with --method nearest" in result.stderr


def test_arrays_calibrate_as_they_are(here: Path) -> None:
    np.save("inputs.npy", np.random.default_rng(0).normal(size=(8, 3, 16, 16)).astype(np.float32))
    result = works("quantize", "model.onnx", "--calib", "inputs.npy", "--method", "nearest", "--mean", "0.5")
    assert "none, arrays as they are" in result.stdout
    assert "options about images have no effect" in result.stdout
    assert "8 rows of arrays" in result.stdout


@pytest.mark.parametrize("batch", [1, 7])
def test_a_model_with_a_fixed_batch_runs_on_any_number_of_images(here: Path, batch: int) -> None:
    g = Graph()
    x = g.relu(g.conv(g.input(3, batch=batch), 3, 8))
    x = g.op("GlobalAveragePool", [g.relu(g.conv(x, 8, 8, "conv2"), "relu2")], "pool")
    x = g.op("Reshape", [x, g.constant("shape", np.array([batch, -1]))], "reshape")
    g.gemm(x, 8, 10, output="output")
    onnx.save(g.model(), "fixed.onnx")
    works("quantize", "fixed.onnx", "--calib", "images", *FAST)
    works("validate", "fixed.onnx", "fixed_w4a4.onnx", "--data", "images", "--repeats", "0")
    assert onnx.load("fixed_w4a4.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_value == batch


def test_validate_puts_both_models_side_by_side(here: Path) -> None:
    works("quantize", "model.onnx", "--calib", "images", *FAST, "--mean", "0.5")
    files = ("validate", "model.onnx", "model_w4a4.onnx", "--data", "images", "--threads", "1")
    result = works(*files, "--repeats", "2", "--json", "v.json")
    for text in ("FP32", "top-1", "top-5", "95 %", "latency, batch 1", "agreement", "SQNR", "McNemar", "QLinearConv 7"):
        assert text in result.stdout
    assert "mean 0.5 0.5 0.5, std 0.229 0.224 0.225" in result.stdout  # the file's metadata
    report = json.loads((here / "v.json").read_text())
    assert report["images"] == 24
    assert report["fp32"]["top1"]["value"] <= 1

    other = works(*files, "--repeats", "0", "--std", "0.25", "--limit", "5")
    assert "mean 0.5 0.5 0.5, std 0.25 0.25 0.25" in other.stdout  # what is given, else the metadata
    assert "latency" not in other.stdout

    labels = [f"{file.relative_to(here / 'images')},3" for file in sorted((here / "images").rglob("*.png"))]
    (here / "labels.csv").write_text("\n".join(labels))
    works(*files, "--repeats", "0", "--labels", "labels.csv")


def test_inspect_prints_the_plan_and_with_images_the_worst_tensors_first(here: Path) -> None:
    plain = works("inspect", "model.onnx", "--json", "plan.json")
    for text in ("8 weighted layers", "activation quantizers", "5 reconstruction units", "probing run", "depthwise"):
        assert text in plain.stdout
    assert "clip [0, 6]" in plain.stdout
    assert json.loads((here / "plan.json").read_text())["measured"] is None

    options = ("--scheme", "modcap", "--merges", "1", "--wbits", "3", "--bits", "conv1=W5A5")
    measured = works("inspect", "model.onnx", "--calib", "images", *options, "--json", "measured.json")
    report = json.loads((here / "measured.json").read_text())
    errors = [entry["error"] for entry in report["measured"]["sensitivities"]]
    assert errors == sorted(errors, reverse=True)
    assert len(errors) == len(report["plan"]["activations"])
    assert len(report["plan"]["merges"]) == len(report["plan"]["units"]) - 1
    assert "4 after merging by the scheme modcap" in measured.stdout
    assert measured.stdout.index("output error with one quantizer alone") > 0


def test_inspect_is_a_python_call(here: Path) -> None:
    found = mrecg_onnx.inspect(classifier(), Settings(method="qdrop", threads=1), here / "images")
    assert found.source.opset == 13
    assert found.source.inputs[0].shape == ("batch", 3, 16, 16)
    assert not found.merges_pending
    assert found.measured is not None
    assert found.measured.images == 24
    assert found.measured.parity < 1e-4
    json.dumps(found.to_json())
    assert mrecg_onnx.inspect(here / "model.onnx").merges_pending


@pytest.mark.parametrize("command", ["quantize", "validate", "inspect"])
def test_help_names_the_options_with_the_defaults_of_the_settings(command: str) -> None:
    text = works(command, "--help").stdout
    assert "--json FILE" in text
    assert "--mean" in text
    if command == "quantize":
        assert re.search(rf"--iters N\s+Iterations a unit\.\s+\[default:\s+{Settings().iters}\]", text)


# --- the doors -------------------------------------------------------------------------------------------------------


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_the_checkout_has_a_door_that_needs_no_installation(tmp_path: Path) -> None:
    onnx.save(classifier(), tmp_path / "model.onnx")
    uninstalled = (
        "import sys, runpy; sys.meta_path = [f for f in sys.meta_path if 'editable' not in str(f).lower()];"
        "sys.path = [p for p in sys.path if 'editable' not in p];"
        f"sys.argv = ['cli.py', *sys.argv[1:]]; runpy.run_path({str(ROOT / 'cli.py')!r}, run_name='__main__')"
    )
    done = python("-I", "-c", uninstalled, "inspect", "model.onnx", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "8 weighted layers" in done.stdout
    shown = python(str(ROOT / "cli.py"), "--help", cwd=tmp_path)
    assert shown.returncode == 0
    assert "Usage: python cli.py" in shown.stdout


def test_the_package_runs_as_a_module(tmp_path: Path) -> None:
    """What ``torchrun -m mrecg_onnx`` starts."""
    done = python("-m", "mrecg_onnx", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "Usage: mrecg-onnx" in done.stdout


def test_help_does_not_wait_for_torch(tmp_path: Path) -> None:
    code = "import sys, mrecg_onnx.commands; print([m for m in ('torch', 'onnx', 'onnxruntime') if m in sys.modules])"
    assert python("-c", code, cwd=tmp_path).stdout.strip() == "[]"
    assert works("--version").stdout.startswith("mrecg-onnx, version ")


# --- models that cannot be used --------------------------------------------------------------------------------------


def quantize_fails(model: str | Path, *options: object, code: int = 1, says: tuple[str, ...] = ()) -> str:
    return fails("quantize", model, "--calib", "images", *FAST, *options, code=code, says=says)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(64), bytes(100)])
def test_not_an_onnx_file(here: Path, content: bytes) -> None:
    (here / "bad.onnx").write_bytes(content)
    quantize_fails("bad.onnx", says=("bad.onnx", "not an ONNX file"))
    fails("inspect", "bad.onnx", says=("bad.onnx",))
    fails("validate", "bad.onnx", "model.onnx", "--data", "images", says=("bad.onnx",))


def test_no_such_file_or_a_folder(here: Path) -> None:
    quantize_fails("missing.onnx", says=("missing.onnx", "no such file"))
    quantize_fails("images", says=("images", "folder"))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.99])
def test_a_truncated_file(here: Path, share: float) -> None:
    content = (here / "model.onnx").read_bytes()
    (here / "cut.onnx").write_bytes(content[: int(share * len(content))])
    quantize_fails("cut.onnx", says=("cut.onnx", "truncated"))


def test_damaged_bytes_never_surprise(here: Path) -> None:
    content = (here / "model.onnx").read_bytes()
    random = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(content)
        for position in random.integers(len(content) - 3000, len(content), 3):
            damaged[position] = random.integers(256)
        (here / "damaged.onnx").write_bytes(bytes(damaged))
        result = run("inspect", "damaged.onnx")
        assert result.exit_code in {0, 1}
        assert "unexpected" not in result.stderr


def test_external_data_missing_or_short(here: Path) -> None:
    onnx.save(
        classifier(),
        "big.onnx",
        save_as_external_data=True,
        location="big.data",
        size_threshold=0,
        convert_attribute=False,
    )
    data = here / "big.data"
    content = data.read_bytes()
    data.write_bytes(content[: len(content) // 2])
    quantize_fails("big.onnx", says=("big.onnx", "big.data", "truncated"))
    data.unlink()
    quantize_fails("big.onnx", says=("big.onnx", "big.data", "missing"))


def test_nothing_to_quantize(here: Path) -> None:
    g = Graph()
    g.relu(g.input(3), output="output")
    onnx.save(g.model(), "empty.onnx")
    quantize_fails("empty.onnx", says=("nothing to quantize",))
    fails("inspect", "empty.onnx", says=("nothing to quantize",))


def test_a_model_that_is_quantized_already(here: Path) -> None:
    works("quantize", "model.onnx", "--calib", "images", "--method", "nearest", "-o", "quant.onnx")
    quantize_fails("quant.onnx", says=("quantized already",))


def test_an_op_that_cannot_be_converted_is_named_with_its_node(here: Path) -> None:
    g = Graph()
    x = g.conv(g.input(3), 3, 8, "conv", output="conv_out")
    training = [x, g.constant("ratio", np.float32(0.5)), g.constant("training", np.bool_(True))]
    g.op("Dropout", training, "odd_one", output="output")
    onnx.save(g.model(), "odd.onnx")
    quantize_fails("odd.onnx", says=("Dropout is in training mode", "odd_one", "eval mode"))

    model = classifier()
    relu = next(node for node in model.graph.node if node.name == "relu1")
    relu.op_type, relu.domain = "Wobble", "acme"
    model.opset_import.append(helper.make_opsetid("acme", 1))
    onnx.save(model, "custom.onnx")
    quantize_fails("custom.onnx", says=("Wobble", "relu1"))


def eight_channels() -> onnx.ModelProto:
    g = Graph()
    g.classifier(g.conv(g.input(8), 8, 8), 8)
    return g.model()


def flat() -> onnx.ModelProto:
    g = Graph()
    g.inputs.append(helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 8]))
    g.gemm("input", 8, 4, output="output")
    return g.model()


@pytest.mark.parametrize("build", [eight_channels, flat, two_inputs])
def test_an_input_that_images_cannot_feed(here: Path, build: Callable[[], onnx.ModelProto]) -> None:
    onnx.save(build(), "other.onnx")
    quantize_fails("other.onnx", says=("input", ".npy"))


def change(name: str, edit: Callable[[np.ndarray], np.ndarray]) -> onnx.ModelProto:
    """The classifier with one of its initializers changed."""
    model = classifier()
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(edit(numpy_helper.to_array(tensor).copy()), name))
    return model


@pytest.mark.parametrize(("value", "said"), [(np.nan, "NaN"), (np.inf, "Inf")])
def test_weights_that_are_not_finite(here: Path, value: float, said: str) -> None:
    def spoil(weight: np.ndarray) -> np.ndarray:
        weight.reshape(-1)[3] = value
        return weight

    onnx.save(change("conv2.weight", spoil), "broken.onnx")
    quantize_fails("broken.onnx", says=("conv2.weight", said))


def test_activations_that_are_not_finite(here: Path) -> None:
    onnx.save(change("conv2.weight", lambda weight: weight * np.float32(1e38)), "loud.onnx")
    quantize_fails("loud.onnx", says=("conv2_out", "Inf"))
    fails("inspect", "loud.onnx", "--calib", "images", says=("conv2_out",))


def test_another_models_quantized_file(here: Path) -> None:
    works("quantize", "model.onnx", "--calib", "images", "--method", "nearest", "-o", "quant.onnx")
    onnx.save(classifier(seed=1), "other.onnx")
    onnx.save(eight_channels(), "different.onnx")
    fails("validate", "other.onnx", "quant.onnx", "--data", "images", says=("quant.onnx", "other.onnx"))
    fails("validate", "different.onnx", "quant.onnx", "--data", "images", says=("quant.onnx", "different.onnx"))
    fails("validate", "quant.onnx", "model.onnx", "--data", "images", says=("quant.onnx",))


# --- images that cannot be used --------------------------------------------------------------------------------------


def test_a_calibration_folder_without_images(here: Path) -> None:
    (here / "empty").mkdir()
    (here / "texts").mkdir()
    (here / "texts" / "a.txt").write_text("a")
    for folder in ("empty", "texts", "nowhere"):
        fails("quantize", "model.onnx", "--calib", folder, *FAST, says=(folder,))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_calibration_folder_that_may_not_be_read(here: Path) -> None:
    (here / "images").chmod(0)
    try:
        quantize_fails("model.onnx", says=("images", "ermission"))
    finally:
        (here / "images").chmod(0o755)


def test_a_calibration_folder_that_cannot_be_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    result = run("quantize", "model.onnx", "--calib", "images", *FAST)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "Error: cannot read images: Permission denied"


def test_one_corrupt_image_is_skipped_and_counted_but_not_two(here: Path) -> None:
    arguments = ("quantize", "model.onnx", "--calib", "images", "--method", "nearest", "-o", "out.onnx")
    image = here / "images" / "3" / "3.png"
    image.write_bytes(image.read_bytes()[:60])
    result = works(*arguments)
    assert "23 calibration images, 1 skipped" in result.stdout
    assert "images/3/3.png" in result.stdout
    (here / "out.onnx").unlink()
    (here / "images" / "4" / "4.png").write_bytes(b"nothing")
    fails(*arguments, says=("5%", "images/3/3.png", "images/4/4.png"))


# --- options that cannot be used -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--wbits", "1"), ("wbits", "1", "2 and 8")),
        (("--wbits", "9"), ("wbits", "9")),
        (("--abits", "1"), ("abits", "32")),
        (("--abits", "16"), ("abits", "16")),
        (("--first-last-bits", "9"), ("first_last_bits", "9")),
        (("--bits", "conv1=W9"), ("conv1=W9", "2 to 8")),
        (("--bits", "conv1"), ("conv1", "REGEX=")),
        (("--bits", "nowhere=W8"), ("nowhere", "matches no node")),
        (("--exclude", "nowhere"), ("nowhere", "matches no node")),
        (("--exclude", "("), ("(", "regular expression")),
        (("--exclude", "."), ("--exclude", "no layer")),
        (("--method", "magic"), ("--method", "magic", "mrecg")),
        (("--scheme", "missing.json"), ("missing.json",)),
        (("--iters", "0"), ("iters", "0")),
        (("--iters", "many"), ("--iters", "many")),
        (("--threads", "0"), ("threads", "0")),
        (("--merges", "-1"), ("merges", "-1")),
        (("--drop", "1.5"), ("drop", "1.5")),
        (("--mean", "a,b,c"), ("--mean", "a")),
        (("--mean", "1,2"), ("mean", "1, 3 or 4")),
        (("--std", "0"), ("std",)),
        (("--scale", "1/0"), ("--scale", "1/0")),
        (("--crop", "big"), ("--crop", "big")),
        (("--crop", "20"), ("20x20", "input")),
        (("--color", "gray", "--layout", "up"), ("--layout", "up")),
        (("--nonsense", "1"), ("--nonsense",)),
        (("--memory", "much"), ("--memory", "much", "2GB")),
        (("-o", "model.onnx"), ("model.onnx", "model itself")),
        (("-o", "images/../model.onnx"), ("model.onnx", "model itself")),
        (("--json", "model.onnx"), ("model.onnx", "model itself")),
        (("-o", "x.onnx", "--json", "x.onnx"), ("x.onnx", "output")),
    ],
)
def test_options_out_of_range(here: Path, options: tuple[str, ...], says: tuple[str, ...]) -> None:
    quantize_fails("model.onnx", *options, code=2, says=says)


def test_usage_errors_take_one_line_too(here: Path) -> None:
    fails("quantise", code=2, says=("quantise", "'quantize'"))
    fails("quantize", code=2, says=("MODEL", "mrecg-onnx quantize --help"))
    fails("quantize", "model.onnx", code=2, says=("--calib",))
    fails("validate", "model.onnx", code=2, says=("QUANT",))


# --- outputs that cannot be written, and runs that do not end ---------------------------------------------------------


@pytest.mark.parametrize("option", ["--output", "--json"])
def test_a_path_that_cannot_be_written_is_refused_before_the_work(here: Path, option: str) -> None:
    for path in ("missing/out.onnx", "images", "model.onnx/out.onnx"):
        line = quantize_fails("model.onnx", option, path, says=(path,))
        assert "folder" in line


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system")
@pytest.mark.parametrize("option", ["--output", "--json"])
def test_a_device_or_pipe_is_not_replaced_by_a_file(here: Path, option: str) -> None:
    os.mkfifo(here / "pipe")
    quantize_fails("model.onnx", option, "pipe", says=("is a named pipe, no file",))
    assert (here / "pipe").is_fifo()


def test_an_interrupted_run_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mrecg_onnx.learning import learner

    real, calls = learner.reconstruct_unit, []

    def interrupt(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(learner, "reconstruct_unit", interrupt)
    line = fails("quantize", "model.onnx", "--calib", "images", *FAST, "--json", "r.json", start="Interrupted")
    assert line == "Interrupted: nothing was written"


def test_an_interruption_after_the_file_is_there_says_so(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mrecg_onnx.commands.quantize.write_json", interrupt)
    result = run("quantize", "model.onnx", "--calib", "images", "--method", "nearest", "--json", "r.json")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "Interrupted: model_w4a4.onnx was written"
    onnx.checker.check_model("model_w4a4.onnx")


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for one process")
@pytest.mark.skipif(signal.getsignal(signal.SIGINT) is signal.SIG_IGN, reason="started in the background: no Ctrl-C")
def test_control_c_ends_a_real_run(here: Path) -> None:
    before = files(here)
    command = [sys.executable, str(ROOT / "cli.py"), "quantize", "model.onnx", "--calib", "images", "--iters", "100000"]
    with subprocess.Popen(
        [*command, "--threads", "1", "--scheme", "none"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        for line in process.stderr:
            if line.startswith("calibrate"):
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(60) == 1
        assert rest.splitlines() == ["Interrupted: nothing was written"]
        assert not process.stdout.read()
    assert files(here) == before


def test_an_unforeseen_error_takes_one_line_and_debug_shows_where(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object, **__: object) -> None:
        message = "no\nidea"
        raise RuntimeError(message)

    monkeypatch.setattr("mrecg_onnx.quantization.verify", explode)
    quantize_fails("model.onnx", says=("unexpected", "RuntimeError: no idea", "--debug"))
    result = run("quantize", "model.onnx", "--calib", "images", *FAST, "--debug")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "explode" in result.stderr


# --- small things ----------------------------------------------------------------------------------------------------


def test_time_left_follows_the_probing_run_and_then_its_own_pace() -> None:
    now = [0.0]
    left = TimeLeft(1000, clock=lambda: now[0])
    assert left.update(Progress("load")) is None
    assert left.update(Progress("probe")) is None
    now[0] = 5.0  # half of the probing run, which has a tenth of the iterations
    assert left.update(Progress("probe", "u", 5, 10, 0, 100)) == pytest.approx(5 + 100)
    now[0] = 10.0
    left.update(Progress("probe", "u", 9, 10, 100, 100))
    assert left.update(Progress("reconstruct")) == pytest.approx(100)
    now[0] = 35.0  # half of it in 25 s where 50 s were foreseen
    assert left.update(Progress("reconstruct", "u", 5, 10, 0, 1000)) == pytest.approx(0.5 * (25 + 50))

    alone = TimeLeft(1000, clock=lambda: now[0])
    assert alone.update(Progress("reconstruct")) is None
    now[0] += 10
    assert alone.update(Progress("reconstruct", "u", 0, 4, 500, 1000)) == pytest.approx(70)


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (59.97, "1:00"), (3725.2, "1:02:05")])
def test_durations_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# --- mixed precision ---------------------------------------------------------------------------------------------------


def test_budget_of_bits_is_kept_and_shown(here: Path) -> None:
    result = works(
        "quantize", "model.onnx", "--calib", "images", "--method", "nearest", "--avg-wbits", "3.5", "--wbits", "2"
    )
    assert (here / "model_mixed_a4.onnx").exists()
    assert re.search(r"--avg-wbits 3\.5: 3\.\d\d bits on average \(at most 3\.50", result.stdout)
    assert re.search(r"packed, the file takes \d\.\d+ MB", result.stdout)
    assert "mixed, A4" in result.stdout
    assert "Warning: --wbits has no effect with --avg-wbits" in result.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--avg-wbits", "3", "--size-budget", "1MB"), ("--size-budget and --avg-wbits", "give one")),
        (("--max-drop", "1"), ("--max-drop needs --data",)),
        (("--size-budget", "much"), ("--size-budget 'much'", "1.8MB")),
        (("--size-budget", "1KB"), ("--size-budget 0.0010 MB", "smallest possible is")),
        (("--avg-wbits", "9"), ("between 2 and 8",)),
    ],
)
def test_wrong_budgets_are_usage_errors(here: Path, options: tuple[str, ...], says: tuple[str, ...]) -> None:
    quantize_fails("model.onnx", *options, code=2, says=says)


def test_sensitivity_ranks_and_tries_on_labelled_images(here: Path) -> None:
    result = works(
        "sensitivity", "model.onnx", "--calib", "images", "--data", "images", "--limit", "8", "--method", "nearest",
        "--top", "2", "--json", "ranking.json",
    )  # fmt: skip
    assert "top-1" in result.stdout
    assert "8, labelled" in result.stdout
    assert re.search(r"--bits '.*=[WA]8'", result.stdout)
    found = json.loads((here / "ranking.json").read_text())
    assert len(found["suggestions"]) == 2
    assert found["labelled"] is True
    assert found["ranked"][0]["losses"].keys() == {str(w) for w in range(2, 9)}


def test_sensitivity_needs_images_for_labels(here: Path) -> None:
    fails("sensitivity", "model.onnx", "--calib", "images", "--labels", "x.csv", code=2, says=("--data",))
    fails("sensitivity", "model.onnx", "--calib", "images", "--json", "model.onnx", code=2, says=("model itself",))
