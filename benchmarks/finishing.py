"""The whole network learned after its units: accuracy and CPU seconds beside units alone, at low bits.

usage: python benchmarks/finishing.py [--data ../shared] [--networks resnet20_cifar10 ...] [--bits 2/2 2/4 3/3] [--seeds 0]

Every run is a process of `mrecg-onnx quantize` with one thread; its CPU seconds and peak memory are those of all of it, reading
and checking included. Accuracy is the referee's. A row is kept as soon as it is measured.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from _experiment import Rows, timed
from main import SETS, referee

RESULTS = Path(__file__).parent / "results"
#: What is compared: units alone as by default, and few iterations a unit with steps of the whole network behind.
RECIPES: dict[str, list[str]] = {
    "units, 1,000 iterations": ["--iters", "1000"],
    "units, 100 iterations": ["--method", "brecq", "--iters", "100"],
    "units, 100 iterations, then 800 steps": ["--method", "brecq", "--iters", "100", "--finish", "800"],
    "units, 125 iterations": ["--method", "brecq", "--iters", "125"],
    "units, 1,000 iterations, then 400 steps": ["--iters", "1000", "--finish", "400"],
    "units, 300 iterations with mirror images": ["--method", "brecq", "--iters", "300", "--augment", "flip"],
    "units, 1,500 iterations with mirror images": ["--method", "brecq", "--iters", "1500", "--augment", "flip"],
    "units, 4,000 iterations with mirror images": ["--method", "brecq", "--iters", "4000", "--augment", "flip"],
}  # fmt: skip


def measure(network: str, bits: str, recipe: str, seed: int, root: Path) -> dict[str, Any]:
    """One run in a process of its own."""
    model, dataset = root / "models" / f"{network}.onnx", SETS[network]
    wbits, abits = bits.split("/")
    out = Path("build") / "benchmarks" / f"finishing-{network}-{wbits}{abits}-{list(RECIPES).index(recipe)}-{seed}.onnx"
    for made in (
        out,
        out.with_suffix(".toml"),
    ):  # no result is written over unasked, and earlier builds know no --force
        made.unlink(missing_ok=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "mrecg_onnx", "quantize", str(model), "--calib", str(root / "data" / dataset / "calib"),
        "--wbits", wbits, "--abits", abits, "--seed", str(seed), "-o", str(out), *RECIPES[recipe],
    ]  # fmt: skip
    used = timed(command)
    found = referee(root, out, dataset, None)
    return {
        "network": network,
        "bits": bits,
        "recipe": recipe,
        "seed": seed,
        "top1": found["top1"],
        "cpu_seconds": used["cpu"],
        "peak_mib": used["peak_mb"],
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Means over seeds."""
    lines = [
        "| network | bits | what is learned | top-1 | seeds | CPU seconds | peak MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows.values():
        groups.setdefault((row["network"], row["bits"], row["recipe"]), []).append(row)
    for key in sorted(groups, key=lambda k: (k[0], k[1], list(RECIPES).index(k[2]))):
        found = groups[key]
        top1 = [row["top1"] for row in found]
        spread = f" ({min(top1):.4f} to {max(top1):.4f})" if len(top1) > 1 else ""
        seconds, peak = statistics.mean(r["cpu_seconds"] for r in found), max(r["peak_mib"] for r in found)
        cells = (
            key[0],
            f"W{key[1].replace('/', 'A')}",
            key[2],
            f"{statistics.mean(top1):.4f}{spread}",
            len(found),
            f"{seconds:.0f}",
            peak,
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared"))
    parser.add_argument("--networks", nargs="+", default=["resnet20_cifar10"], choices=list(SETS))
    parser.add_argument("--bits", nargs="+", default=["2/2", "2/4", "3/3"])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES)[:3], choices=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--again", action="store_true")
    args = parser.parse_args()
    rows = Rows("finishing")
    chosen = {
        f"{n} {b} {r} {s}": (n, b, r, s)
        for s in args.seeds
        for n in args.networks
        for b in args.bits
        for r in args.recipes
    }
    for key in rows.missing(list(chosen), again=args.again):
        rows.add(key, measure(*chosen[key], args.data))
        write(rows)
    write(rows)


def write(rows: Rows) -> None:
    """The table as Markdown."""
    text = "# The network learned together after its units\n\nCommand, date, versions, machine of each row: finishing.json.\n\n"
    (RESULTS / "finishing.md").write_text(text + table(rows.all()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
