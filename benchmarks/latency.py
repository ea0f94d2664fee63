"""Latency of the files of main.py against FP32 and against ONNX Runtime's own W8A8 file, interleaved in one process.

usage: python benchmarks/latency.py [--data ../shared] [--threads 2]

Needs build/benchmarks/*.onnx as benchmarks/main.py leaves them.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import numpy as np
from _record import header
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from mrecg_onnx.running import InTurn, fused_op_counts, latency, medians, open_session

RESULTS = Path(__file__).parent / "results"
BUILD = Path("build") / "benchmarks"
CASES = {
    "resnet20_cifar10": ((1, 32), ["r20-w4a4", "r20-w8a8"], 32),
    "resnet56_cifar10": ((1, 32), ["r56-w4a4"], 32),
    "mobilenetv2_imagenet": ((1, 8), ["mb2-w4a4-1000"], 224),
}


class _Noise(CalibrationDataReader):
    """A few random inputs: latency does not depend on the ranges."""

    def __init__(self, name: str, side: int) -> None:
        rng = np.random.default_rng(0)
        self.rows = iter([{name: rng.standard_normal((4, 3, side, side)).astype(np.float32)} for _ in range(2)])

    def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[type-arg]
        return next(self.rows, None)


def peer(fp32: Path, side: int) -> Path:
    """ONNX Runtime's own W8A8 QDQ file, per channel, after its own pre-processing."""
    out, ready = BUILD / f"{fp32.stem}-ort-w8a8.onnx", BUILD / f"{fp32.stem}-ready.onnx"
    quant_pre_process(fp32, ready)
    name = open_session(fp32).get_inputs()[0].name
    quantize_static(
        ready, out, _Noise(name, side), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared"))
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    BUILD.mkdir(parents=True, exist_ok=True)
    rows = []
    for model, (batches, names, side) in CASES.items():
        fp32 = args.data / "models" / f"{model}.onnx"
        files = {"FP32": fp32, "ORT W8A8": peer(fp32, side)} | {n: BUILD / f"{n}.onnx" for n in names}
        models = InTurn(files, args.threads)
        feed = next(iter(models.sessions.values())).get_inputs()[0].name
        for batch in batches:
            x = np.random.default_rng(0).standard_normal((batch, 3, side, side)).astype(np.float32)
            found = medians(latency(models, {feed: x}, 60))
            for name, seconds in found.items():
                rows.append({
                    "model": model, "batch": batch, "file": name, "ms": round(seconds * 1e3, 3),
                    "against_fp32": round(found["FP32"] / seconds, 2), "ops": dict(fused_op_counts(files[name])),
                })  # fmt: skip
                print(model, batch, name, rows[-1]["ms"], rows[-1]["against_fp32"], flush=True)
    (RESULTS / "latency.json").write_text(json.dumps({"header": header(), "rows": rows}, indent=1) + "\n")
    lines = ["# Latency", "", f"By `python benchmarks/latency.py`, {header()['date']}, {args.threads} threads, median of 60",
             "interleaved runs. \"ORT W8A8\" is the file of ONNX Runtime's own quantize_static, per channel.", "",
             "| model | batch | file | ms | against FP32 |", "|---|---|---|---|---|"]  # fmt: skip
    lines += [f"| {r['model']} | {r['batch']} | {r['file']} | {r['ms']} | {r['against_fp32']}x |" for r in rows]
    (RESULTS / "latency.md").write_text("\n".join([*lines, "", f"Machine: {header()['machine']}."]) + "\n")


if __name__ == "__main__":
    main()
