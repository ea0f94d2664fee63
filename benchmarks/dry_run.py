"""``quantize --dry-run`` against the run itself: time and memory, said and true.

usage: python benchmarks/dry_run.py [--data ../shared] [--only KEY ...]

Each row is two processes of one thread: `mrecg-onnx quantize ... --dry-run --json -`, and the same without. Compared are
processor seconds of the whole command (a busy machine blurs those on the clock) and peak resident memory. Seconds on the
clock are in the JSON file beside the table. A row is kept as soon as it is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from _experiment import BUILD, RESULTS, SETS, Rows, machine, measure_missing, timed

SAMPLES = Path(__file__).parent.parent / "samples"
NAMES = {
    "digits": "the small sample", "digits_resnet8": "the sample", "resnet20_cifar10": "ResNet-20",
    "resnet56_cifar10": "ResNet-56", "mobilenetv2_imagenet": "MobileNetV2",
}  # fmt: skip
#: Network and options of each row.
POINTS = {
    "sample-brecq-100": ("digits_resnet8", "--method brecq --iters 100"),
    "r20-nearest": ("resnet20_cifar10", "--method nearest"),
    "r20-brecq-50": ("resnet20_cifar10", "--method brecq --iters 50"),
    "mb2-nearest": ("mobilenetv2_imagenet", "--method nearest"),
    "sample-mrecg-100": ("digits_resnet8", "--iters 100"),
    "r56-brecq-50": ("resnet56_cifar10", "--method brecq --iters 50"),
    "small-mrecg-200": ("digits", "--iters 200"),
    "sample-finish": ("digits_resnet8", "--method brecq --iters 50 --finish 100 --wbits 2 --abits 2"),
    "r20-mrecg-60": ("resnet20_cifar10", "--iters 60"),
    "r20-lapq": ("resnet20_cifar10", "--method lapq"),
    "mb2-brecq-20-16": ("mobilenetv2_imagenet", "--method brecq --iters 20 --batch-size 16 --abits 8"),
    "r20-bit-split": ("resnet20_cifar10", "--method bit-split"),
    "r20-flip": ("resnet20_cifar10", "--method qdrop --iters 30 --augment flip"),
    "r56-mrecg-60": ("resnet56_cifar10", "--iters 60"),
}


def measure(key: str, point: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """What is said, and what is true."""
    network, options = point["network"], point["options"]
    mine = network not in SETS
    model = SAMPLES / f"{network}.onnx" if mine else args.data / "models" / f"{network}.onnx"
    calib = SAMPLES / "calib" if mine else args.data / "data" / SETS[network] / "calib"
    out = BUILD / "dry_run" / f"{key}.onnx"
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "mrecg_onnx",
        "quantize",
        str(model),
        "--calib",
        str(calib),
        "--threads",
        "1",
        "-q",
    ]
    command += ["-o", str(out), "--force", *options.split()]
    begin, before = time.perf_counter(), os.times()
    done = subprocess.run([*command, "--dry-run", "--json", "-"], capture_output=True, text=True, check=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    took, after = time.perf_counter() - begin, os.times()
    found = json.loads(done.stdout)
    begin = time.perf_counter()
    used = timed(command)
    true = time.perf_counter() - begin
    return point | {
        "dry_cpu": round(after.children_user + after.children_system - before.children_user - before.children_system, 1),
        "dry_s": round(took, 1), "said_cpu": round(sum(found["cpu_seconds"].values()), 1), "true_cpu": used["cpu"],
        "said_s": round(sum(found["seconds"].values()), 1), "true_s": round(true, 1),
        "said_mb": round(found["memory"] / 2**20), "true_mb": used["peak_mb"], "stages": found["cpu_seconds"],
    }  # fmt: skip


def write(store: Rows) -> None:
    """The page."""
    rows = store.all()
    if not rows:
        return
    times = {key: row["said_cpu"] / row["true_cpu"] for key, row in rows.items()}
    sizes = {key: row["said_mb"] / row["true_mb"] for key, row in rows.items()}
    within = sum(0.5 <= times[key] <= 2 and 0.5 <= sizes[key] <= 2 for key in rows)
    lines = [
        "# Dry runs", "",
        "Written by `python benchmarks/dry_run.py`, whose head says what is measured; commands, dates and versions of all",
        f"rows in dry_run.json. Within a factor of two, time and memory: {within} of {len(rows)}.",
        f"Said of the true time: {_range(times)}; of the true memory: {_range(sizes)}.", "",
        "| network | options | said, CPU s | true | said / true | said, MB | true | said / true | dry run, CPU s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {NAMES[r['network']]} | `{r['options']}` | {r['said_cpu']} | {r['true_cpu']} | {times[key]:.2f} | {r['said_mb']} | "
        f"{r['true_mb']} | {sizes[key]:.2f} | {r['dry_cpu']} |"
        for key, r in rows.items()
    ]
    (RESULTS / "dry_run.md").write_text("\n".join([*lines, "", machine(rows)]) + "\n")


def _range(shares: dict[str, float]) -> str:
    return f"{min(shares.values()):.2f} to {max(shares.values()):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared"), help="folder of models, images and the referee")
    parser.add_argument(
        "--only", nargs="+", choices=list(POINTS), default=list(POINTS), metavar="KEY", help="rows by key"
    )
    parser.add_argument("--again", action="store_true", help="measure rows again that are there")
    parser.add_argument("--draw", action="store_true", help="only write the table from the rows that are there")
    args = parser.parse_args()
    points = {key: {"network": POINTS[key][0], "options": POINTS[key][1]} for key in args.only}
    measure_missing(Rows("dry_run"), points, measure, write, args)


if __name__ == "__main__":
    main()
