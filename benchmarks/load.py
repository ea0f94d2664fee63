"""A load test of ``compare``: 24 cells on two cores with 3 GB, killed ten times at random moments and started again.

usage: python benchmarks/load.py [--kills 10] [--about 240] [--memory-limit 3000000000] [--seed 0]

Six methods at four widths on the sample, few iterations. One run is undisturbed; of the other the whole process group is
killed (SIGKILL) --kills times, after random times of up to twice a share of --about seconds, and each time the same command is
started again, the last time to its end. Tables and quantized files of both are compared, times and memory aside. Every process
has an address space of --memory-limit at most, and the resident memory of all processes together is sampled and must stay below.

Writes benchmarks/results/load.json and load.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from _experiment import RESULTS
from _record import by, header

from mrecg_onnx.converters.files import write_whole

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "samples"
METHODS, BITS = ("nearest", "aciq", "adaround", "brecq", "qdrop", "mrecg"), ("W4A4", "W3A4", "W4A8", "W8A8")
OPTIONS = (
    "--iters", "4", "--samples", "24", "--batch-size", "16", "--threads", "1", "--equalize", "off", "--range", "mse",
    "--memory", "1GB", "--limit", "100", "--repeats", "0",
)  # fmt: skip
#: What two runs of the same differ in beside times and memory: where they lie, and which cells an earlier start had finished.
FREE = frozenset({"folder", "file", "written", "kept"})
#: Seconds between two looks at the memory.
LOOK = 0.1


@dataclass
class Comparison:
    """One comparison in a folder of its own; it may be started again and again.

    Attributes:
        peak: bytes, the most that all its processes held together.
        seconds: wall time, all starts together.
    """

    folder: Path
    limit: int
    peak: int = 0
    seconds: float = 0.0
    starts: int = 0
    said: list[str] = field(default_factory=list)

    def run(self, killed_after: float | None = None) -> bool:
        """Start the command; False where it was killed first."""
        command = [
            sys.executable, "-m", "mrecg_onnx", "compare", str(SAMPLES / "digits.onnx"), "--calib", str(SAMPLES / "calib"),
            "--data", str(SAMPLES / "val"), "--methods", ",".join(METHODS), "--bits", ",".join(BITS), *OPTIONS,
            "-o", str(self.folder),
        ]  # fmt: skip
        self.starts += 1
        start = time.monotonic()
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=output, start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
            psutil.Process(process.pid).rlimit(psutil.RLIMIT_AS, (self.limit, self.limit))  # its children inherit it
            done = threading.Event()
            watcher = threading.Thread(target=self._watch, args=(process.pid, done))
            watcher.start()
            try:
                process.wait(killed_after)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            done.set()
            watcher.join()
            self.seconds += time.monotonic() - start
            if process.returncode == -signal.SIGKILL:
                return False
            output.seek(0)
            if process.returncode:
                raise SystemExit(output.read().decode(errors="replace")[-2000:])
        return True

    @property
    def cells(self) -> int:
        """Files of finished cells."""
        return len(list(self.folder.glob("*.onnx")))

    def _watch(self, pid: int, done: threading.Event) -> None:
        while not done.wait(LOOK):
            held = 0
            try:
                tree = [psutil.Process(pid)]
                tree += tree[0].children(recursive=True)
            except psutil.Error:
                continue
            for one in tree:
                try:
                    held += one.memory_info().rss
                except psutil.Error:
                    continue
            self.peak = max(self.peak, held)


def plain(value: Any) -> Any:
    """A table's content without what every run has anew."""
    if isinstance(value, dict):
        anew = {k for k in value if k in FREE or any(word in k for word in ("second", "latency", "peak_bytes"))}
        return {k: plain(v) for k, v in value.items() if k not in anew}
    return [plain(entry) for entry in value] if isinstance(value, list) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--about", type=float, default=240.0, help="seconds that an undisturbed run may take here")
    parser.add_argument("--memory-limit", type=int, default=3 * 10**9)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    moments = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        undisturbed, disturbed = (Comparison(Path(name) / folder, args.memory_limit) for folder in ("one", "two"))
        alone = threading.Thread(target=undisturbed.run)
        alone.start()
        kills = []
        while len(kills) < args.kills:
            after = moments.uniform(0.0, 2.0 * args.about / (args.kills + 1))
            if disturbed.run(after):
                raise SystemExit(
                    f"it ended before kill {len(kills) + 1}: a larger --about is not needed, a smaller one is"
                )
            kills.append({"after_s": round(after, 1), "cells_finished": disturbed.cells})
            print(json.dumps(kills[-1]), flush=True)
        disturbed.run()
        alone.join()
        tables = [plain(json.loads((c.folder / "comparison.json").read_text())) for c in (undisturbed, disturbed)]
        files = sorted(path.name for path in undisturbed.folder.glob("*.onnx"))
        equal = sum((undisturbed.folder / f).read_bytes() == (disturbed.folder / f).read_bytes() for f in files)
        left = sorted(
            p.name for p in disturbed.folder.rglob("*") if ".tmp" in p.name or (p.name.startswith(".") and p.is_dir())
        )
    cells = len(METHODS) * len(BITS)
    rows = [
        {"what": f"compare, {cells} cells, killed {len(kills)} times: quantized files", "runs": cells, "identical": equal,
         "note": "against an undisturbed run"},
        {"what": "its table", "runs": 1, "identical": int(tables[0] == tables[1]), "note": "times and memory aside"},
    ]  # fmt: skip
    peak = max(undisturbed.peak, disturbed.peak)
    result = {
        "header": header(), "rows": rows, "cells": cells, "kills": kills, "peak_bytes": peak, "limit_bytes": args.memory_limit,
        "left_behind": left, "seconds": {"undisturbed": round(undisturbed.seconds), "disturbed": round(disturbed.seconds)},
    }  # fmt: skip
    write_whole(RESULTS / "load.json", json.dumps(result, indent=1) + "\n")
    lines = [
        "# compare under load", "", by(result["header"]), "",
        f"{len(METHODS)} methods at {len(BITS)} widths on the sample; no process had more than {args.memory_limit / 1e9:g} GB of",
        f"addresses. The process group was killed {len(kills)} times, {', '.join(str(k['after_s']) for k in kills)} s behind",
        f"its start, with {', '.join(str(k['cells_finished']) for k in kills)} of {cells} cells finished by then.", "",
        "| what | of | equal | |", "|---|---|---|---|",
        *(f"| {r['what']} | {r['runs']} | {r['identical']} | {r['note']} |" for r in rows), "",
        f"Memory of all processes together: {peak / 1e6:.0f} MB at most. Left behind in the folder: {len(left)}.", "",
    ]  # fmt: skip
    write_whole(RESULTS / "load.md", "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
