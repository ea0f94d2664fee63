"""The sample's network in hls4ml: converted to an HLS project, its C simulation run on all validation images.

usage: python benchmarks/hls.py [--rows W4A4 ...] [--iters 200] [--hls4ml PYTHON]

samples/digits.onnx (depthwise blocks, residual additions, a mean, one fully connected layer) is quantized by `--method brecq
--target qonnx`. An interpreter that has hls4ml and qonnx (this one, or `--hls4ml PYTHON`) runs samples/to_hls4ml.py on the
file; g++ builds the simulation. Its outputs are compared with those of ONNX Runtime, which runs the file as written. Rows are
merged by key into benchmarks/results/hls.json (.csv); hls.md is written from them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _experiment import BUILD, RESULTS, Rows, arguments, machine, measure_missing

SAMPLE = Path(__file__).parent.parent / "samples"
#: Settings of each row by its name.
ROWS: dict[str, dict[str, Any]] = {
    "W8A8": {"wbits": 8, "abits": 8},
    "W4A4": {"wbits": 4, "abits": 4},
    "W2A4": {"wbits": 2, "abits": 4},
}


def measure(key: str, point: dict[str, Any], args: Any) -> dict[str, Any]:
    import numpy as np  # noqa: PLC0415 - heavy, and --help does not need them

    import mrecg_onnx  # noqa: PLC0415
    from mrecg_onnx.data import open_validation  # noqa: PLC0415
    from mrecg_onnx.running import input_specs, open_session, run_padded  # noqa: PLC0415

    settings = mrecg_onnx.Settings(
        method="brecq",
        iters=point["iters"],
        target="qonnx",
        threads=args.threads,
        device=args.device,
        **ROWS[point["row"]],
    )
    file = BUILD / f"{key}.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    mrecg_onnx.quantize(SAMPLE / "digits.onnx", SAMPLE / "calib", settings, output=file)
    session = open_session(file, level="off")
    data = open_validation(SAMPLE / "val", input_specs(session), settings.preprocess)
    assert data.labels is not None
    feeds, indices = next(iter(data.batches(len(data))))
    x, truth = next(iter(feeds.values())), data.labels[indices]
    written = next(iter(run_padded(session, {session.get_inputs()[0].name: x}).values()))
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        np.save(folder / "x.npy", x)
        command = [args.hls4ml, SAMPLE / "to_hls4ml.py", file, "--output", folder / "project"]
        command += ["--images", folder / "x.npy", "--outputs", folder / "y.npy"]
        subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
        found = np.load(folder / "y.npy").reshape(written.shape)
    seconds = time.perf_counter() - start
    ask = "import importlib.metadata as m; print(*(m.version(n) for n in ('hls4ml', 'qonnx')))"
    versions = subprocess.run([args.hls4ml, "-c", ask], capture_output=True, text=True, check=True).stdout.split()
    far = np.abs(found - written).max(1)
    return {
        **point,
        "hls4ml": versions[0],
        "qonnx": versions[1],
        "images": len(x),
        "top1": float((written.argmax(1) == truth).mean()),
        "hls4ml_top1": float((found.argmax(1) == truth).mean()),
        "agreement": float((found.argmax(1) == written.argmax(1)).mean()),
        "largest_output": float(np.abs(written).max()),
        "median_difference": float(np.median(far)),
        "difference": float(far.max()),
        "images_apart": int((far > 1e-3).sum()),
        "seconds": round(seconds),
    }


def write(store: Rows) -> None:
    rows = store.all()
    lines = [
        "# The sample's network in hls4ml",
        "",
        "Written by `python benchmarks/hls.py`, whose head says what is measured; commands, dates and versions of all rows in",
        "hls.json. Difference: of an image's outputs, the largest, hls4ml's C simulation against ONNX Runtime run as written;",
        "apart: images with more than .001, where a code on the edge between two steps went to the other one. Seconds: from the",
        "file to the simulated outputs, most of them g++.",
        "",
        (
            "| bits | iterations | images | top-1, ONNX Runtime | hls4ml | agree | median difference | apart | largest "
            "| of outputs up to | s |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for r in rows.values():
        cells = [
            r["row"],
            r["iters"],
            r["images"],
            f"{r['top1']:.4f}",
            f"{r['hls4ml_top1']:.4f}",
            f"{r['agreement']:.4f}",
        ]
        cells += [f"{r['median_difference']:.1e}", r["images_apart"], f"{r['difference']:.1e}"]
        cells += [f"{r['largest_output']:.1f}", r["seconds"]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    versions = "; ".join(dict.fromkeys(f"hls4ml {r['hls4ml']}, qonnx {r['qonnx']}" for r in rows.values()))
    (RESULTS / "hls.md").write_text("\n".join([*lines, "", f"{versions}. {machine(rows)}"]) + "\n")


def main() -> None:
    parser = arguments(__doc__, quick="20 iterations")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--iters", type=int, default=200)
    parser.add_argument("--hls4ml", default=sys.executable, help="the interpreter that has hls4ml and qonnx")
    args = parser.parse_args()
    iters = 20 if args.quick else args.iters
    points = {f"hls-digits-{row}-{iters}": {"row": row, "iters": iters} for row in args.rows}
    measure_missing(Rows("hls"), points, measure, write, args)


if __name__ == "__main__":
    main()
