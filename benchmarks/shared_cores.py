"""A run beside other programs: how long idle threads look for work before they sleep decides how long it takes.

usage: python benchmarks/shared_cores.py [--spins 300000 10000 3000 1000 0] [--others 0 8] [--iters 30] [--rounds 3]
       [--again] [--draw]

The sample at W4A4 by `--method brecq`, `--iters` iterations a unit, with as many threads as there are cores; beside it so many
other processes as `--others` says, each of which computes all the time on one thread. `--spins` is GOMP_SPINCOUNT: 300,000 is
what GNU's OpenMP takes where nothing is said, 3,000 what the command sets. Seconds on the clock and CPU seconds of the whole
command: medians of `--rounds`, the settings in turn. Rows are kept by key in benchmarks/results/shared_cores.json (.csv);
shared_cores.md is written from them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _experiment import RESULTS, Rows, machine

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLES = Path(__file__).parent.parent / "samples"
BUSY = "x = 1\nwhile True:\n    x = x * 3 % 1000003"


@contextmanager
def busy(count: int) -> Iterator[None]:
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def measure(spins: int, iters: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mrecg_onnx", "quantize", str(SAMPLES / "digits_resnet8.onnx")]
        command += ["--calib", str(SAMPLES / "calib"), "--wbits", "4", "--abits", "4", "--method", "brecq"]
        command += ["--iters", str(iters), "-q", "-o", f"{folder}/out.onnx"]
        start = time.perf_counter()
        process = subprocess.Popen(command, env=os.environ | {"GOMP_SPINCOUNT": str(spins)})
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(process.returncode)
    return {"seconds": time.perf_counter() - start, "cpu": used.ru_utime + used.ru_stime}


def write(store: Rows) -> None:
    rows = store.all()
    lines = [
        "# Shared cores", "",
        "Written by `python benchmarks/shared_cores.py`, whose head says what is measured; commands, dates and versions of all",
        "rows in shared_cores.json. Medians, all measurements in brackets.", "",
        "| other programs | turns before an idle thread sleeps | seconds | CPU seconds |", "|---|---|---|---|",
    ]  # fmt: skip
    for row in sorted(rows.values(), key=lambda r: (r["others"], -r["spins"])):
        cells = [
            f"{statistics.median(row[k]):.1f} ({', '.join(f'{v:.1f}' for v in row[k])})"
            for k in ("seconds", "cpu_seconds")
        ]
        lines.append(f"| {row['others']} | {row['spins']:,} | {' | '.join(cells)} |")
    (RESULTS / "shared_cores.md").write_text("\n".join([*lines, "", machine(rows)]) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spins", nargs="+", type=int, default=[300_000, 10_000, 3_000, 1_000, 0])
    parser.add_argument("--others", nargs="+", type=int, default=[0, 8])
    parser.add_argument("--iters", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--again", action="store_true", help="measure rows again that are there")
    parser.add_argument("--draw", action="store_true", help="only write the table from the rows that are there")
    args = parser.parse_args()
    store = Rows("shared_cores")
    for others in [] if args.draw else args.others:
        keys = {f"{others}-{spins}": spins for spins in args.spins}
        missing = [spins for key, spins in keys.items() if args.again or key not in store.all()]
        found: dict[int, list[dict[str, Any]]] = {spins: [] for spins in missing}
        with busy(others):
            for _ in range(args.rounds):
                for spins in missing:
                    found[spins].append(measure(spins, args.iters))
                    print(others, spins, found[spins][-1], flush=True)
        for spins, all_of in found.items():
            store.add(
                f"{others}-{spins}",
                {"others": others, "spins": spins, "iters": args.iters,
                 "seconds": [round(f["seconds"], 1) for f in all_of], "cpu_seconds": [round(f["cpu"], 1) for f in all_of]},
            )  # fmt: skip
    write(store)


if __name__ == "__main__":
    main()
