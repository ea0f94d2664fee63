"""Networks whose BatchNormalization cannot be folded: the quantized file against FP32 and ONNX Runtime's own W8A8 file.

usage: python benchmarks/batchnorm.py [--repeats 60]

A ResNet with pre-activation and a small DenseNet of random weights. Files run in turn in one process on one thread; the median of
the process's CPU time is what is compared, which other work on the machine does not lengthen.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _record import by, header
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

import mrecg_onnx
from mrecg_onnx.measures import sqnr_db
from mrecg_onnx.running import fused_op_counts, open_session, run_padded

RESULTS = Path(__file__).parent / "results"
SIDE, WARM_UP = 64, 5


class Block(nn.Module):
    """Pre-activation (He 2016b): BN, Relu, 3x3, BN, Relu, 3x3, and a sum; the shortcut reads what the first Relu made."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.BatchNorm2d(cin), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout), nn.ReLU(),
            nn.Conv2d(cout, cout, 3, 1, 1, bias=False),
        )  # fmt: skip
        self.shortcut = nn.Conv2d(cin, cout, 1, stride, bias=False) if (cin, 1) != (cout, stride) else None

    def forward(self, x: Tensor) -> Tensor:
        """[N, cin, H, W] -> [N, cout, H / stride, W / stride]."""
        y = self.first(x)
        sum_: Tensor = self.body(y) + (x if self.shortcut is None else self.shortcut(y))
        return sum_


class Dense(nn.Module):
    """DenseNet's layer (Huang 2017)."""

    def __init__(self, cin: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(cin), nn.ReLU(), nn.Conv2d(cin, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth), nn.ReLU(), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """[N, cin, H, W] -> [N, cin + growth, H, W]."""
        return torch.cat([x, self.body(x)], 1)


def preact() -> nn.Module:
    widths = [(32, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1)]
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, bias=False), *(Block(*w) for w in widths), nn.BatchNorm2d(128), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


def densenet() -> nn.Module:
    parts: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False)]
    channels = 32
    for block in range(3):
        for _ in range(4):
            parts.append(Dense(channels, 16))
            channels += 16
        if block < 2:
            parts += [
                nn.BatchNorm2d(channels),
                nn.ReLU(),
                nn.Conv2d(channels, channels // 2, 1, bias=False),
                nn.AvgPool2d(2),
            ]
            channels //= 2
    return nn.Sequential(
        *parts, nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)
    )


NETWORKS = {"ResNet with pre-activation": preact, "DenseNet": densenet}


class _Rows(CalibrationDataReader):
    def __init__(self, x: np.ndarray) -> None:
        self.rows = iter([{"x": x[i : i + 8]} for i in range(0, 32, 8)])

    def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[type-arg]
        return next(self.rows, None)


def exported(make: str, folder: Path) -> Path:
    """The network with statistics of random images, by torch's exporter, BatchNormalization as it is left by it."""
    torch.manual_seed(0)
    net = NETWORKS[make]().train()
    with torch.no_grad():
        for _ in range(10):
            net(torch.randn(32, 3, SIDE, SIDE))
    path = folder / f"{make.split(maxsplit=1)[0]}.onnx"
    torch.onnx.export(net.eval(), (torch.randn(1, 3, SIDE, SIDE),), str(path), input_names=["x"], output_names=["y"],
                      dynamic_axes={"x": {0: "n"}}, opset_version=17, dynamo=False)  # fmt: skip
    return path


def peer(fp32: Path, x: np.ndarray) -> Path:
    """ONNX Runtime's own W8A8 QDQ file, per channel, after its own pre-processing."""
    out, ready = fp32.with_name(f"{fp32.stem}-ort.onnx"), fp32.with_name(f"{fp32.stem}-ready.onnx")
    quant_pre_process(fp32, ready)
    quantize_static(ready, out, _Rows(x), quant_format=QuantFormat.QDQ, per_channel=True,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)  # fmt: skip
    return out


def cpu_time(sessions: dict[str, Any], x: np.ndarray, repeats: int) -> dict[str, float]:
    """Median CPU seconds of each session on ``x``, run in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(repeats + WARM_UP):
        for name, session in sessions.items():
            start = time.process_time()
            session.run(None, {"x": x})
            seconds[name].append(time.process_time() - start)
    return {name: float(np.median(values[WARM_UP:])) for name, values in seconds.items()}


def measure(network: str, folder: Path, x: np.ndarray, repeats: int) -> list[dict[str, Any]]:
    """The rows of one network."""
    fp32 = exported(network, folder)
    files = {"FP32": fp32, "ONNX Runtime's own W8A8": peer(fp32, x)}
    for wbits, abits in ((8, 8), (4, 8), (4, 4)):
        name = f"W{wbits}A{abits}"
        files[name] = folder / f"{fp32.stem}-{name}.onnx"
        chosen = mrecg_onnx.Settings(wbits=wbits, abits=abits, method="nearest")
        mrecg_onnx.quantize(fp32, folder / "x.npy", chosen, output=files[name])
    sessions = {name: open_session(path, threads=1) for name, path in files.items()}
    outputs = {name: run_padded(session, {"x": x})["y"] for name, session in sessions.items()}
    rows = []
    for batch in (1, 8):
        found = cpu_time(sessions, x[:batch], repeats)
        for name, path in files.items():
            quality = round(sqnr_db(outputs["FP32"], outputs[name]), 1) if name != "FP32" else None
            rows.append({
                "network": network, "batch": batch, "file": name, "ms": round(found[name] * 1e3, 3),
                "against_fp32": round(found["FP32"] / found[name], 2), "sqnr_db": quality, "ops": dict(fused_op_counts(path)),
            })  # fmt: skip
            print(network, batch, name, rows[-1]["ms"], rows[-1]["against_fp32"], quality, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=60)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        x = np.random.default_rng(0).standard_normal((64, 3, SIDE, SIDE)).astype(np.float32)
        np.save(folder / "x.npy", x)
        rows = [row for network in NETWORKS for row in measure(network, folder, x, args.repeats)]
    note = header()
    (RESULTS / "batchnorm.json").write_text(json.dumps({"header": note, "rows": rows}, indent=1) + "\n")
    lines = [
        "# BatchNormalization that cannot be folded",
        "",
        f"{by(note)} Median CPU time of {args.repeats} runs in turn, one thread, images of {SIDE}x{SIDE}; weights",
        "are random, so that the SQNR of W4 says little.",
        "",
        "| network | batch | file | ms | against FP32 | SQNR, dB | layers left in float |",
        "|---|---|---|---|---|---|---|",
    ]
    floats = ("BatchNormalization", "Conv", "FusedConv", "FusedGemm", "Gemm")
    for r in rows:
        left = ", ".join(f"{r['ops'][op]} {op}" for op in floats if op in r["ops"]) or "none"
        cells = (r["network"], r["batch"], r["file"], r["ms"], f"{r['against_fp32']}x", r["sqnr_db"] or "")
        lines.append("| " + " | ".join(map(str, (*cells, left if r["sqnr_db"] else "all"))) + " |")
    (RESULTS / "batchnorm.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
