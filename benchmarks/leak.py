"""Whether a process that quantizes again and again grows: memory, threads, open files and what lies in the temporary folder.

usage: python benchmarks/leak.py [--runs 60] [--warm-up 15]

Quantizes and validates the sample, few iterations, every other run with activations cached on disk and every third with a
checkpoint, and looks at the process behind each run. The slope of the memory (resident, in no file) behind --warm-up runs is a
linear fit with its 95 % interval; each run's garbage is collected and free memory given back to the system before the look.

Writes benchmarks/results/leak.json and leak.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from _experiment import RESULTS
from _memory import anonymous
from _record import by, header
from scipy import stats

from mrecg_onnx.converters.files import write_whole

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
METHODS = ("nearest", "brecq", "qdrop", "mrecg", "adaround", "lapq")


def once(number: int, folder: Path) -> None:
    """One quantization and one validation."""
    import mrecg_onnx  # noqa: PLC0415 - after the temporary folder is set

    settings = mrecg_onnx.Settings(
        method=METHODS[number % len(METHODS)], iters=3, samples=24, batch_size=16, threads=1, equalize="off", ranges="mse",
        range_samples=8, lapq_evaluations=10, lapq_images=8, memory=10**6 if number % 2 else None,
    )  # fmt: skip
    output = folder / "out.onnx"
    with tempfile.TemporaryDirectory(dir=folder) as kept:
        more: dict[str, Any] = {} if number % 3 else {"checkpoint": kept}
        mrecg_onnx.quantize(SAMPLES / "digits.onnx", SAMPLES / "calib", settings, output=output, **more)
    mrecg_onnx.validate(SAMPLES / "digits.onnx", output, SAMPLES / "val", limit=50, threads=1, repeats=0)
    output.unlink()


def look(process: psutil.Process, temporary: Path) -> dict[str, int]:
    """What the process holds."""
    from mrecg_onnx.machine import give_back  # noqa: PLC0415

    gc.collect()
    give_back()
    time.sleep(0.05)  # threads of sessions that are gone end
    return {
        "memory": anonymous(),
        "threads": process.num_threads(),
        "descriptors": process.num_fds(),
        "temporary": sum(1 for _ in temporary.rglob("*")),
    }


def _span(values: list[int]) -> str:
    """The least and the most."""
    return f"{values[0]}" if len(values) == 1 else f"{values[0]} to {values[-1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--warm-up", type=int, default=15)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    process, seen = psutil.Process(), []
    with tempfile.TemporaryDirectory() as scratch:
        temporary, work = Path(scratch) / "temporary", Path(scratch) / "work"
        temporary.mkdir()
        work.mkdir()
        tempfile.tempdir = os.environ["TMPDIR"] = str(temporary)
        for number in range(args.runs):
            once(number, work)
            seen.append(look(process, temporary))
            print(json.dumps(seen[-1]), flush=True)
    warm = seen[args.warm_up :]
    fit = stats.linregress(range(len(warm)), [one["memory"] / 1e6 for one in warm])
    margin = float(fit.stderr * stats.t.ppf(0.975, len(warm) - 2))
    within = abs(fit.slope) <= margin
    held = f"{seen[args.warm_up]['memory'] / 1e6:.0f} MB first, {seen[-1]['memory'] / 1e6:.0f} MB last"
    steady = {kind: sorted({one[kind] for one in warm}) for kind in ("threads", "descriptors", "temporary")}
    rows = [
        {"what": "memory a run, MB", "runs": len(warm), "identical": within, "note": f"{fit.slope:.3f} ± {margin:.3f}"},
        *(
            {"what": kind, "runs": len(warm), "identical": len(values) == 1, "note": _span(values)}
            for kind, values in steady.items()
        ),
    ]  # fmt: skip
    result = {
        "header": header(), "runs": args.runs, "warm_up": args.warm_up, "slope_mb": round(fit.slope, 4),
        "slope_interval_mb": round(margin, 4), "slope_is_zero": bool(within),
        "memory_mb": [round(one["memory"] / 1e6, 1) for one in seen],
        "rows": [row | {"identical": bool(row["identical"])} for row in rows],
    }  # fmt: skip
    write_whole(RESULTS / "leak.json", json.dumps(result, indent=1) + "\n")
    lines = [
        "# A process that quantizes again and again", "", by(result["header"]), "",
        f"{args.runs} quantizations and validations of the sample in one process ({', '.join(METHODS)} in turn), the first",
        f"{args.warm_up} left out. Memory held behind a run: {held};",
        "its slope with the 95 % interval of a linear fit.", "",
        "| | a run | constant |", "|---|---|---|",
        *(f"| {row['what']} | {row['note']} | {'yes' if row['identical'] else 'no'} |" for row in rows), "",
    ]  # fmt: skip
    write_whole(RESULTS / "leak.md", "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
