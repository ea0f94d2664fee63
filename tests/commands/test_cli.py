"""The command line: what a user types and what comes out."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import onnx
import pytest
from helpers.architectures import Graph
from helpers.command_line import FAST, classifier, fails, works

import mrecg_onnx
from mrecg_onnx import Settings
from mrecg_onnx.commands import main

ROOT = Path(__file__).resolve().parents[2]


# --- what a user sees when all is well -------------------------------------------------------------------------------


def test_quantize_writes_a_checked_file_and_says_what_it_did(here: Path) -> None:
    source = (here / "model.onnx").read_bytes()
    result = works("quantize", "model.onnx", "--calib", "images", *FAST, "--protect", "1", "--json", "r.json")

    assert (here / "model.onnx").read_bytes() == source
    written = onnx.load("model_mrecg_w4a4.onnx")
    onnx.checker.check_model(written, full_check=True)
    assert {entry.domain for entry in written.opset_import} == {""}
    for text in (
        "model_mrecg_w4a4.onnx",
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
        "mrecg-onnx validate model.onnx model_mrecg_w4a4.onnx --data",
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
    assert report["output"] == "model_mrecg_w4a4.onnx"
    assert report["settings"]["iters"] == 5
    assert report["images"] == 16
    assert len(report["protected"]) == 1
    assert report["plan"]["layers"][0]["name"] == "stem"
    assert len(report["units"]) == len(report["plan"]["merges"])
    assert report["verification"]["fused"]["QLinearConv"] == 7
    made = {"model_mrecg_w4a4.onnx", "model_mrecg_w4a4.toml", "r.json"}
    assert {path.name for path in here.iterdir()} == {"model.onnx", "images", *made}


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
        result = works("quantize", "model.onnx", "--calib", "images", *quick, *options, "-o", "q.onnx", "--force")
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
    works("quantize", "model.onnx", "--calib", "images", *quick, "-o", "q.onnx", "--force")
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
    assert (here / "model_mrecg_w3a5.onnx").is_file()
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
    assert "1 layer in float" in result.stdout
    assert "bgr nchw; shorter side to 20, centre crop to 16x16; scale 0.0078125" in result.stdout


@pytest.mark.parametrize("method", ["nearest", "bit-split", "adaround", "brecq", "qdrop"])
def test_every_method_runs_from_the_command_line(here: Path, method: str) -> None:
    works("quantize", "model.onnx", "--calib", "images", *FAST[2:], "--iters", "2", "--method", method)
    assert (here / f"model_{method}_w4a4.onnx").is_file()


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
    works("validate", "fixed.onnx", "fixed_mrecg_w4a4.onnx", "--data", "images", "--repeats", "0")
    assert onnx.load("fixed_mrecg_w4a4.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_value == batch


def test_validate_puts_both_models_side_by_side(here: Path) -> None:
    works("quantize", "model.onnx", "--calib", "images", *FAST, "--mean", "0.5")
    files = ("validate", "model.onnx", "model_mrecg_w4a4.onnx", "--data", "images", "--threads", "1")
    result = works(*files, "--repeats", "2", "--json", "v.json")
    for text in ("FP32", "top-1", "top-5", "95 %", "latency", "agreement", "SQNR", "McNemar", "QLinearConv 7"):
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
    found = mrecg_onnx.inspect(classifier(), here / "images", Settings(method="qdrop", threads=1))
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


def test_help_about_images_names_the_file_that_says_it() -> None:
    for command, file in (("validate", "QUANT"), ("runtimes", "FILE")):
        assert f"[default: what {file} says]" in re.sub(r"\s+", " ", works(command, "--help").stdout)


@pytest.mark.parametrize("command", sorted(main.commands))
def test_a_help_page_has_its_own_options_in_sections_of_one_order(command: str) -> None:
    text = works(command, "--help").stdout
    text = text[re.search(r"^\w[\w ]+:$", text, re.MULTILINE).start() :]
    options = [p for p in main.commands[command].params if isinstance(p, click.Option)]
    own = {next(name for name in option.opts if name.startswith("--")) for option in options}
    listed = re.findall(r"^  (?:-\w, )?(--[a-z0-9-]+)", text, re.MULTILINE)
    assert sorted(listed) == sorted({*own, "--help"})
    sections = re.findall(r"^(\w[\w ]+):$", text, re.MULTILINE)
    order = [s for s in ("Images", "Bits", "Method", "For experts", "Other options", "Options") if s in sections]
    assert sections == order


@pytest.mark.parametrize("columns", [60, 80])
def test_a_help_page_is_readable_on_a_narrow_terminal(columns: int) -> None:
    context = main.commands["convert"].make_context("convert", [], resilient_parsing=True, terminal_width=columns)
    lines = context.get_help().split("Options:")[1].splitlines()
    assert max(map(len, lines)) <= columns
    said = [line.strip() for line in lines if line.startswith("     ") and "[" not in line]
    assert sum(map(len, said)) / len(said) > 35  # click's two columns leave 24 for the text


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_lines_of_help_pages_fit_and_examples_can_be_copied(columns: int) -> None:
    for command in (main, *main.commands.values()):
        width = min(80, columns - 1)  # what a terminal of so many columns comes to
        context = command.make_context(command.name, [], resilient_parsing=True, terminal_width=width)
        text = context.get_help()
        lines = text.splitlines()
        assert max(map(len, lines)) < columns, max(lines, key=len)
        assert not [line for line in lines if line.endswith(("...", "-")) and not re.match("  -|Usage|.*json", line)]
        examples = re.findall(r"^ *(mrecg-onnx .*)$", inspect.cleandoc(command.help or ""), re.MULTILINE)
        copied = re.sub(r" \\\n +", " ", text)
        assert examples == re.findall(r"^  (mrecg-onnx .*)$", copied, re.MULTILINE)


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


# --- mixed precision ---------------------------------------------------------------------------------------------------


def test_budget_of_bits_is_kept_and_shown(here: Path) -> None:
    result = works(
        "quantize", "model.onnx", "--calib", "images", "--method", "nearest", "--avg-wbits", "3.5", "--wbits", "2"
    )
    assert (here / "model_nearest_mixed_a4.onnx").exists()
    assert re.search(r"--avg-wbits 3\.5: 3\.\d\d bits on average \(at most 3\.50", result.stdout)
    assert re.search(r"packed, the file takes \d+\.\d kB", result.stdout)
    assert "mixed, A4" in result.stdout
    assert "Warning: --wbits has no effect with --avg-wbits" in result.stderr
