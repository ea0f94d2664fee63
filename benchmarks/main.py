"""The main table: accuracy, time and latency of quantized files on real models.

usage: python benchmarks/main.py [--data ../shared] [--rows NAME ...] [--threads 2] [--latency] [--list]

Rows are merged into benchmarks/results/main.json by name, so that single rows can be measured again; main.md is written
from it. The referee (eval_onnx.py beside the data) measures accuracy; it shares no code with this package. Latency is
measured interleaved against FP32 in one process; --latency measures it again for the files of earlier rows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _record import header

import mrecg_onnx
from mrecg_onnx.running import InTurn, latency, medians

RESULTS = Path(__file__).parent / "results"
SETS = {"resnet20_cifar10": "cifar10", "resnet56_cifar10": "cifar10", "mobilenetv2_imagenet": "imagenet"}
BATCH = {"resnet20_cifar10": 32, "resnet56_cifar10": 32, "mobilenetv2_imagenet": 1}


def _row(model: str, w: int, a: int, **settings: Any) -> dict[str, Any]:
    return {"model": model, "settings": {"wbits": w, "abits": a, **settings}}


R20, R56, MB2 = SETS
ROWS: dict[str, dict[str, Any]] = {
    "r20-w4a4-nearest": _row(R20, 4, 4, method="nearest"),
    "r20-w4a4-adaround": _row(R20, 4, 4, method="adaround"),
    "r20-w4a4-brecq": _row(R20, 4, 4, method="brecq"),
    "r20-w4a4-qdrop": _row(R20, 4, 4, method="qdrop"),
    "r20-w4a4": _row(R20, 4, 4),
    "r20-w4a4-modcap": _row(R20, 4, 4, scheme="modcap"),
    "r20-w2a4-nearest": _row(R20, 2, 4, method="nearest"),
    "r20-w2a4-qdrop": _row(R20, 2, 4, method="qdrop"),
    "r20-w2a4": _row(R20, 2, 4),
    "r20-w2a4-brecq": _row(R20, 2, 4, method="brecq"),
    "r20-w3a3": _row(R20, 3, 3),
    "r20-w2a2": _row(R20, 2, 2),
    "r20-w8a8": _row(R20, 8, 8),
    "r56-w4a4-nearest": _row(R56, 4, 4, method="nearest"),
    "r56-w4a4-qdrop": _row(R56, 4, 4, method="qdrop"),
    "r56-w4a4": _row(R56, 4, 4),
    "mb2-w4a4-nearest": _row(MB2, 4, 4, method="nearest"),
    "mb2-w4a4-nearest-noeq": _row(MB2, 4, 4, method="nearest", equalize="off"),
    "mb2-w4a4-300": _row(MB2, 4, 4, iters=300),
    "mb2-w4a4-300-noeq": _row(MB2, 4, 4, iters=300, equalize="off"),
    "mb2-w4a4-300-brecq": _row(MB2, 4, 4, iters=300, method="brecq"),
    "mb2-w4a4-300-shared": _row(MB2, 4, 4, iters=300, method="brecq", residual="shared"),
    "mb2-w4a4-300-fixed": _row(MB2, 4, 4, iters=300, method="brecq", learn_weight_scales=False),
    "mb2-w4a4-300-qdrop": _row(MB2, 4, 4, iters=300, method="qdrop"),
    "mb2-w4a4-1000": _row(MB2, 4, 4, iters=1000),
    "mb2-w4a4-1000-brecq": _row(MB2, 4, 4, iters=1000, method="brecq"),
    "mb2-w4a4-1500-flip": _row(MB2, 4, 4, iters=1500, augment="flip"),
    "mb2-w4a4-1500-flip-brecq": _row(MB2, 4, 4, iters=1500, augment="flip", method="brecq"),
    "mb2-w4a4-hour": _row(MB2, 4, 4, iters=4000, augment="flip"),
    "mb2-w4a8-300-brecq": _row(MB2, 4, 8, iters=300, method="brecq"),
    "mb2-w8a8": _row(MB2, 8, 8, iters=300),
}


#: What sets a row apart, by setting and value.
VARIANTS = {
    ("equalize", "off"): "no equalization",
    ("residual", "shared"): "shared residual",
    ("learn_weight_scales", False): "weight scales fixed",
    ("augment", "flip"): "mirror images",
}


def referee(root: Path, model: Path, dataset: str, against: Path | None) -> dict[str, Any]:
    """Accuracy by the referee's own process."""
    command = [sys.executable, str(root / "eval_onnx.py"), str(model), dataset]
    if against is not None:
        command += ["--against", str(against)]
    said: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return said


