"""How the defaults were found: one setting changed at a time, several seeds, judged by the referee.

usage: python benchmarks/tuning.py [--data ../shared] [--model NAME] [--iters 300] [--variants NAME ...] [--seeds 0 1 2]

Rows are merged into benchmarks/results/tuning.json; tuning.md is written from it. Unit losses are the held-out
reconstruction losses of what was kept, summed as ratios to rounding to nearest (lower is better).
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from _record import header
from main import SETS, referee

import mrecg_onnx

RESULTS = Path(__file__).parent / "results"
#: "base" is qdrop with the package's defaults; every other variant changes what it names.
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "drop 0.75": {"drop": 0.75},
    "no drop": {"drop": 1.0},
    "bias not learned": {"learn_bias": False},
    "squared loss": {"loss": "mse"},
    "knee 0.2": {"knee": 0.2},
    "knee 1": {"knee": 1.0},
    "ranges p=2.4": {"range": "mse"},
    "as published": {"loss": "mse", "range": "mse", "learn_bias": False, "equalize": "off"},
    "rounding rate x0.3": {"lr_rounding": 0.3},
    "rounding rate x2": {"lr_rounding": 2.0},
    "scale rate x0.3": {"lr_scale": 0.3},
    "scale rate x3": {"lr_scale": 3.0},
    "regularizer x0.1": {"rounding_weight": 0.001},
    "regularizer x10": {"rounding_weight": 0.1},
    "window 14": {"window": 14},
    "whole maps": {"window": 0},
    "no drop, window 14": {"drop": 1.0, "window": 14},
    "no drop, whole maps": {"drop": 1.0, "window": 0},
    "128 images": {"samples": 128},
    "1000 images": {"samples": 1000},
    "no equalization": {"equalize": "off"},
    "merge peaks": {"method": "mrecg", "scheme": "loss"},
    "merge by Eq. 4": {"method": "mrecg", "scheme": "loss", "selection": "eq4"},
    "merge by capacity": {"method": "mrecg", "scheme": "modcap"},
}


def measure(
    name: str, model: str, iters: int, bits: tuple[int, int], seed: int, root: Path, threads: int
) -> dict[str, Any]:
    """One run of one variant."""
    from mrecg_onnx.learning.rates import default_rates  # noqa: PLC0415 - torch is heavy and --help does not need it

    changes = dict(VARIANTS[name])
    rates = default_rates(iters)
    for key, rate in (("lr_rounding", rates.rounding), ("lr_scale", rates.scale)):
        if key in changes:  # variants name factors
            changes[key] *= rate
    settings = mrecg_onnx.Settings(
        **{
            "wbits": bits[0],
            "abits": bits[1],
            "method": "qdrop",
            "iters": iters,
            "seed": seed,
            "threads": threads,
            **changes,
        }
    )
    dataset = SETS[model]
    out = Path("build") / "benchmarks" / f"tuning-{model}-{name.replace(' ', '_')}-{iters}-{seed}.onnx"
    out.parent.mkdir(parents=True, exist_ok=True)
    fp32 = root / "models" / f"{model}.onnx"
    result = mrecg_onnx.quantize(fp32, root / "data" / dataset / "calib", settings, output=out)
    ratios = [u.final_loss / u.loss_nearest for u in result.units if u.loss_nearest > 0]
    return {
        "variant": name, "model": model, "iters": iters, "bits": list(bits), "seed": seed,
        "top1": referee(root, out, dataset, None)["top1"], "loss_ratio": round(statistics.mean(ratios), 4) if ratios else None,
        "kept_nearest": sum(u.kept == "nearest" for u in result.units),
        "unsettled": round(statistics.mean(u.unsettled for u in result.units), 4) if result.units else None,
        "seconds": round(sum(result.seconds.values()), 1), "header": header(),
    }  # fmt: skip


def write_markdown(rows: list[dict[str, Any]]) -> str:
    """Mean and spread over seeds."""
    lines = ["# Tuning", "", "Written by `python benchmarks/tuning.py`; commands, dates and versions in tuning.json.", "",
             "| model | bits | iterations | variant | top-1 by seed | mean | mean unit loss / nearest |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["model"], tuple(row["bits"]), row["iters"], row["variant"]), []).append(row)
    for (model, bits, iters, variant), runs in sorted(
        groups.items(), key=lambda g: (g[0][:3], -statistics.mean(r["top1"] for r in g[1]))
    ):
        top = ", ".join(f"{r['top1']:.4f}" for r in sorted(runs, key=lambda r: r["seed"]))
        losses = [r["loss_ratio"] for r in runs if r["loss_ratio"] is not None]
        loss = f"{statistics.mean(losses):.3f}" if losses else "-"
        mean = statistics.mean(r["top1"] for r in runs)
        lines.append(f"| {model} | W{bits[0]}A{bits[1]} | {iters} | {variant} | {top} | {mean:.4f} | {loss} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared"))
    parser.add_argument("--model", default="resnet20_cifar10", choices=list(SETS))
    parser.add_argument("--iters", type=int, default=300)
    parser.add_argument("--bits", type=int, nargs=2, default=(4, 4))
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    path = RESULTS / "tuning.json"
    for seed in args.seeds:
        for name in args.variants:
            row = measure(name, args.model, args.iters, tuple(args.bits), seed, args.data, args.threads)
            rows = json.loads(path.read_text()) if path.exists() else []
            same = ("variant", "model", "iters", "bits", "seed")
            rows = [r for r in rows if any(r[k] != row[k] for k in same)] + [row]
            path.write_text(json.dumps(rows, indent=1) + "\n")
            (RESULTS / "tuning.md").write_text(write_markdown(rows))
            print(f"{name} seed {seed}: {row['top1']} loss ratio {row['loss_ratio']} {row['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
