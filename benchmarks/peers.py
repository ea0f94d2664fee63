"""Other tools beside this one on ResNet-20: the same images, widths and referee, first and last layer at 8 bits.

usage: python benchmarks/peers.py [--data ../shared] --python PYTHON [--tools NAME ...] [--bits W8A8 ...] [--again] [--draw]

`--python` is an interpreter of an environment with onnxruntime, nncf and aimet-onnx. Each tool gets the whole calibration
folder, preprocessed as the referee does, and its own defaults but for: weights a scale a channel; ONNX Runtime's three
calibrators and AIMET's two ways to find ranges, of which the best counts (chosen on the validation images, in their favour);
AIMET's AdaRound with 500 iterations a layer. Files with 4-bit types are run without optimizations, too, and the better run
counts: at its default level ONNX Runtime computes something else of some (results/versions.md). NNCF takes 8 bits alone. What
a tool cannot write is a row that says so. Ours: rounding to nearest and the default method, 1,000 iterations a unit; rows
that main.json has of it are taken from there. CPU seconds of the whole process on one thread. Rows are merged by key into
benchmarks/results/peers.json (.csv); peers.md is written from them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from _experiment import BUILD, RESULTS, Rows, arguments, machine, measure_missing, referee, timed

MODEL = "resnet20_cifar10"
SET = "cifar10"
WIDTHS = ("W8A8", "W4A8", "W4A4", "W3A3", "W2A4")
#: What every peer starts with: model, folder and file; the images as the referee feeds them.
START = """
import sys, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import numpy as np, onnx
from PIL import Image
model, folder, out, wbits, abits = *sys.argv[1:4], *map(int, sys.argv[4:6])
mean, std = np.array([.485, .456, .406], np.float32), np.array([.229, .224, .225], np.float32)
graph = onnx.load(model)
name = graph.graph.input[0].name
def load(path):
    pixels = np.asarray(Image.open(path).convert("RGB"), np.float32) / 255
    return {name: np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1)[None], np.float32)}
files = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png"})
layers = [n for n in graph.graph.node if n.op_type in {"Conv", "Gemm", "MatMul"}]
ends = layers[0], layers[-1]
"""
ONNXRUNTIME = """
import onnxruntime, onnxruntime.quantization as q
types = {8: (q.QuantType.QInt8, q.QuantType.QUInt8), 4: (q.QuantType.QInt4, q.QuantType.QUInt4)}
if wbits not in types or abits not in types:
    sys.exit("REFUSED no type of that width")
class Reader(q.CalibrationDataReader):
    def __init__(self): self.left = iter(files)
    def get_next(self): return next(({k: v for k, v in load(f).items()} for f in self.left), None)
if 4 in (wbits, abits):
    graph = onnx.version_converter.convert_version(graph, 21)
    onnx.save(graph, out + ".21.onnx"); model = out + ".21.onnx"
over = {}
for node in ends:
    over[node.input[1]] = [{"quant_type": types[8][0], "axis": 0, "symmetric": True}]
    over[node.input[0]] = [{"quant_type": types[8][1]}]
q.quantize_static(model, out, Reader(), per_channel=True, weight_type=types[wbits][0], activation_type=types[abits][1],
    calibrate_method=getattr(q.CalibrationMethod, sys.argv[6]), extra_options={"TensorQuantOverrides": over})
print("VERSION", onnxruntime.__version__)
"""
NNCF = """
import nncf
if (wbits, abits) != (8, 8):
    sys.exit("REFUSED 8 bits alone")
onnx.save(nncf.quantize(graph, nncf.Dataset(files, load), subset_size=len(files)), out)
print("VERSION", nncf.__version__)
"""
AIMET = """
from importlib import metadata
import aimet_onnx
from aimet_onnx.common.defs import qtype
types = {"param_type": qtype.int(wbits), "activation_type": qtype.int(abits)}
scheme, _, adaround = sys.argv[6].partition("+")
sim = aimet_onnx.QuantizationSimModel(graph, quant_scheme=scheme, providers=["CPUExecutionProvider"], **types)
for node in ends:
    for tensor in node.input[:2]:
        if tensor in sim.qc_quantize_op_dict:
            sim.qc_quantize_op_dict[tensor].set_bitwidth(8)
data = [load(f) for f in files]
batches = [{name: np.concatenate([d[name] for d in data[i:i + 32]])} for i in range(0, len(data), 32)]
if adaround:
    aimet_onnx.apply_adaround(sim, batches, num_iterations=500)
