"""Other tools beside this one on ResNet-20: the same images, widths and referee, first and last layer at 8 bits.

usage: python benchmarks/peers.py [--data ../shared] --python PYTHON [--ppq PYTHON] [--tools NAME ...] [--bits W8A8 ...]
       [--again] [--draw]

`--python` is an interpreter of an environment with onnxruntime, nncf and aimet-onnx, `--ppq` of one with esp-ppq and torch.
Each tool gets the network as ONNX Runtime folds it (batch norms in the convolutions, no chains of constants; the tools'
documentation asks for that first), the whole calibration folder, preprocessed as the referee does, weights a scale a channel,
and its own defaults but for what is told here. Where several ways are told, each is run and the best counts (chosen on the
validation images, in the tool's favour):

- At 8 bits in every row: weights and input of the first and of the last layer, and the logits.
- ONNX Runtime: three calibrators.
- AIMET: two ways to find ranges; AdaRound with 500 iterations a layer, and with 10,000, its default, where a row says so (it
  takes twenty minutes of a core a row).
- esp-ppq: its ONNX Runtime quantizer, with unsigned codes for activations (its symmetric ones lose a bit behind ReLU), and inputs
  of sums in scales of their own (one scale is for other chips); LSQ at the highest of the rates that its tutorial tries, 1e-4.
  Its exporter knows 8 bits alone: codes of fewer lie in 8 bits, and a Clip before each quantizer holds activations to theirs,
  which is the same function.
- A width that a tool simulates and cannot write (AIMET below 4 bits) is run by the tool itself, on the referee's images.
- Ours: rounding to nearest, the default method with its 1,000 iterations a unit, `--preset balanced`, and the same with skip
  paths as narrow as everything else, which is how the others have them: by default ours have 8 bits. Rows that main.json has
  of the first two are taken from there, unless `--again` measures them.

Files with 4-bit types are run without optimizations, too, and the better run counts: at its default level ONNX Runtime computes
something else of some (results/versions.md). What a tool cannot do is a row that says so. CPU seconds of the whole process on
one thread, of all ways together. Rows are kept by key in benchmarks/results/peers.json (.csv); peers.md is written from them.
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
#: What every peer starts with: folded model, folders and file; the images as the referee feeds them; tensors of 8 bits.
START = """
import sys, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import numpy as np, onnx, onnxruntime
from PIL import Image
original, calib, val, out, wbits, abits, variant = *sys.argv[1:5], *map(int, sys.argv[5:7]), sys.argv[7]
mean, std = np.array([.485, .456, .406], np.float32), np.array([.229, .224, .225], np.float32)
model = out + ".folded.onnx"
options = onnxruntime.SessionOptions()
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
options.optimized_model_filepath = model
onnxruntime.InferenceSession(original, options, providers=["CPUExecutionProvider"])
graph = onnx.load(model)
for domain in [d for d in graph.opset_import if d.domain not in {"", "ai.onnx"}]:
    graph.opset_import.remove(domain)
onnx.save(graph, model)
name = graph.graph.input[0].name
def pixels(path):
    return (np.asarray(Image.open(path).convert("RGB"), np.float32) / 255 - mean) / std
def load(*paths):
    return {name: np.ascontiguousarray(np.stack([pixels(p) for p in paths]).transpose(0, 3, 1, 2), np.float32)}
