"""A SqueezeNet-like network: integer convolutions and CPU time against ONNX Runtime's own W8A8 file.

usage: python benchmarks/squeezenet.py [--side 224] [--runs 30] [--threads 1]

SqueezeNet 1.1: a stem, eight fire modules, a last Conv with Relu and GlobalAveragePool behind it; random He weights and noise, so
that speed, kernels and output error are what the table tells, not accuracy. All files take turns; CPU time is the process's own:
other work on the machine counts less. Writes results/squeezenet.json and results/squeezenet.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from _record import header
from latency import peer
from onnx import TensorProto, helper, numpy_helper

import mrecg_onnx
from mrecg_onnx.measures import sqnr_db
from mrecg_onnx.running import fused_op_counts, open_session, run_padded

RESULTS = Path(__file__).parent / "results"
#: Squeeze and expand widths of the fire modules; a MaxPool stands in front of those in POOLED.
FIRES = [(16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256)]
POOLED = (0, 2, 4)
CLASSES = 1000
CALIBRATION = 16


class _Builder:
    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def op(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def conv(self, x: str, cin: int, cout: int, size: int, name: str, stride: int = 1) -> str:
        """Conv and Relu with He weights and small biases."""
        weight = self.random.standard_normal((cout, cin, size, size)) * np.sqrt(2 / (cin * size * size))
        bias = self.random.standard_normal(cout) * 0.1
        for part, array in (("weight", weight), ("bias", bias)):
            self.constants.append(numpy_helper.from_array(array.astype(np.float32), f"{name}.{part}"))
        pad = size // 2 if stride == 1 else 0
        y = self.op("Conv", [x, f"{name}.weight", f"{name}.bias"], name, pads=[pad] * 4, strides=[stride] * 2)
        return self.op("Relu", [y], f"{name}_relu")


def squeezenet(side: int) -> onnx.ModelProto:
    """The network for images [N, 3, side, side]."""
    b = _Builder()
    x, channels = b.conv("input", 3, 64, 3, "stem", stride=2), 64
    for i, (squeeze, expand) in enumerate(FIRES):
        if i in POOLED:
            x = b.op("MaxPool", [x], f"pool{i}", kernel_shape=[3, 3], strides=[2, 2])
        s = b.conv(x, channels, squeeze, 1, f"fire{i}_squeeze")
        sides = [b.conv(s, squeeze, expand, size, f"fire{i}_expand{size}") for size in (1, 3)]
        x, channels = b.op("Concat", sides, f"fire{i}", axis=1), 2 * expand
    x = b.op("GlobalAveragePool", [b.conv(x, channels, CLASSES, 1, "last")], "average")
    b.op("Flatten", [x], "scores")
    graph = helper.make_graph(
        b.nodes,
        "squeezenet",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, side, side])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", CLASSES])],
        b.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def timed(files: dict[str, Path], x: np.ndarray, runs: int, threads: int) -> dict[str, dict[str, float]]:
    """Medians of CPU and wall seconds a run, files in turn; each timed run follows an untimed one of the same file."""
    sessions = {name: open_session(path, threads=threads) for name, path in files.items()}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in sessions}
    for _ in range(runs + 3):
        for name, session in sessions.items():
            session.run(None, {"input": x})
            start = time.process_time(), time.perf_counter()
            session.run(None, {"input": x})
            taken[name].append((time.process_time() - start[0], time.perf_counter() - start[1]))
    columns = {name: list(zip(*pairs[3:], strict=True)) for name, pairs in taken.items()}
    return {n: {"cpu": statistics.median(c[0]), "wall": statistics.median(c[1])} for n, c in columns.items()}


def quantized(fp32: Path, out: Path, side: int, **settings: Any) -> Path:
    noise = np.random.default_rng(1).standard_normal((CALIBRATION, 3, side, side)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "calib.npy", noise)
        chosen = mrecg_onnx.Settings(method="nearest", equalize="off", threads=1, **settings)
        mrecg_onnx.quantize(fp32, Path(folder) / "calib.npy", chosen, output=out)
    return out


def row(
    name: str, path: Path, found: dict[str, float], feed: dict[str, np.ndarray], wanted: np.ndarray
) -> dict[str, Any]:
    """One line of the table."""
    ops = fused_op_counts(path)
    scores = next(iter(run_padded(open_session(path), feed).values()))
    return {
        "file": name, "cpu_ms": round(1e3 * found["cpu"], 2), "wall_ms": round(1e3 * found["wall"], 2),
        "integer": ops.get("QLinearConv", 0), "float": ops.get("Conv", 0) + ops.get("FusedConv", 0),
        "sqnr_db": None if name == "FP32" else round(float(sqnr_db(wanted, scores)), 1), "ops": dict(ops),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    build = Path("build") / "benchmarks"
    build.mkdir(parents=True, exist_ok=True)
    fp32 = build / "squeezenet.onnx"
    onnx.save(squeezenet(args.side), fp32)
    ours = {
        f"W{w}A{a}": quantized(fp32, build / f"squeezenet-w{w}a{a}.onnx", args.side, wbits=w, abits=a)
        for w, a in ((8, 8), (4, 8), (4, 4))
    }
    ours["W8A8, last Conv in float"] = quantized(
        fp32, build / "squeezenet-float-last.onnx", args.side, wbits=8, abits=8, exclude=("^last$",)
    )
    files = {"FP32": fp32, "ORT W8A8": peer(fp32, args.side), **ours}
    x = np.random.default_rng(2).standard_normal((1, 3, args.side, args.side)).astype(np.float32)
    found = timed(files, x, args.runs, args.threads)
    feed = {"input": np.random.default_rng(3).standard_normal((4, 3, args.side, args.side)).astype(np.float32)}
    wanted = next(iter(run_padded(open_session(fp32), feed).values()))
    rows = [row(name, path, found[name], feed, wanted) for name, path in files.items()]
    about = header()
    (RESULTS / "squeezenet.json").write_text(json.dumps({"header": about, "rows": rows}, indent=1) + "\n")
    peers = next(r["cpu_ms"] for r in rows if r["file"] == "ORT W8A8")
    layers = 2 + 3 * len(FIRES)
    text = (
        f"By `{about['command']}`, {about['date']}: random weights, {args.side} x {args.side}, batch 1, "
        f"{args.threads} thread(s), medians of {args.runs} runs in turn. ORT W8A8 is the file of ONNX Runtime's own "
        "quantize_static, QDQ, per channel; the others are ours, rounded to nearest. SQNR of the scores against FP32 on noise."
    )
    head = "| file | integer convolutions | CPU ms | against ORT W8A8 | wall ms | SQNR, dB |"
    lines = ["# A SqueezeNet-like network", "", text, "", head, "|---|---|---|---|---|---|"]
    for r in rows:
        cells = [r["file"], f"{r['integer']} of {layers}", r["cpu_ms"], f"{r['cpu_ms'] / peers:.2f}", r["wall_ms"]]
        lines.append(f"| {' | '.join(map(str, cells))} | {'' if r['sqnr_db'] is None else r['sqnr_db']} |")
    (RESULTS / "squeezenet.md").write_text("\n".join([*lines, "", f"Machine: {about['machine']}."]) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
