"""Calibration without data, on the sample: real images, images made from BatchNormalization statistics, Gaussian noise.

usage: python benchmarks/zeroq.py [--threads 2] [--images 64]

W4A4 on samples/digits.onnx; the made images and the noise live in the network's input space (mean 0, deviation 1). Writes
benchmarks/results/zeroq.json and zeroq.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from _record import header

import mrecg_onnx
from mrecg_onnx.running import input_specs, open_session

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
METHODS = {"nearest": {}, "bit-split": {}, "brecq": {"iters": 200}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=64)
    args = parser.parse_args()
    sample = ROOT / "samples"
    (spec,) = input_specs(open_session(sample / "digits.onnx"))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        noise = Path(folder) / "noise.npy"
        shape = (args.images, *spec.shape[1:])
        np.save(noise, np.random.default_rng(0).standard_normal(shape).astype(np.float32))
        for name, calib in {"real": sample / "calib", "zeroq": "zeroq", "Gaussian noise": noise}.items():
            for method, more in METHODS.items():
                settings = mrecg_onnx.Settings(method=method, samples=args.images, threads=args.threads, **more)
                out, start = Path(folder) / "out.onnx", time.perf_counter()
                mrecg_onnx.quantize(sample / "digits.onnx", calib, settings, output=out)
                seconds = round(time.perf_counter() - start, 1)
                # Images as the sample wants them, whatever the file was calibrated with.
                report = mrecg_onnx.validate(sample / "digits.onnx", out, sample / "val", repeats=0)
                assert report.quantized.top1 is not None
                top1 = round(report.quantized.top1.value, 4)
                rows.append({"calibration": name, "method": method, "top1": top1, "seconds": seconds})
                print(rows[-1], flush=True)
    record = {"header": header(), "images": args.images, "rows": rows}
    (RESULTS / "zeroq.json").write_text(json.dumps(record, indent=1) + "\n")
    lines = ["# Calibration without data", "",
             f"By `python benchmarks/zeroq.py`: the sample at W4A4, {args.images} images, top-1 of 450 (time).", "",
             f"| calibration | {' | '.join(METHODS)} |", "|---" * (len(METHODS) + 1) + "|"]  # fmt: skip
    for name in dict.fromkeys(r["calibration"] for r in rows):
        cells = [f"{r['top1']:.4f} ({r['seconds']} s)" for r in rows if r["calibration"] == name]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    (RESULTS / "zeroq.md").write_text("\n".join([*lines, "", f"Machine: {header()['machine']}."]) + "\n")


if __name__ == "__main__":
    main()
