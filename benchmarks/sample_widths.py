"""The sample's ResNet-8 at every width: accuracy, sizes, and time against FP32 on ONNX Runtime, pair by pair.

usage: python benchmarks/sample_widths.py [--pairs 2000]

Needs nothing beside the repository. Files are quantized with default settings and one thread, and by rounding to nearest.
Times are processor time of one thread: FP32 and the file run in turn, PAIRS times. Given are the best of each, and the
share of FP32's time at the median of the pairs, which other work on the machine hardly moves.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from _experiment import BUILD, RESULTS, Rows, machine, measure_missing, timed

import mrecg_onnx
from mrecg_onnx.data import open_validation
from mrecg_onnx.running import fused_op_counts, input_specs, open_session

SAMPLE = Path(__file__).parent.parent / "samples"
MODEL, CALIB, VAL = SAMPLE / "digits_resnet8.onnx", SAMPLE / "calib", SAMPLE / "val"
WIDTHS = ((8, 8), (4, 8), (4, 4), (2, 2))
#: Those that the README names get more than one.
SEEDS = {(4, 8): (0, 1, 2), (4, 4): (0, 1)}
BATCHES = (1, 32)
WARM_UP = 50
#: Runs before the clock is read: one of the smallest takes a tenth of a millisecond.
RUNS = {1: 4, 32: 1}
COMMAND = [sys.executable, "-m", "mrecg_onnx"]


def shares(file: Path, pairs: int) -> dict[str, Any]:
    """Processor time of FP32 and of ``file``, in turn, on one thread."""
    sessions = [open_session(path, threads=1) for path in (MODEL, file)]
    data = open_validation(VAL, input_specs(sessions[0]), mrecg_onnx.Preprocess(), "none", max(BATCHES))
    (images,) = data.load().values()
    found: dict[str, Any] = {}
    for batch in BATCHES:
        feed, count = {"image": np.ascontiguousarray(images[:batch])}, pairs if batch == 1 else pairs // 4
        took = np.empty((count + WARM_UP, 2))
        for row in took:
            for i, session in enumerate(sessions):
                start = time.process_time()
                for _ in range(RUNS[batch]):
                    session.run(None, feed)
                row[i] = (time.process_time() - start) / RUNS[batch]
        best, ratio = took[WARM_UP:].min(0) * 1e3, took[WARM_UP:, 1] / took[WARM_UP:, 0]
        found |= {
            f"fp32_ms_{batch}": round(float(best[0]), 4), f"ms_{batch}": round(float(best[1]), 4),
            f"best_of_fp32_{batch}": round(float(best[1] / best[0]), 3), f"of_fp32_{batch}": round(float(np.median(ratio)), 3),
            f"of_fp32_10_90_{batch}": [round(float(q), 3) for q in np.quantile(ratio, (0.1, 0.9))],
        }  # fmt: skip
    return found


def measure(key: str, point: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """One file."""
    folder = BUILD / "sample"
    folder.mkdir(parents=True, exist_ok=True)
    file, packed = folder / f"{key}.onnx", folder / f"{key}-packed.onnx"
    used = timed([
        *COMMAND, "quantize", str(MODEL), "--calib", str(CALIB), "--wbits", str(point["wbits"]), "--abits", str(point["abits"]),
        "--method", point["method"], "--seed", str(point["seed"]), "--threads", "1", "-o", str(file), "--force", "-q",
    ])  # fmt: skip
    convert = [*COMMAND, "convert", str(file), "--container", "packed", "-o", str(packed), "--force", "-q"]
    subprocess.run(convert, check=True)
    report = mrecg_onnx.validate(MODEL, file, VAL, repeats=0)
    assert report.fp32.top1 is not None
    assert report.quantized.top1 is not None
    row = point | {
        "cpu_seconds": used["cpu"], "peak_mb": used["peak_mb"], "fp32": round(report.fp32.top1.value, 4),
        "top1": round(report.quantized.top1.value, 4), "fp32_bytes": MODEL.stat().st_size, "bytes": file.stat().st_size,
        "packed_bytes": packed.stat().st_size, "kernels": dict(fused_op_counts(file)),
    }  # fmt: skip
    if point["seed"] == 0 and point["method"] != "nearest":
        row |= shares(file, args.pairs) | {f"packed_{k}": v for k, v in shares(packed, args.pairs).items()}
    return row


def write(store: Rows) -> None:
    """The page."""
    rows = store.all()
    if not rows:
        return
    first = next(iter(rows.values()))
    lines = [
        "# The sample's ResNet-8, width by width", "",
        "Written by `python benchmarks/sample_widths.py`, whose head says how; commands, dates and versions of all rows in",
        f"sample_widths.json. FP32: {first['fp32_bytes'] / 1e3:.1f} kB, top-1 {first['fp32']:.4f} of 450 images.",
        "Learned: default settings; CPU seconds of the whole command.", "",
        "| bits | nearest | learned, each seed | CPU s | kB | packed, kB |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for w, a in WIDTHS:
        some = [r for r in rows.values() if (r["wbits"], r["abits"]) == (w, a)]
        nearest = [r for r in some if r["method"] == "nearest"]
        learned = [r for r in some if r["method"] != "nearest"]
        if not nearest or not learned:
            continue
        tops = ", ".join(f"{r['top1']:.4f}" for r in learned)
        lines.append(
            f"| W{w}A{a} | {nearest[0]['top1']:.4f} | {tops} | "
            f"{statistics.mean(r['cpu_seconds'] for r in learned):.0f} | {learned[0]['bytes'] / 1e3:.1f} | "
            f"{learned[0]['packed_bytes'] / 1e3:.1f} |"
        )
    lines += [
        "", "Processor time of one thread: best of many runs, and the share of FP32's in the median pair (10 to 90 %).", "",
        "| bits | container | batch | FP32, ms | ms | best against best | median pair | 10 to 90 % |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in (r for r in rows.values() if "ms_1" in r):
        for container, lead in (("int8", ""), ("packed", "packed_")):
            for batch in BATCHES:
                low, high = row[f"{lead}of_fp32_10_90_{batch}"]
                lines.append(
                    f"| W{row['wbits']}A{row['abits']} | {container} | {batch} | {row[f'{lead}fp32_ms_{batch}']:.3f} | "
                    f"{row[f'{lead}ms_{batch}']:.3f} | {row[f'{lead}best_of_fp32_{batch}']:.2f} | "
                    f"{row[f'{lead}of_fp32_{batch}']:.2f} | {low:.2f} to {high:.2f} |"
                )
    kernels = {f"W{r['wbits']}A{r['abits']}": r["kernels"] for r in rows.values() if "ms_1" in r}
    lines += ["", *(f"- {bits}: {', '.join(f'{k} {n}' for k, n in found.items())}" for bits, found in kernels.items())]
    (RESULTS / "sample_widths.md").write_text("\n".join([*lines, "", machine(rows)]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2000, help="pairs of runs at batch 1; a quarter at 32")
    parser.add_argument("--again", action="store_true", help="measure rows again that are there")
    parser.add_argument("--draw", action="store_true", help="only write the table from the rows that are there")
    args = parser.parse_args()
    points: dict[str, dict[str, Any]] = {}
    for wbits, abits in WIDTHS:
        for method, seeds in (("nearest", (0,)), ("mrecg", SEEDS.get((wbits, abits), (0,)))):
            for seed in seeds:
                point = {"wbits": wbits, "abits": abits, "method": method, "seed": seed}
                points[f"r8-w{wbits}a{abits}-{method}-{seed}"] = point
    measure_missing(Rows("sample_widths"), points, measure, write, args)


if __name__ == "__main__":
    main()