files = sorted(p for p in Path(calib).rglob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png"})
batches = [load(*files[i:i + 32]) for i in range(0, len(files), 32)]
def top1(predict):
    items = [(f, i) for i, c in enumerate(sorted(Path(val).iterdir())) for f in sorted(c.glob("*.jpg"))]
    right = 0
    for part in (items[i:i + 50] for i in range(0, len(items), 50)):
        right += int((predict(load(*[f for f, _ in part])).argmax(1) == [c for _, c in part]).sum())
    return right / len(items)
layers = [n for n in graph.graph.node if n.op_type in {"Conv", "Gemm", "MatMul"}]
makers = {tensor: n for n in graph.graph.node for tensor in n.output}
first, last = layers[0], layers[-1]
inputs = [first.input[0], last.input[0]]
while inputs[-1] in makers and makers[inputs[-1]].op_type in {"Reshape", "Flatten"}:
    inputs.append(makers[inputs[-1]].input[0])
wide = {*inputs, last.output[0], first.input[1], last.input[1]}
"""
ONNXRUNTIME = """
import onnxruntime.quantization as q
types = {8: (q.QuantType.QInt8, q.QuantType.QUInt8), 4: (q.QuantType.QInt4, q.QuantType.QUInt4)}
if wbits not in types or abits not in types:
    sys.exit("REFUSED no type of that width")
class Reader(q.CalibrationDataReader):
    def __init__(self): self.left = iter(files)
    def get_next(self): return next((load(f) for f in self.left), None)
if 4 in (wbits, abits):
    model = out + ".21.onnx"
    onnx.save(onnx.version_converter.convert_version(graph, 21), model)
weights = {first.input[1], last.input[1]}
kinds = {True: {"quant_type": types[8][0], "axis": 0, "symmetric": True}, False: {"quant_type": types[8][1]}}
over = {t: [kinds[t in weights]] for t in wide}
q.quantize_static(model, out, Reader(), per_channel=True, weight_type=types[wbits][0], activation_type=types[abits][1],
    calibrate_method=getattr(q.CalibrationMethod, variant), extra_options={"TensorQuantOverrides": over})
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
scheme, *steps = variant.split("+")
sim = aimet_onnx.QuantizationSimModel(graph, quant_scheme=scheme, providers=["CPUExecutionProvider"], **types)
for tensor in wide & {*sim.qc_quantize_op_dict}:
    sim.qc_quantize_op_dict[tensor].set_bitwidth(8)
if "seqmse" in steps:
    aimet_onnx.apply_seq_mse(sim, batches)
if steps:
    aimet_onnx.apply_adaround(sim, batches, num_iterations=int(steps[-1].removeprefix("adaround")))
sim.compute_encodings(batches)
print("VERSION", metadata.version("aimet-onnx"))
if {wbits, abits} <= {4, 8}:
    onnx.save(sim.to_onnx_qdq(), out)
else:
    print("TOP1", top1(lambda x: sim.session.run(None, x)[0]))
"""
PPQ = """
from importlib import metadata
import torch
from esp_ppq.api import QuantizationSettingFactory, load_onnx_graph, quantize_native_model, register_network_quantizer
from esp_ppq.core import QuantizationPolicy, QuantizationProperty as P, QuantizationStates, TargetPlatform
from esp_ppq.parser import ONNXRUNTIMExporter
from esp_ppq.quantization.quantizer import OnnxruntimeQuantizer
class Quantizer(OnnxruntimeQuantizer):
    def init_quantize_config(self, operation):
        config = super().init_quantize_config(operation)
        tensors = [*config.input_quantization_config, *config.output_quantization_config]
        for tensor, variable in zip(tensors, [*operation.inputs, *operation.outputs]):
            if tensor.state == QuantizationStates.FP32:
                continue
            bits = tensor.num_of_bits = 8 if variable.name in wide else wbits if variable.is_parameter else abits
            tensor.quant_min, tensor.quant_max = 0, 2**bits - 1
            if variable.is_parameter:
                tensor.quant_min, tensor.quant_max = -2 ** (bits - 1), 2 ** (bits - 1) - 1
            else:
                tensor.policy = QuantizationPolicy(P.ASYMMETRICAL + P.LINEAR + P.PER_TENSOR)
        return config
class Exporter(ONNXRUNTIMExporter):
    def __init__(self):
        super().__init__(); self.few = {}
    def insert_quantize_node(self, graph, var, config, op):
        created = super().insert_quantize_node(graph, var, config, op)
        if config.quant_max - config.quant_min < 255:
            ends = (float((c - config.offset.round()) * config.scale) for c in (config.quant_min, config.quant_max))
            self.few[created.name] = tuple(ends)
        return created
register_network_quantizer(Quantizer, TargetPlatform.ONNXRUNTIME)
setting = QuantizationSettingFactory.default_setting()
ranges, *learned = variant.split("+")
setting.quantize_activation_setting.calib_algorithm = ranges
setting.fusion_setting.align_elementwise_to = "None"
if learned:
    kind, rate, steps = learned[0].split()
    setting.lsq_optimization, setting.blockwise_reconstruction = kind == "lsq", kind == "blocks"
    for chosen in (setting.lsq_optimization_setting, setting.blockwise_reconstruction_setting):
        chosen.lr, chosen.steps, chosen.collecting_device = float(rate), int(steps), "cpu"
    setting.blockwise_reconstruction_setting.is_scale_trainable = True
data = [torch.from_numpy(b[name]) for b in batches]
quantized = quantize_native_model(load_onnx_graph(model), data, len(data), None, TargetPlatform.ONNXRUNTIME, inputs=[data[0]],
    setting=setting, device="cpu", collate_fn=lambda x: x)
for operation in quantized.operations.values():
    for tensor, _ in getattr(operation, "config_with_variable", ()):
        tensor.num_of_bits = 8
exporter = Exporter()
exporter.export(out, quantized, remove_activation=False)
graph = onnx.load(out)
for place, node in reversed([*enumerate(graph.graph.node)]):
    if node.name in exporter.few:
        ends = exporter.few[node.name]
        bounds = [onnx.numpy_helper.from_array(np.float32(v), f"{node.name}.{i}") for i, v in enumerate(ends)]
        graph.graph.initializer.extend(bounds)
        held = f"{node.name}.held"
        clip = onnx.helper.make_node("Clip", [node.input[0], *[b.name for b in bounds]], [held], f"{node.name}.clip")
        node.input[0] = held
        graph.graph.node.insert(place, clip)
onnx.save(graph, out)
print("VERSION", metadata.version("esp-ppq"))
"""
#: By name: title, program (None is this one) and its variants, of which the best counts.
TOOLS: dict[str, tuple[str, str | None, tuple[str, ...]]] = {
    "nearest": ("ours, nearest", None, ("--method nearest",)),
    "mrecg": ("ours, learned (default)", None, ("--method mrecg",)),
    "balanced": ("ours, `--preset balanced`", None, ("--preset balanced",)),
    "shared": ("ours, balanced, `--residual shared`", None, ("--preset balanced --residual shared",)),
    "onnxruntime": ("ONNX Runtime, quantize_static", ONNXRUNTIME, ("MinMax", "Percentile", "Entropy")),
    "nncf": ("NNCF", NNCF, ("",)),
    "aimet": ("AIMET, nearest", AIMET, ("min_max", "tf_enhanced")),
    "aimet-adaround": ("AIMET, AdaRound", AIMET, ("tf_enhanced+adaround500",)),
    "aimet-adaround-full": ("AIMET, AdaRound, its 10,000 iterations", AIMET, ("tf_enhanced+adaround10000",)),
    "ppq": ("esp-ppq, nearest", PPQ, ("percentile",)),
    "ppq-lsq": ("esp-ppq, LSQ", PPQ, ("percentile+lsq 1e-4 500",)),
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
    each = {row["variant"]: row.get("top1", row.get("failed")) for row in rows}
    return {**point, **best, "cpu": round(sum(row["cpu"] for row in done), 1), "variants": each}


def _one(key: str, program: str | None, variant: str, bits: str, args: Any) -> dict[str, Any]:
    wbits, abits = re.findall(r"\d+", bits)
    model = (args.data / "models" / f"{MODEL}.onnx").resolve()
    images = (args.data / "data" / SET).resolve()
    out = (BUILD / f"{key}-{re.sub(r'[^a-z0-9]+', '-', variant.lower()) or 'plain'}.onnx").resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    if program is None:
        mrecg = str(Path(sys.executable).parent / "mrecg-onnx")
        command = [mrecg, "quantize", str(model), "--calib", str(images / "calib"), "-o", str(out), "--force", "-q"]
        command += ["--wbits", wbits, "--abits", abits, "--threads", "1", *variant.split()]
    else:
        python = args.ppq if program is PPQ else args.python
        command = [python, "-c", START + program, str(model), str(images / "calib"), str(images / "val"), str(out)]
        command += [wbits, abits, variant]
    try:
        found = timed(command)
    except SystemExit as error:
        said = str(error).splitlines()
        refused = next((line.removeprefix("REFUSED ") for line in said if line.startswith("REFUSED ")), said[-1][-200:])
        return {"variant": variant, "failed": refused}
    said = found.pop("said")
    version, alone = (re.search(rf"^{word} (\S+)", said, re.MULTILINE) for word in ("VERSION", "TOP1"))
    row = {"variant": variant, "version": version[1] if version else "this", **found}
    if alone:
        return {**row, "top1": float(alone[1]), "level": "its own"}
    try:
        levels = ("all", "off") if program in {ONNXRUNTIME, AIMET} and "4" in bits else ("all",)
        measured = max(
            (referee(args.data, out, SET, None if program else model, level) | {"level": level} for level in levels),
            key=lambda m: m["top1"],
        )
    except subprocess.CalledProcessError as error:
        return {"variant": variant, "failed": f"written, does not open: {error.stderr.strip().splitlines()[-1][-200:]}"}
    figures = {k: measured[k] for k in ("top1", "against_top1", "sqnr_db", "level") if k in measured}
    return {**row, "bytes": out.stat().st_size, **figures}


def write(store: Rows) -> None:
    kept = ours() | store.all()
    rows = list(kept.values())
    fp32 = next((row["against_top1"] for row in rows if "against_top1" in row), 0.0)
    lines = [
        "# Peers",
        "",
        "Written by `python benchmarks/peers.py`, whose head says what is measured; commands, dates and versions of all rows,",
        f"and what each way gave, in peers.json. ResNet-20 on CIFAR-10, FP32 top-1 {fp32:.4f}; first and last layer at 8 bits",
        "in every row, one calibration folder, one referee (ONNX Runtime at its default level;",
        "`*`: simulated by the tool, which writes no such file).",
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
                cells.append(f"{row['top1']:.4f}{'*' if row.get('level') == 'its own' else ''}")
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
    parser.add_argument("--ppq", help="interpreter with esp-ppq and torch")
    parser.add_argument("--tools", nargs="*", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--bits", nargs="*", default=list(WIDTHS), choices=list(WIDTHS))
    args = parser.parse_args()
    quick = {"nearest", "onnxruntime", "nncf", "aimet", "ppq"}
    tools = [t for t in args.tools if not args.quick or t in quick]
    there = {} if args.again else ours()
    points = {
        f"peers-{t}-{b}": {"tool": t, "bits": b} for t in tools for b in args.bits if f"peers-{t}-{b}" not in there
    }
    measure_missing(Rows("peers"), points, measure, write, args)
