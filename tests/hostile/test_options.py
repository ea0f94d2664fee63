"""Options with nonsense in them, and files that options name: rules of targets, labels, widths, schemes, preprocessing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from helpers.hostile import LONGEST, Arguments, Case, Hostile, longest, model_and_images, rows

from mrecg_onnx.commands import main

SLY = "\x1b]0;title\x07\x1b[2J\r\u202e\x9b31m<script>alert(1)</script>"
DEEP = "[" * 100_000
LONG = "n" * 100_000
DIGITS = "9" * 5_000

NEAREST = ("--method", "nearest", "--threads", "1")
QUANTIZE = ("quantize", "model.onnx", "--calib", "images", *NEAREST)
VALIDATE = ("validate", "model.onnx", "model.onnx", "--data", "images", "--repeats", "0")
COMPARE = ("compare", "model.onnx", "--calib", "images", "--data", "images", "-o", "out", "--methods", "nearest")
SENSITIVITY = ("sensitivity", "model.onnx", "--calib", "images", "--threads", "1")


def given(*arguments: str | bytes, files: dict[str, str | bytes] | None = None) -> Callable[[Path], Arguments]:
    """A command line beside the model, its images and these files."""

    def make(folder: Path) -> Arguments:
        model_and_images(folder)
        for name, content in (files or {}).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return arguments

    return make


def rules(**other: str) -> str:
    """The rules of the target ort with some in other words of TOML."""
    from mrecg_onnx import targets

    text = (Path(targets.__file__).parent / "rules" / "ort.toml").read_text()
    lines = [line for line in text.splitlines() if line.split(" ")[0] not in other]
    return "\n".join([*(f"{name} = {value}" for name, value in other.items()), *lines])


def targeted(content: str | bytes) -> Callable[[Path], Arguments]:
    return given(*QUANTIZE, "--target", "own.toml", files={"own.toml": content})


def schemed(content: str | bytes) -> Callable[[Path], Arguments]:
    options = ("--calib", "images", "--method", "mrecg", "--iters", "1", "--threads", "1", "--scheme", "own.json")
    return given("quantize", "model.onnx", *options, files={"own.json": content})


def prepared(content: object) -> Callable[[Path], Arguments]:
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    return given(*QUANTIZE, "--preprocess", "own.json", files={"own.json": text})


def labelled(content: str | bytes) -> Callable[[Path], Arguments]:
    return given(*VALIDATE, "--labels", "own.csv", files={"own.csv": content})


def odd_model(content: bytes) -> Callable[[Path], Arguments]:
    return given(*QUANTIZE, files={"model.onnx": content})


HF = {"do_resize": True, "size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}

CASES = [
    # numbers
    Case("widths of 10^30", given(*QUANTIZE, "--wbits", "1" + "0" * 30), code=2, says=("wbits",)),
    Case("activations of 16 bits where the target has none", given(*QUANTIZE, "--abits", "16"), code=2, says=("16",)),
    Case("a seed of 5,000 digits", given(*QUANTIZE, "--seed", DIGITS), code=2, says=("--seed",)),
    Case("a seed of 2^70", given(*QUANTIZE, "--seed", str(2**70)), code=2, says=("seed",)),
    Case("a negative seed", given(*QUANTIZE, "--seed", "-1"), code=2, says=("seed",)),
    Case("10^9 threads", given(*QUANTIZE, "--threads", str(10**9)), code=2, says=("threads",)),
    Case("10^9 threads to validate", given(*VALIDATE, "--threads", str(10**9)), code=2, says=("threads",)),
    Case(
        "10^9 threads to benchmark",
        given("benchmark", "model.onnx", "--threads", str(10**9)),
        code=2,
        says=("threads",),
    ),
    Case(
        "10^9 threads to runtimes", given("runtimes", "model.onnx", "--threads", str(10**9)), code=2, says=("threads",)
    ),
    Case("batch of 10^12 to validate", given(*VALIDATE, "--batch-size", str(10**12)), code=0),
    Case(
        "batch of 10^12 to benchmark", given("benchmark", "model.onnx", "--batch", str(10**12)), code=2, says=("batch",)
    ),
    Case(
        "latency batch of 10^12",
        given(*VALIDATE, "--repeats", "1", "--latency-batch", str(10**12)),
        code=2,
        says=("batch",),
    ),
    Case("batch of 10^12 to convert", given("convert", "model.onnx", "--batch", str(10**12)), says=("model.onnx",)),
    Case("a percentile of NaN", given(*QUANTIZE, "--percentile", "nan"), code=2, says=("percentile",)),
    Case("a penalty of NaN", given(*QUANTIZE, "--penalty", "nan"), code=2, says=("penalty",)),
    Case("a penalty without end", given(*QUANTIZE, "--penalty", "inf"), code=2, says=("penalty",)),
    Case("a drop of NaN", given(*QUANTIZE, "--drop", "nan"), code=2, says=("drop",)),
    Case(
        "a largest drop of NaN", given(*QUANTIZE, "--max-drop", "nan", "--data", "images"), code=2, says=("--max-drop",)
    ),
    Case("an average of NaN bits", given(*QUANTIZE, "--avg-wbits", "nan"), code=2, says=("--avg-wbits",)),
    Case("a size of 400 digits", given(*QUANTIZE, "--size-budget", "9" * 400 + "GB"), code=2, says=("--size-budget",)),
    Case("memory of 400 digits", given(*QUANTIZE, "--memory", "9" * 400 + "GB"), code=2, says=("--memory",)),
    Case("a size of nothing", given(*QUANTIZE, "--size-budget", "0MB"), code=2, says=("size",)),
    Case("a mean of 400 digits", given(*QUANTIZE, "--mean", "9" * 400), code=2, says=("--mean",)),
    Case("a mean of 5,000 digits", given(*QUANTIZE, "--mean", DIGITS), code=2, says=("--mean",)),
    Case("a scale of 1e400", given(*QUANTIZE, "--scale", "1e400"), code=2, says=("scale",)),
    Case(
        "a scale whose exponent has ten digits", given(*QUANTIZE, "--scale", "1e9999999999"), code=2, says=("--scale",)
    ),
    Case("a scale over a power of ten", given(*QUANTIZE, "--scale", "1e-9999999"), code=2, says=("scale",)),
    Case("a std of 100,000 numbers", given(*QUANTIZE, "--std", "1," * 50_000), code=2, says=("std",)),
    Case("a resize of 5,000 digits", given(*QUANTIZE, "--resize", DIGITS), code=2, says=("--resize",)),
    Case("a resize of other digits", given(*QUANTIZE, "--resize", "²"), code=2, says=("--resize",)),
    Case("a crop of 10^9 a side", given(*QUANTIZE, "--crop", "1000000000"), code=2, says=("crop",)),
    Case("a resize to 10^8 a side", given(*QUANTIZE, "--resize", "100000000"), says=("images",)),
    Case("a resize to 10^9 a side", given(*QUANTIZE, "--resize", "1000000000x1000000000"), code=2, says=("--resize",)),
    # text
    Case("an option of 100,000 letters", given(*QUANTIZE, "--" + LONG), code=2),
    Case("an option with what a terminal obeys", given(*QUANTIZE, "--" + SLY), code=2),
    Case("an option that is not UTF-8", given(*QUANTIZE, b"--\xff\xfe"), code=2),
    Case("a method that is not UTF-8", given(*QUANTIZE, "--method", b"\xff\xfe"), code=2, says=("--method",)),
    Case("a command that is not UTF-8", given(b"\xff\xfe"), code=2),
    Case("a device with what a terminal obeys", given(*VALIDATE, "--device", SLY), code=2, says=("device",)),
    Case("an output of 100,000 letters", given(*VALIDATE, "--outputs", LONG), code=2, says=("--outputs",)),
    Case("an output file of 10,000 letters", given(*QUANTIZE, "-o", "n" * 10_000), says=("File name too long",)),
    Case("a report that is not UTF-8", given(*QUANTIZE, "--json", b"no/\xff\xfe.json"), code=2, says=("folder",)),
    Case(
        "widths of layers, no pattern", given(*QUANTIZE, "--bits", "(" * 5_000 + "=W4A4"), code=2, says=("expression",)
    ),
    Case("widths of layers, 100,000 letters", given(*QUANTIZE, "--bits", LONG + "=W4A4"), code=2),
    Case(
        "layers to leave out, nested 5,000 deep",
        given(*QUANTIZE, "--exclude", "(" * 5_000 + ")" * 5_000),
        code=2,
        says=("expression",),
    ),
    Case(
        "layers to leave out, 10^9 times",
        given(*QUANTIZE, "--exclude", "(a{999999999}){999999999}"),
        code=2,
        says=("exclude",),
    ),
    Case("10,000 methods to compare", given(*COMPARE[:-1], "nearest," * 10_000), code=2, says=("methods",)),
    Case("widths to compare with what a terminal obeys", given(*COMPARE, "--bits", SLY), code=2),
    Case("a runtime with what a terminal obeys", given("runtimes", "model.onnx", "--only", SLY), code=2),
    Case(
        "a time that is NaN",
        given("runtimes", "model.onnx", "--only", "onnxruntime", "--timeout", "nan"),
        code=2,
        says=("timeout",),
    ),
    Case("the worst -1 tensors", given(*SENSITIVITY, "--top", "-1"), code=2, says=("top",)),
    # files of rules
    Case("rules, not UTF-8", targeted(b"\xff\xfe" * 100), code=2, says=("own.toml",)),
    Case("rules, nothing", targeted(""), code=2, says=("own.toml", "lacks")),
    Case("rules, nested deep", targeted("a = " + DEEP), code=2, says=("own.toml",)),
    Case("rules, tables nested deep", targeted("[" + "a." * 50_000 + "a]"), code=2, says=("own.toml",)),
    Case("rules, a number of 5,000 digits", targeted(rules(opset=f"[13, {DIGITS}]")), code=2, says=("own.toml",)),
    Case("rules, 10^400", targeted(rules(opset="[13, 1e400]")), code=2, says=("own.toml", "opset")),
    Case(
        "rules, 200,000 unknown ones",
        targeted("\n".join(f"a{n} = 1" for n in range(200_000))),
        code=2,
        says=("own.toml", "lacks"),
    ),
    Case(
        "rules, a name with what a terminal obeys", targeted(rules() + '\n"\\u001b[2J" = 1'), code=2, says=("own.toml",)
    ),
    Case("rules, a choice of 100,000 letters", targeted(rules(bias=f'"{LONG}"')), code=2, says=("own.toml", "bias")),
    Case("rules, a choice that is a list", targeted(rules(bias='["int32"]')), code=2, says=("own.toml", "bias")),
    Case("rules, a choice that is a table", targeted(rules(bias="{ a = 1 }")), code=2, says=("own.toml", "bias")),
    Case(
        "rules, a summary that is a date", targeted(rules(summary="1979-05-27")), code=2, says=("own.toml", "summary")
    ),
    Case(
        "rules, 100,000 containers",
        targeted(rules(containers="[" + '"int8",' * 100_000 + "]")),
        code=2,
        says=("containers",),
    ),
    Case("rules, no container", targeted(rules(containers="[]")), code=2, says=("own.toml", "containers")),
    Case("rules, widths turned round", targeted(rules(wbits="[8, 2]")), code=2, says=("wbits",)),
    # schemes
    Case("a scheme, nested deep", schemed(DEEP), code=2, says=("own.json",)),
    Case("a scheme of a million units", schemed(json.dumps([1] * 1_000_000)), code=2, says=("units",)),
    Case(
        "a scheme of layers with what a terminal obeys",
        schemed(json.dumps({"units": [[SLY]]})),
        code=2,
        says=("not a weighted layer",),
    ),
    Case("a scheme of layers that are lists", schemed(json.dumps({"units": [[["a"]]]})), code=2, says=("own.json",)),
    Case("a scheme that is not UTF-8", schemed(b"\xff\xfe"), code=2, says=("own.json",)),
    # preprocessing
    Case("preprocessing, nested deep", prepared(DEEP), code=2, says=("own.json",)),
    Case("preprocessing, not UTF-8", prepared(b"\xff\xfe" * 50), code=2, says=("own.json",)),
    Case("preprocessing, a number of 5,000 digits", prepared(DIGITS), code=2, says=("own.json",)),
    Case(
        "preprocessing, a mean of a million",
        prepared(HF | {"image_mean": [0.5] * 100_000}),
        code=2,
        says=("image_mean",),
    ),
    Case(
        "preprocessing, a size of 10^30",
        prepared(HF | {"size": {"height": 10**30, "width": 16}}),
        code=2,
        says=("size",),
    ),
    Case(
        "preprocessing, a size with what a terminal obeys", prepared(HF | {"size": {SLY: 16}}), code=2, says=("size",)
    ),
    Case("preprocessing, a filter of 10^9", prepared(HF | {"resample": 10**9}), code=2, says=("resample",)),
    Case("preprocessing, lists nested in all", prepared({key: [[[]]] for key in HF}), code=2, says=("own.json",)),
    Case("preprocessing, 100 MB", prepared(" " * 100_000_000), code=2, says=("own.json", "larger")),
    # labels
    Case("labels, not UTF-8", labelled(b"file,label\n\xff,1\n"), says=("own.csv",)),
    Case("labels, of 5,000 digits", labelled(f"file,label\n0/0.png,{DIGITS}\n"), says=("own.csv",)),
    Case("labels, of 30 digits", labelled("\n".join(f"{n}/{n}.png,{10**30}" for n in range(4))), says=("own.csv",)),
    Case("labels, a cell of 200,000 letters", labelled(f"file,label\n{LONG}{LONG},1\n"), says=("own.csv",)),
    Case("labels, with what a terminal obeys", labelled(f"file,label\n{SLY},a\n"), says=("own.csv",)),
    Case("labels, with zero bytes", labelled(b"file,label\n\0\0,\0\n"), says=("own.csv",)),
    Case("labels, 200,000 rows of other files", labelled("".join(f"{n}.png,1\n" for n in range(200_000))), code=0),
    # files of options
    *(
        Case(
            f"a zero byte in {name} of a file of options",
            given("quantize", "model.onnx", "--config", "run.toml", files={"run.toml": f'{name} = "a\\u0000b"'}),
            code=2,
            says=("run.toml", f"{name} holds a zero byte"),
        )
        for name in ("output", "json", "report", "calib", "checkpoint", "target")
    ),
    Case(
        "a zero byte in a list of a file of options",
        given("quantize", "model.onnx", "--config", "run.toml", files={"run.toml": 'exclude = ["a", "\\u0000"]'}),
        code=2,
        says=("exclude holds a zero byte",),
    ),
    # folders that are somebody else's
    *(
        Case(
            f"another's {name.replace('out/', '')} where compare writes",
            given(*COMPARE, files={name: "precious"}),
            code=2,
            says=(f"{name} is there already", "--force"),
        )
        for name in (
            "out/model_nearest_w4a4.onnx",
            "out/comparison.md",
            "out/comparison.png",
            "out/cells/model_nearest_w4a4.json",
        )
    ),
    # one kind of file for another
    Case("a flatbuffer as a model", odd_model(b"\x1c\0\0\0TFL3" + bytes(200)), says=("model.onnx", "not an ONNX file")),
    Case("a zip as a model", odd_model(b"PK\x03\x04" + bytes(200)), says=("model.onnx", "not an ONNX file")),
    Case("a pickle as a model", odd_model(b"\x80\x04\x95" + bytes(200)), says=("model.onnx", "not an ONNX file")),
    Case(
        "a program as a model", odd_model(b"\x7fELF\x02\x01\x01" + bytes(200)), says=("model.onnx", "not an ONNX file")
    ),
    Case(
        "an image as a model",
        given("quantize", "images/0/0.png", "--calib", "images"),
        says=("0.png", "not an ONNX file"),
    ),
    Case("a model as an image", given(*QUANTIZE[:3], "model.onnx"), says=("model.onnx",)),
    Case("a model as rules", given(*QUANTIZE, "--target", "model.onnx"), code=2, says=("model.onnx", "TOML")),
    Case("a model as labels", given(*VALIDATE, "--labels", "model.onnx"), says=("model.onnx",)),
    Case("a float model to convert", given("convert", "model.onnx"), says=("model.onnx", "was not written by")),
]


#: What no option takes for a number or a choice, and what some take for a path or a name.
NONSENSE = (
    "",
    "nonsense",
    "nan",
    "inf",
    "-1",
    "1e999",
    "9" * 400,
    SLY,
    "\udcff\udcfe",
    "(" * 300,
    "=W4A4",
    "../" * 50,
    "0x10",
    "²",
    "a\0b",
)


@pytest.mark.parametrize("name", sorted(n for n, c in main.commands.items() if any(p.required for p in c.params)))
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "all"])
def test_every_option_takes_nonsense_in_a_line(
    name: str, every: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is an empty file: whatever an option makes of it, one line says what is wrong, and nothing is written.

    Each option takes three of the texts, the next three others; all of them in the slow tests.
    """
    monkeypatch.chdir(tmp_path)
    command = main.commands[name]
    needed = [p for p in command.params if p.required]
    Path("none.onnx").touch()
    Path("images").mkdir()
    there = sorted(tmp_path.iterdir())
    values = {"calib": "images", "data": "images"}
    base = [
        word
        for p in needed
        for word in ([p.opts[0], values.get(p.name or "", "out")] if isinstance(p, click.Option) else ["none.onnx"])
    ]
    valued = [p for p in command.params if isinstance(p, click.Option) and not p.is_flag]
    assert valued
    for number, option in enumerate(valued):
        for text in NONSENSE if every else (NONSENSE * 2)[3 * number % len(NONSENSE) :][:3]:
            result = CliRunner().invoke(main, [name, *base, option.opts[0], text])
            what = f"{name} {option.opts[0]} {text[:20]!r}: {result.output[:LONGEST]}"
            assert result.exit_code in {1, 2}, what
            lines = [line for line in result.stderr.splitlines() if not line.startswith("Warning: ")]
            assert lines[-1].startswith("Error: "), what
            assert len(lines[-1]) <= longest(lines[-1]), what
            assert lines[-1].isprintable(), what
            assert "unexpected" not in result.stderr, what
            assert sorted(tmp_path.iterdir()) == there, what


@rows(CASES)
def test_options(case: Case, hostile: Hostile) -> None:
    hostile(case)
