"""Whether a process that quantizes again and again grows: memory, objects, threads, open files, the temporary folder.

usage: python benchmarks/leak.py [--runs 240] [--warm-up 60]

Quantizes and validates the sample, few iterations, by six methods in turn, every other run with activations cached on disk and
every third with a checkpoint, and looks at the process behind each run, its garbage collected and free memory given back to
the system. Slopes behind --warm-up runs are linear fits with their 95 % intervals; each of the six runs of a round has a level
of its own. Resident memory (in no file) also holds what the allocator could not give back; bytes in use are those that nobody
freed, and with the count of Python's objects and blocks tell a leak from pieces of free memory.

Python's table of interned strings counts those that are gone until it is built anew, once in tens of runs, and is then twice as
large for good: a step of 4 MB. It is filled in advance, behind the warm-up, so that the step is not in the fit. Its cache of
attributes that were looked up keeps up to 4,096 names, one by one over hundreds of runs where a library in C makes each name anew
(numpy's `all`): it is emptied before every look. glibc keeps pieces for the thread that freed them, and counts them as in use:
it is told to keep none. A thread of Python or of a session may still be ending: of three looks the least counts. Where
a slope of memory is not zero it is told beside the largest single step, too: a leak comes back with every run.

Writes benchmarks/results/leak.json and leak.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from _experiment import RESULTS
from _memory import anonymous, caching, in_use
from _record import by, header
from scipy import stats

from mrecg_onnx.converters.files import write_whole

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
METHODS = ("nearest", "brecq", "qdrop", "mrecg", "adaround", "lapq")

#: What grows at the slightest leak, by key of a look: words and unit.
SLOPES = {
    "memory": ("memory a run, MB", 1e6),
    "in_use": ("bytes in use a run, MB", 1e6),
    "objects": ("objects of Python a run", 1),
    "blocks": ("blocks of Python's allocator a run", 1),
}
#: Looks behind each run.
LOOKS = 3
#: glibc keeps no pieces for a thread.
TUNED = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
#: More strings than the table of interned ones has room for.
STRINGS = 1_000_000


def once(number: int, folder: Path) -> None:
    """One quantization and one validation."""
    import mrecg_onnx  # noqa: PLC0415 - after the temporary folder is set

    settings = mrecg_onnx.Settings(
        method=METHODS[number % len(METHODS)], iters=3, samples=24, batch_size=16, threads=1, equalize="off", range="mse",
        range_samples=8, lapq_evaluations=10, lapq_images=8,
    )  # fmt: skip
    output = folder / "out.onnx"
    with tempfile.TemporaryDirectory(dir=folder) as kept:
        more: dict[str, Any] = {} if number % 3 else {"checkpoint": kept}
        with caching(0 if number % 2 else None):
            mrecg_onnx.quantize(SAMPLES / "digits.onnx", SAMPLES / "calib", settings, output=output, **more)
    mrecg_onnx.validate(SAMPLES / "digits.onnx", output, SAMPLES / "val", limit=50, threads=1, repeats=0)
    output.unlink()


def look(process: psutil.Process, temporary: Path) -> dict[str, int]:
    """What the process holds: the least of three looks."""
    looks = [_look(process, temporary) for _ in range(LOOKS)]
    return {kind: min(one[kind] for one in looks) for kind in looks[0]}


def _look(process: psutil.Process, temporary: Path) -> dict[str, int]:
    from mrecg_onnx.machine import give_back  # noqa: PLC0415

    gc.collect()
    empty_attribute_cache()
    give_back()
    time.sleep(0.05)  # threads of sessions that are gone end
    return {
        "memory": anonymous(),
        "in_use": in_use(),
        "objects": len(gc.get_objects()),
        "blocks": sys.getallocatedblocks(),
        "threads": process.num_threads(),
        "descriptors": process.num_fds(),
        "temporary": sum(1 for _ in temporary.rglob("*")),
    }


def empty_attribute_cache() -> None:
    """Let Python forget the names of attributes that it has looked up, which it keeps until others take their places."""
    clear = getattr(sys, "_clear_internal_caches", None) or sys._clear_type_cache  # noqa: SLF001 - from 3.13 on, and before
    clear()


def fill_interned() -> None:
    """Have Python build its table of interned strings anew: strings that are dropped at once stay counted until then."""
    for number in range(STRINGS):
        sys.intern(f"interned {number}")


def slope(values: Sequence[float], step: int | None = None) -> tuple[float, float]:
    """Growth a run and half its 95 % interval; runs of the same place in a round of six have one level, with a ``step`` once."""
    found, margin, _, _ = _fit(values, step)
    return found, margin


def _fit(values: Sequence[float], step: int | None) -> tuple[float, float, float, float]:
    """Slope, half its interval, the step, and the sum of squares that is left."""
    runs = np.arange(len(values))
    places = [(runs % len(METHODS) == place).astype(float) for place in range(len(METHODS))]
    once_higher = [] if step is None else [(runs >= step).astype(float)]
    matrix = np.stack([runs - runs.mean(), *places, *once_higher], axis=1)
    # Beside the first of its place: what never changes has a slope of zero, not of a rounding error.
    centred = np.asarray(values, float) - np.asarray(values, float)[runs % len(METHODS)]
    found = np.linalg.lstsq(matrix, centred, rcond=None)[0]
    freedom = len(values) - matrix.shape[1]
    left = float(np.square(centred - matrix @ found).sum())
    variance = left / freedom * np.linalg.inv(matrix.T @ matrix)[0, 0]
    return float(found[0]), float(np.sqrt(variance) * stats.t.ppf(0.975, freedom)), float(found[-1]), left


def beside_a_step(words: str, values: Sequence[float], first: int) -> dict[str, Any]:
    """A row: the slope beside the single step that explains most, of runs from ``first`` on."""
    places = range(len(METHODS), len(values) - len(METHODS) + 1)
    step = min(places, key=lambda place: _fit(values, place)[3])
    found, margin, size, _ = _fit(values, step)
    what = f"{words}, beside one step of {size:.3f} MB at run {first + step}"
    return {"what": what, "runs": len(values), "identical": abs(found) <= margin, "note": f"{found:.5f} ± {margin:.5f}"}


def _span(values: list[int]) -> str:
    """The least and the most."""
    return f"{values[0]}" if len(values) == 1 else f"{values[0]} to {values[-1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=240)
    parser.add_argument("--warm-up", type=int, default=60)
    args = parser.parse_args()
    if not TUNED.keys() <= os.environ.keys():  # read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | TUNED)
    os.environ["OMP_NUM_THREADS"] = "1"
    process = psutil.Process()
    kinds = list(look(process, SAMPLES / "none"))
    looks = np.zeros((args.runs, len(kinds)), dtype=np.int64)  # in place: what is noted is no growth
    with tempfile.TemporaryDirectory() as scratch:
        temporary, work = Path(scratch) / "temporary", Path(scratch) / "work"
        temporary.mkdir()
        work.mkdir()
        tempfile.tempdir = os.environ["TMPDIR"] = str(temporary)
        for number in range(args.runs):
            if number == args.warm_up:
                fill_interned()
            once(number, work)
            looks[number] = list(look(process, temporary).values())
            print(looks[number].tolist(), flush=True)
    seen = [dict(zip(kinds, row, strict=True)) for row in looks.tolist()]
    warm = seen[args.warm_up :]
    slopes = {kind: slope([one[kind] / unit for one in warm]) for kind, (_, unit) in SLOPES.items()}
    within = {kind: abs(found) <= margin for kind, (found, margin) in slopes.items()}
    held = f"{seen[args.warm_up]['memory'] / 1e6:.0f} MB first, {seen[-1]['memory'] / 1e6:.0f} MB last"
    steady = {kind: sorted({one[kind] for one in warm}) for kind in ("threads", "descriptors", "temporary")}
    rows = [
        *(
            {"what": words, "runs": len(warm), "identical": within[kind], "note": "{:.4f} ± {:.4f}".format(*slopes[kind])}
            for kind, (words, _) in SLOPES.items()
        ),
        *(
            beside_a_step(SLOPES[kind][0], [one[kind] / 1e6 for one in warm], args.warm_up)
            for kind in ("memory", "in_use")
            if not within[kind]
        ),
        *(
            {"what": kind, "runs": len(warm), "identical": len(values) == 1, "note": _span(values)}
            for kind, values in steady.items()
        ),
    ]  # fmt: skip
    result = {
        "header": header(), "runs": args.runs, "warm_up": args.warm_up,
        "slope_mb": round(slopes["memory"][0], 5), "slope_interval_mb": round(slopes["memory"][1], 5),
        "slope_is_zero": within["memory"],
        "in_use_slope_mb": round(slopes["in_use"][0], 5), "in_use_slope_interval_mb": round(slopes["in_use"][1], 5),
        "in_use_slope_is_zero": within["in_use"],
        "memory_mb": [round(one["memory"] / 1e6, 2) for one in seen],
        "in_use_mb": [round(one["in_use"] / 1e6, 4) for one in seen],
        "objects": [one["objects"] for one in seen],
        "blocks": [one["blocks"] for one in seen],
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
