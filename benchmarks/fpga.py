"""Files for FPGAs in qonnx: through its conversion and cleanup, executed there, against ONNX Runtime.

usage: python benchmarks/fpga.py [--data ../shared] [--model NAME] [--rows NAME ...] [--iters 100] [--images 64] [--qonnx PYTHON]

Each row is quantized by `--method brecq --target qonnx`, first and last layers at 8 bits, and written in both containers. An
interpreter that has qonnx (this one, or `--qonnx PYTHON`) runs QCDQToQuant on the file of QuantizeLinear, Clip and
DequantizeLinear and cleanup on both, counts their Quant nodes by width, and executes them on validation images; ONNX Runtime
runs the first one as written. Rows are merged by key into benchmarks/results/fpga.json (.csv); fpga.md is written from them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _experiment import BUILD, NAMES, RESULTS, SETS, Rows, arguments, machine, measure_missing, measured

#: Settings of each row by its name.
ROWS: dict[str, dict[str, Any]] = {
    "W4A4": {"wbits": 4, "abits": 4},
    "W2A2": {"wbits": 2, "abits": 2},
    "mixed, 3 bits on average": {"avg_wbits": 3.0, "abits": 4},
}
#: What the interpreter with qonnx runs: files and an array of images in, JSON out.
IN_QONNX = """
import json, sys
from collections import Counter
from importlib.metadata import version
import numpy as np
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.infer_shapes import InferShapes
from qonnx.transformation.qcdq_to_qonnx import QCDQToQuant
from qonnx.util.cleanup import cleanup_model
x, found = np.load(sys.argv[1]), {"version": version("qonnx")}
for path in sys.argv[2:]:
    graph = ModelWrapper(path).transform(InferShapes()).transform(QCDQToQuant())
    graph = cleanup_model(graph, override_inpsize=len(x))
    made = execute_onnx(graph, {graph.graph.input[0].name: x})
    kinds = Counter()
    for node in graph.graph.node:
        if node.op_type == "Quant":
            signed = next(a.i for a in node.attribute if a.name == "signed")
            width = float(graph.get_initializer(node.input[3]))
            kind = "weights" if graph.get_initializer(node.input[0]) is not None else "activations"
            kinds[f"{kind} {'INT' if signed else 'UINT'}{width:g}"] += 1
    left = sum(n.op_type in {"QuantizeLinear", "DequantizeLinear"} for n in graph.graph.node)
    found[path] = {"quant": kinds, "left": left, "outputs": made[graph.graph.output[0].name].tolist()}
print(json.dumps(found))
"""


def measure(key: str, point: dict[str, Any], args: Any) -> dict[str, Any]:
    import numpy as np  # noqa: PLC0415 - heavy, and --help does not need them

    import mrecg_onnx  # noqa: PLC0415
    from mrecg_onnx.conversion import convert  # noqa: PLC0415
    from mrecg_onnx.data import open_calibration  # noqa: PLC0415
    from mrecg_onnx.running import input_specs, open_session, run_padded  # noqa: PLC0415

    settings = mrecg_onnx.Settings(
        method="brecq",
        iters=point["iters"],
        target="qonnx",
        threads=args.threads,
        device=args.device,
        **ROWS[point["row"]],
    )
    run, said = measured(key, point["model"], args, settings)
    plain, quant = Path(run.row["file"]), BUILD / f"{key}_quant.onnx"
    convert(plain, "qonnx", output=quant)
    session = open_session(plain, level="off")
    folder = args.data / "data" / SETS[point["model"]] / "val"
    images = open_calibration(folder, input_specs(session), settings.preprocess, samples=point["images"], seed=0)
    feeds = images.load(point["images"])
    written = next(iter(run_padded(session, feeds).values()))
    with tempfile.TemporaryDirectory() as made:
        np.save(Path(made) / "x.npy", next(iter(feeds.values())))
        command = [args.qonnx, "-c", IN_QONNX, str(Path(made) / "x.npy"), str(plain), str(quant)]
        answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    row = {**point, "qonnx": answer["version"], **{k: said[k] for k in ("top1", "against_top1")}}
    for name, path in (("qcdq", plain), ("quant", quant)):
        found = answer[str(path)]
        got = np.array(found["outputs"], np.float32)
        row |= {
            f"{name}_quantizers": found["quant"],
            f"{name}_left": found["left"],
            f"{name}_agreement": float((got.argmax(1) == written.argmax(1)).mean()),
            f"{name}_difference": float(np.abs(got - written).max()),
            f"{name}_bytes": path.stat().st_size,
        }
    plan = run.result.plan
    wanted = [f"weights {layer.wbits}" for layer in plan.quantized_layers]
    wanted += [f"activations {quantizer.bits}" for quantizer in plan.activations]
    return row | {"planned": {kind: wanted.count(kind) for kind in sorted(set(wanted))}}


def write(store: Rows) -> None:
    rows = store.all()
    lines = [
        "# Files for FPGAs in qonnx",
        "",
        "Written by `python benchmarks/fpga.py`, whose head says what is measured; commands, dates and versions of all rows",
        "in fpga.json. Quantizers: what the plan has, and what qonnx recognises; difference: the largest of an output, qonnx",
        "against ONNX Runtime run as written.",
        "",
        (
            "| model (FP32) | bits | iterations | top-1 | quantizers planned | recognised | Q/DQ left | images | agree "
            "| difference | Quant nodes: agree, difference | MB |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows.values():
        said = ["; ".join(f"{k} {c}" for k, c in r[name].items()) for name in ("planned", "qcdq_quantizers")]
        model = f"{NAMES[r['model']]} ({r['against_top1']})"
        same = [f"{r[f'{kind}_agreement']:.3f}" for kind in ("qcdq", "quant")]
        far = [f"{r[f'{kind}_difference']:.1e}" for kind in ("qcdq", "quant")]
        cells = [model, r["row"], r["iters"], f"{r['top1']:.4f}", *said, r["qcdq_left"], r["images"], same[0], far[0]]
        cells += [", ".join((same[1], far[1])), f"{r['quant_bytes'] / 1e6:.2f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    versions = ", ".join(dict.fromkeys(r["qonnx"] for r in rows.values()))
    (RESULTS / "fpga.md").write_text("\n".join([*lines, "", f"qonnx {versions}. {machine(rows)}"]) + "\n")


def main() -> None:
    parser = arguments(__doc__, quick="5 iterations, 16 images")
    parser.add_argument("--model", default="resnet20_cifar10", choices=list(NAMES))
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--iters", type=int, default=100)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--qonnx", default=sys.executable, help="the interpreter that has qonnx")
    args = parser.parse_args()
    iters, images = (5, 16) if args.quick else (args.iters, args.images)
    points = {
        f"fpga-{args.model}-{row}-{iters}-{images}".replace(" ", "").replace(",", "-"): {
            "model": args.model, "row": row, "iters": iters, "images": images,
        }
        for row in args.rows
    }  # fmt: skip
    measure_missing(Rows("fpga"), points, measure, write, args)


if __name__ == "__main__":
    main()
