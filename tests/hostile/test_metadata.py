"""What a quantized file says of itself, damaged, made up or of another tool, into the commands that read it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from helpers.hostile import Arguments, Case, Hostile, model_and_images, rows
from onnx import TensorProto, helper, numpy_helper

#: Sets a terminal's title, clears its screen, goes back in the line, turns the text round; and what a browser would run.
SLY = "\x1b]0;title\x07\x1b[2J\r\n\u202e\x9b31m<script>alert(1)</script>"
DEEP = "[" * 100_000
DEEP_OBJECT = '{"a":' * 100_000
LONG = "n" * 100_000
DIGITS = "9" * 10_000

VALIDATE = ("validate", "model.onnx", "quant.onnx", "--data", "images", "--labels", "none", "--repeats", "0")
CONVERT = ("convert", "quant.onnx", "--container", "packed", "-o", "out.onnx")
QONNX = ("convert", "quant.onnx", "--target", "qonnx", "-o", "out.onnx")
RUNTIMES = ("runtimes", "quant.onnx", "--only", "onnxruntime-cpu", "--data", "images", "--runs", "1")
BENCHMARK = ("benchmark", "model.onnx", "quant.onnx", "--runs", "1", "--threads", "1")
INSPECT = ("inspect", "quant.onnx")
QUANTIZE = ("quantize", "quant.onnx", "--calib", "images", "--method", "nearest")

PREPROCESS, RANGES, SOURCE = "mrecg_onnx.preprocess", "mrecg_onnx.input_ranges", "mrecg_onnx.source_sha256"
CONTAINER, TARGET, REQUIRES = "mrecg_onnx.container", "mrecg_onnx.target", "mrecg_onnx.requires"
BITS, VERSION = "mrecg_onnx.bits", "mrecg_onnx.version"
#: What ``inspect`` reads as JSON, and what it shows as it is.
READ = (
    PREPROCESS,
    CONTAINER,
    TARGET,
    *(f"mrecg_onnx.{name}" for name in ("settings", "units", "protected", "calibration")),
)
SHOWN = (SOURCE, VERSION)


@cache
def quantized() -> bytes:
    """What ``quantize`` makes of the float model, rounded to nearest."""
    import mrecg_onnx

    with tempfile.TemporaryDirectory() as folder:
        model_and_images(Path(folder))
        settings = mrecg_onnx.Settings(method="nearest", threads=1, equalize="off")
        made = mrecg_onnx.quantize(Path(folder, "model.onnx"), Path(folder, "images"), settings)
    return made.model.SerializeToString()


def saying(arguments: Arguments, entries: dict[str, Any], *, twice: bool = False) -> Callable[[Path], Arguments]:
    """A quantized file with other entries of metadata, None for none; JSON where they are not text."""

    def make(folder: Path) -> Arguments:
        model_and_images(folder)
        model = onnx.load_model_from_string(quantized())
        kept = [entry for entry in model.metadata_props if twice or entry.key not in entries]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)
        for key, value in entries.items():
            if value is not None:
                model.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
        (folder / "quant.onnx").write_bytes(model.SerializeToString())
        return arguments

    return make


def stored(**other: Any) -> dict[str, Any]:
    """An entry on preprocessing with other values."""
    entry = next(e for e in onnx.load_model_from_string(quantized()).metadata_props if e.key == PREPROCESS)
    return {PREPROCESS: json.loads(entry.value) | other}


def needing(*rows_: dict[str, Any]) -> dict[str, Any]:
    row = {"package": "onnxruntime", "version": "1.0", "reason": "nothing", "otherwise": "slower"}
    return {REQUIRES: [row | other for other in rows_]}


# --- files of other tools --------------------------------------------------------------------------------------------


def _graph(nodes: list[onnx.NodeProto], constants: dict[str, Any], opset: int = 21, **domains: int) -> onnx.ModelProto:
    """A graph from ``x`` [N, 8] to ``y``."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [
            value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(value, name)
            for name, value in constants.items()
        ],
    )
    imports = [
        helper.make_opsetid("", opset),
        *(helper.make_opsetid(d.replace("_", "."), v) for d, v in domains.items()),
    ]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def _scales() -> dict[str, Any]:
    return {
        "s": np.float32(0.1), "z": np.uint8(128), "w": np.ones((8, 4), np.int8), "wz": np.int8(0), "ys": np.float32(0.1),
    }  # fmt: skip


def operator_form() -> onnx.ModelProto:
    """ONNX Runtime's QOperator form."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("QLinearMatMul", ["q", "s", "z", "w", "s", "wz", "ys", "z"], ["r"]),
        helper.make_node("DequantizeLinear", ["r", "ys", "z"], ["y"]),
    ]
    return _graph(nodes, _scales())


def dynamic_form() -> onnx.ModelProto:
    """ONNX Runtime's dynamic quantization."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
        helper.make_node("MatMulInteger", ["q", "w", "qz", "wz"], ["r"]),
        helper.make_node("Cast", ["r"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "qs"], ["y"]),
    ]
    return _graph(nodes, {"w": np.ones((8, 4), np.int8), "wz": np.int8(0)})


