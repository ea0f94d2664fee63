"""What the sample shows: every method on samples/digits.onnx, three seeds.

usage: python benchmarks/sample.py [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from _record import header

import mrecg_onnx

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
METHODS = ("nearest", "adaround", "brecq", "qdrop", "mrecg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    sample, rows = ROOT / "samples", []
    out = ROOT / "build" / "benchmarks" / "sample.onnx"
    out.parent.mkdir(parents=True, exist_ok=True)
    fp32 = 0.0
    for wbits in (4, 2):
        for method in METHODS:
            tops, seconds = [], []
            for seed in (0, 1, 2):
                settings = mrecg_onnx.Settings(wbits=wbits, method=method, seed=seed, threads=args.threads)
                result = mrecg_onnx.quantize(sample / "digits.onnx", sample / "calib", settings, output=out)
                report = mrecg_onnx.validate(sample / "digits.onnx", out, sample / "val", repeats=0)
                assert report.fp32.top1 is not None
                assert report.quantized.top1 is not None
                fp32 = report.fp32.top1.value
                tops.append(round(report.quantized.top1.value, 4))
                seconds.append(sum(result.seconds.values()))
            rows.append({"bits": f"W{wbits}A4", "method": method, "top1": tops, "seconds": round(max(seconds), 1)})
            print(rows[-1], flush=True)
    (RESULTS / "sample.json").write_text(json.dumps({"header": header(), "fp32": fp32, "rows": rows}, indent=1) + "\n")
    lines = ["# The sample", "", f"By `python benchmarks/sample.py`; 450 images, FP32 top-1 {fp32:.4f}, default settings.",
             "", "| bits | method | top-1, seeds 0, 1, 2 | mean | slowest run |", "|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        tops = ", ".join(f"{t:.4f}" for t in row["top1"])
        mean = statistics.mean(row["top1"])
        lines.append(f"| {row['bits']} | {row['method']} | {tops} | {mean:.4f} | {row['seconds']} s |")
    (RESULTS / "sample.md").write_text("\n".join([*lines, "", f"Machine: {header()['machine']}."]) + "\n")


if __name__ == "__main__":
    main()