sim.compute_encodings(batches)
onnx.save(sim.to_onnx_qdq(), out)
print("VERSION", metadata.version("aimet-onnx"))
"""
#: By name: title, program (None is this one) and its variants, of which the best counts.
TOOLS: dict[str, tuple[str, str | None, tuple[str, ...]]] = {
    "nearest": ("ours, nearest", None, ("nearest",)),
    "mrecg": ("ours, learned (default)", None, ("mrecg",)),
    "onnxruntime": ("ONNX Runtime, quantize_static", ONNXRUNTIME, ("MinMax", "Percentile", "Entropy")),
    "nncf": ("NNCF", NNCF, ("",)),
    "aimet": ("AIMET, nearest", AIMET, ("min_max", "tf_enhanced")),
    "aimet-adaround": ("AIMET, AdaRound", AIMET, ("tf_enhanced+adaround",)),
}


def ours() -> dict[str, dict[str, Any]]:
    """Rows of main.json at the default settings, as rows of this table: the same network, images, referee and method."""
    rows = json.loads((RESULTS / "main.json").read_text())
    return {
        f"peers-{row['method']}-{bits}": {
            "tool": row["method"], "bits": bits, "version": "this", "header": row["header"],
            **{name: row["referee"][name] for name in ("top1", "against_top1", "sqnr_db")},
        }
        for row in rows.values()
        if row["model"] == MODEL and row["method"] in {"nearest", "mrecg"} and row["iters"] in {0, 1000}
        for bits in [f"W{row['settings']['wbits']}A{row['settings']['abits']}"]
        if bits in WIDTHS
    }  # fmt: skip


def measure(key: str, point: dict[str, Any], args: Any) -> dict[str, Any]:
    _, program, variants = TOOLS[point["tool"]]
    rows = [_one(key, program, variant, point["bits"], args) for variant in variants]
    done = [row for row in rows if "top1" in row]
    if not done:
        return {**point, **rows[0]}
    best = max(done, key=lambda row: row["top1"])
    return {**point, **best, "cpu": round(sum(row["cpu"] for row in done), 1)}


def _one(key: str, program: str | None, variant: str, bits: str, args: Any) -> dict[str, Any]:
    wbits, abits = re.findall(r"\d+", bits)
    model = (args.data / "models" / f"{MODEL}.onnx").resolve()
    folder = (args.data / "data" / SET / "calib").resolve()
    out = (BUILD / f"{key}-{variant or 'plain'}.onnx").resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    if program is None:
        mrecg = Path(sys.executable).parent / "mrecg-onnx"
        command = [str(mrecg), "quantize", str(model), "--calib", str(folder), "--method", variant, "--threads", "1"]
        command += ["--wbits", wbits, "--abits", abits, "-o", str(out), "--force", "-q"]
    else:
        command = [args.python, "-c", START + program, str(model), str(folder), str(out), wbits, abits, variant]
    try:
        found = timed(command)
    except SystemExit as error:
        said = str(error).splitlines()
        refused = next((line.removeprefix("REFUSED ") for line in said if line.startswith("REFUSED ")), said[-1][-200:])
        return {"variant": variant, "failed": refused}
    said = found.pop("said")
    version = re.search(r"^VERSION (\S+)", said, re.MULTILINE)
    row = {"variant": variant, "version": version[1] if version else "this", **found, "bytes": out.stat().st_size}
    try:
        levels = ("all", "off") if program is not None and "4" in bits else ("all",)
        measured = max(
            (referee(args.data, out, SET, model, level) | {"level": level} for level in levels), key=lambda m: m["top1"]
        )
    except subprocess.CalledProcessError as error:
        return {"variant": variant, "failed": f"written, does not open: {error.stderr.strip().splitlines()[-1][-200:]}"}
    return {**row, **{k: measured[k] for k in ("top1", "against_top1", "sqnr_db", "level")}}


def write(store: Rows) -> None:
    kept = ours() | store.all()
    rows = list(kept.values())
    fp32 = next((row["against_top1"] for row in rows if "top1" in row), 0.0)
    lines = [
        "# Peers",
        "",
        "Written by `python benchmarks/peers.py`, whose head says what is measured; commands, dates and versions of all rows in",
        f"peers.json. ResNet-20 on CIFAR-10, FP32 top-1 {fp32:.4f}; first",
        "and last layer at 8 bits in every row, one calibration folder, one referee (ONNX Runtime at its default level).",
        "",
        f"| tool | {' | '.join(WIDTHS)} | CPU s |",
        f"|---|{'---|' * len(WIDTHS)}---|",
    ]
    notes: dict[str, None] = {}
    for tool, (title, _, _) in TOOLS.items():
        mine = {row["bits"]: row for row in rows if row["tool"] == tool}
        if not mine:
            continue
        version = next((f" {row['version']}" for row in mine.values() if row.get("version", "this") != "this"), "")
        cells = []
        for bits in WIDTHS:
            row = mine.get(bits)
            if row is None:
                cells.append("")
            elif "top1" in row:
                cells.append(f"{row['top1']:.4f}")
            else:
                cells.append("-")
                notes[f"{title}, {bits}: {row['failed']}"] = None
        seconds = sorted(row["cpu"] for row in mine.values() if "cpu" in row)
        span = f"{seconds[0]:.0f} to {seconds[-1]:.0f}" if seconds else ""
        lines.append(f"| {title}{version} | {' | '.join(cells)} | {span} |")
    lines += ["", "Not measured:", "", *[f"- {note}" for note in notes]] if notes else []
    lines += ["", machine(kept)]
    (RESULTS / "peers.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = arguments(__doc__, quick="rounding to nearest and what needs no learning alone")
    parser.add_argument("--python", help="interpreter with onnxruntime, nncf and aimet-onnx")
    parser.add_argument("--tools", nargs="*", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--bits", nargs="*", default=list(WIDTHS), choices=list(WIDTHS))
    args = parser.parse_args()
    tools = [t for t in args.tools if not args.quick or t not in {"mrecg", "aimet-adaround"}]
    there = ours()
    points = {
        f"peers-{t}-{b}": {"tool": t, "bits": b} for t in tools for b in args.bits if f"peers-{t}-{b}" not in there
    }
    measure_missing(Rows("peers"), points, measure, write, args)