def both_forms() -> onnx.ModelProto:
    """QDQ with 4-bit weights in blocks, and zero points of another type."""
    weight = helper.make_tensor("w", TensorProto.INT4, [8, 4], [1] * 32)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["f"]),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["v"], axis=0, block_size=4),
        helper.make_node("MatMul", ["f", "v"], ["y"]),
    ]
    return _graph(nodes, {"s": np.float32(0.1), "z": np.int16(0), "ws": np.ones((2, 4), np.float32), "w": weight})


OTHERS: dict[str, Callable[[], onnx.ModelProto]] = {
    "operators on codes": operator_form,
    "dynamic quantization": dynamic_form,
    "4-bit weights in blocks": both_forms,
}


def of_another_tool(made: Callable[[], onnx.ModelProto], arguments: Arguments) -> Callable[[Path], Arguments]:
    def make(folder: Path) -> Arguments:
        model_and_images(folder)
        (folder / "quant.onnx").write_bytes(made().SerializeToString())
        return arguments

    return make


# --- preprocessing ---------------------------------------------------------------------------------------------------

NO_JSON = {
    "nested 100,000 deep": DEEP,
    "objects nested 100,000 deep": DEEP_OBJECT,
    "a number of 10,000 digits": DIGITS,
    "that ends in the middle": '{"mean": [0.485, 0.45',
    "nothing at all": "",
    "with what a terminal obeys": SLY,
    "a list": "[1, 2]",
    "a number": "1e400",
    "null": "null",
}
ODD_VALUES: dict[str, dict[str, Any]] = {
    "mean of a million values": {"mean": [0.5] * 1_000_000},
    "mean that is text": {"mean": SLY},
    "mean of NaN": {"mean": [float("nan")] * 3},
    "std of 0": {"std": [0.0, 1.0, 1.0]},
    "scale that is infinite": {"scale": float("inf")},
    "scale that is an object": {"scale": {"a": 1}},
    "crop below nothing": {"crop": [-5, 16]},
    "crop of one side": {"crop": [16]},
    "crop of halves": {"crop": [16.5, 16.5]},
    "resize that is true": {"resize": True},
    "layout that is a list": {"layout": ["nchw"]},
    "color with what a terminal obeys": {"color": SLY},
    "interpolation of 100,000 letters": {"interpolation": LONG},
    "a key of 100,000 letters": {LONG: 1},
    "a key with what a terminal obeys": {SLY: 1},
}