def measure_latency(fp32: Path, quantized: Path, batch: int, threads: int) -> dict[str, float]:
    """Median milliseconds of both, interleaved, and the ratio."""
    models = InTurn({"fp32": fp32, "quantized": quantized}, threads)
    feed = models.sessions["fp32"].get_inputs()[0]
    x = np.random.default_rng(0).standard_normal((batch, *feed.shape[1:])).astype(np.float32)
    found = medians(latency(models, {feed.name: x}, 100))
    return {
        "batch": batch,
        **{f"{k}_ms": round(v * 1e3, 3) for k, v in found.items()},
        "speedup": round(found["fp32"] / found["quantized"], 2),
    }


def measure(name: str, root: Path, threads: int) -> dict[str, Any]:
    """Quantize one row and measure it."""
    row = ROWS[name]
    model, dataset = row["model"], SETS[row["model"]]
    fp32 = root / "models" / f"{model}.onnx"
    out = Path("build") / "benchmarks" / f"{name}.onnx"
    out.parent.mkdir(parents=True, exist_ok=True)
    settings = mrecg_onnx.Settings(threads=threads, **row["settings"])
    start = time.perf_counter()
    result = mrecg_onnx.quantize(fp32, root / "data" / dataset / "calib", settings, output=out)
    seconds = time.perf_counter() - start
    said = referee(root, out, dataset, fp32)
    return {
        **row,
        "method": settings.method,
        "iters": settings.iters if result.units else 0,
        "images": result.images,
        "seconds": round(seconds, 1),
        "stages": {k: round(v, 1) for k, v in result.seconds.items()},
        "merges": [list(g) for g in result.plan.merges if len(g) > 1],
        "kept_nearest": [u.name for u in result.units if u.kept == "nearest"],
        "parity": result.parity,
        "verification": {
            "agreement": result.verification.agreement, "sqnr_db": round(result.verification.sqnr_db, 1),
            "agreement_fused": result.verification.agreement_fused, "expected": result.verification.expected,
            "warnings": list(result.verification.warnings),
        },
        "referee": said,
        "bytes": {"fp32": fp32.stat().st_size, "quantized": out.stat().st_size},
        "latency": measure_latency(fp32, out, BATCH[model], threads),
        "header": header(),
    }  # fmt: skip


def measure_again(name: str, row: dict[str, Any], root: Path, threads: int) -> dict[str, Any]:
    """The row with its latency measured anew on the file it made."""
    fp32, out = root / "models" / f"{row['model']}.onnx", Path("build") / "benchmarks" / f"{name}.onnx"
    return {**row, "latency": measure_latency(fp32, out, BATCH[row["model"]], threads), "latency_header": header()}


def write_markdown(rows: dict[str, Any]) -> str:
    """The table for people."""
    lines = [
        "# Main table",
        "",
        "Written by `python benchmarks/main.py`; every row's own command, date, versions and machine are in main.json.",
        "Top-1 by the referee on ONNX Runtime at its default level; first and last layer 8 bits in every row. p: McNemar",
        "against FP32. Latency: median, interleaved with FP32 in one process, 2 threads. Time: everything but the referee.",
        "",
        "| row | W/A | method | iterations | top-1 | FP32 | p | time | latency against FP32 | file / FP32 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in [n for n in ROWS if n in rows]:
        r = rows[name]
        s, said, lat = r["settings"], r["referee"], r["latency"]
        scheme = f" ({s['scheme']})" if "scheme" in s else f" on {s['base']}" if "base" in s else ""
        off = "".join(f", {text}" for (key, value), text in VARIANTS.items() if s.get(key) == value)
        cells = [
            name,
            f"W{s['wbits']}A{s['abits']}",
            f"{r['method']}{scheme}{off}",
            r["iters"] or "-",
            f"{said['top1']:.4f}",
            f"{said['against_top1']:.4f}",
            said["mcnemar_p"],
            f"{r['seconds']:.0f} s",
            f"{lat['speedup']}x faster (batch {lat['batch']})",
            f"{r['bytes']['quantized'] / 1e6:.2f} / {r['bytes']['fp32'] / 1e6:.2f} MB",
        ]
        lines.append(f"| {' | '.join(str(c) for c in cells)} |")
    machine = next(iter(rows.values()))["header"]["machine"]
    return "\n".join([*lines, "", f"Machine: {machine}."]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared"))
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    if args.list:
        print("\n".join(ROWS))
        return
    torch.set_num_threads(args.threads)
    path = RESULTS / "main.json"
    for name in args.rows:
        print(name, flush=True)
        if args.latency:
            row = measure_again(name, json.loads(path.read_text())[name], args.data, args.threads)
        else:
            row = measure(name, args.data, args.threads)
        # Read again before writing: rows may be measured side by side.
        rows = json.loads(path.read_text()) if path.exists() else {}
        rows[name] = row
        path.write_text(json.dumps(rows, indent=1) + "\n")
        (RESULTS / "main.md").write_text(write_markdown(rows))
        print(f"  top-1 {row['referee']['top1']}  {row['seconds']} s  {row['latency']['speedup']}x", flush=True)


if __name__ == "__main__":
    main()