CASES = [
    *(
        Case(f"preprocessing, {name}", saying(VALIDATE, {PREPROCESS: text}), says=("quant.onnx", PREPROCESS))
        for name, text in NO_JSON.items()
    ),
    *(
        Case(f"preprocessing, {name}", saying(VALIDATE, stored(**values)), says=("quant.onnx",))
        for name, values in ODD_VALUES.items()
    ),
    Case(
        "preprocessing, std of 1e-320", saying(VALIDATE, stored(std=[1e-320] * 3)), code=2, says=("out of the range",)
    ),
    Case(
        "preprocessing, crop of a million a side", saying(VALIDATE, stored(crop=[10**6, 10**6])), code=2, says=("crop",)
    ),
    Case("preprocessing, resize to a billion", saying(VALIDATE, stored(resize=10**9)), says=("images",)),
    Case(
        "preprocessing, nested deep, to runtimes", saying(RUNTIMES, {PREPROCESS: DEEP}), says=("quant.onnx", PREPROCESS)
    ),
    Case(
        "preprocessing, nested deep, and an option",
        saying((*VALIDATE, "--mean", "0"), {PREPROCESS: DEEP}),
        says=("quant.onnx", PREPROCESS),
    ),
    Case("preprocessing twice", saying(VALIDATE, {PREPROCESS: DEEP}, twice=True), says=("quant.onnx",)),
    # ranges
    *(
        Case(f"ranges, {name}", saying(VALIDATE, {RANGES: text}), says=("quant.onnx", RANGES))
        for name, text in NO_JSON.items()
        if name != "a list"
    ),
    Case("ranges, of NaN", saying(VALIDATE, {RANGES: {"input": [float("nan"), 1]}}), says=(RANGES,)),
    Case("ranges, turned round", saying(VALIDATE, {RANGES: {"input": [1, -1]}}), says=(RANGES,)),
    Case("ranges, of three numbers", saying(VALIDATE, {RANGES: {"input": [1, 2, 3]}}), says=(RANGES,)),
    Case("ranges, of text", saying(VALIDATE, {RANGES: {"input": ["a", SLY]}}), says=(RANGES,)),
    Case("ranges, of no input", saying(VALIDATE, {RANGES: {SLY: [0, 1]}}), code=0, lines=("Warning: ",)),
    Case(
        "ranges, a million inputs",
        saying(VALIDATE, {RANGES: {str(n): [0, 1] for n in range(1_000_000)}}),
        code=0,
        megabytes=500,
    ),  # the file itself has 17 MB
    # source
    Case("source, another file's", saying(VALIDATE, {SOURCE: "0" * 64}), says=("quant.onnx", "model.onnx", "SHA-256")),
    Case("source, of 100,000 letters", saying(VALIDATE, {SOURCE: LONG}), says=("SHA-256",)),
    Case("source, with what a terminal obeys", saying(VALIDATE, {SOURCE: SLY}), says=("SHA-256",)),
    # container, target
    *(
        Case(f"container, {name}", saying(CONVERT, {CONTAINER: text}), says=("quant.onnx", CONTAINER))
        for name, text in NO_JSON.items()
    ),
    Case("container, unknown", saying(CONVERT, {CONTAINER: {"name": SLY}}), says=("container",)),
    Case("container, of 100,000 letters", saying(CONVERT, {CONTAINER: {"name": LONG}}), says=(CONTAINER,)),
    Case(
        "container, another than it is",
        saying(CONVERT, {CONTAINER: {"name": "typed", "opset": 19, "ir_version": 9}}),
        code=0,
        writes=("out.onnx",),
    ),
    Case(
        "container, of Quant nodes that are not there",
        saying(CONVERT, {CONTAINER: {"name": "qonnx"}}),
        code=0,
        writes=("out.onnx",),
    ),
    Case(
        "container, opset of 10^9",
        saying(CONVERT, {CONTAINER: {"name": "typed", "opset": 10**9, "ir_version": 9}}),
        says=(CONTAINER,),
    ),
    Case(
        "container, opset that is true",
        saying(CONVERT, {CONTAINER: {"name": "typed", "opset": True, "ir_version": 9}}),
        says=(CONTAINER,),
    ),
    Case("target, unknown", saying(CONVERT, {TARGET: {"name": SLY}}), code=2, says=("target",)),
    Case("target, a path to a file", saying(CONVERT, {TARGET: {"name": "/etc/passwd"}}), code=2, says=("target",)),
    Case("target, of 4,000 letters", saying(CONVERT, {TARGET: {"name": "n" * 4000}}), code=2, says=("target",)),
    # what it needs
    Case(
        "needs, version 999 of ONNX Runtime",
        saying(VALIDATE, needing({"version": "999", "otherwise": "wrong values"})),
        says=("999",),
    ),
    Case(
        "needs, something with what a terminal obeys",
        saying(VALIDATE, needing({"version": "999", "reason": SLY, "otherwise": "wrong values"})),
        says=("999",),
    ),
    Case(
        "needs, a version of 10,000 digits",
        saying(VALIDATE, needing({"version": DIGITS, "otherwise": "wrong values"})),
        code=0,
    ),
    Case("needs, 100,000 rows", saying(VALIDATE, needing(*[{}] * 100_000)), code=0),
    Case("needs, nested deep", saying(BENCHMARK, {REQUIRES: DEEP}), code=0, cpu_s=10, slow=True),
    # widths
    *(
        Case(f"widths, {name}", saying(QONNX, {BITS: text}), says=("quant.onnx", BITS))
        for name, text in NO_JSON.items()
    ),
    Case("widths, of 10^9", saying(QONNX, {BITS: {"input": 10**9}}), says=(BITS,)),
    Case("widths, of tensors that are not there", saying(QONNX, {BITS: {SLY: 4}}), code=0, writes=("out.onnx",)),
    # version
    Case("no version", saying(CONVERT, {VERSION: None}), says=("quant.onnx", "was not written by")),
    Case("version with what a terminal obeys", saying(VALIDATE, {VERSION: SLY}), code=0),
    Case("to quantize", saying(QUANTIZE, {VERSION: SLY}), says=("quantized",)),
    # all that inspect shows of a result
    *(
        Case(
            f"inspect, {key.removeprefix('mrecg_onnx.')} {name}", saying(INSPECT, {key: text}), says=("quant.onnx", key)
        )
        for key in READ
        for name, text in (("nested deep", DEEP), ("with what a terminal obeys", SLY))
    ),
    *(
        Case(f"inspect, {key.removeprefix('mrecg_onnx.')} {name}", saying(INSPECT, {key: text}), code=0)
        for key in SHOWN
        for name, text in (("of 100,000 letters", LONG), ("with what a terminal obeys", SLY))
    ),
    # other tools
    *(
        Case(f"{name}, to quantize", of_another_tool(make, QUANTIZE), says=("quant.onnx", "quantized"))
        for name, make in OTHERS.items()
    ),
    *(
        Case(f"{name}, to convert", of_another_tool(make, CONVERT), says=("quant.onnx", "not written by"))
        for name, make in OTHERS.items()
    ),
    *(
        Case(f"{name}, to validate", of_another_tool(make, VALIDATE), says=("quant.onnx", "not a quantized version"))
        for name, make in OTHERS.items()
    ),
]


@rows(CASES)
def test_metadata(case: Case, hostile: Hostile) -> None:
    hostile(case)
