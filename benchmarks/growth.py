"""How time and memory grow: with iterations, calibration images, batch, depth and nodes.

usage: python benchmarks/growth.py [--data ../shared] [--sweeps iterations images batch depth nodes] [--threads 2]
           [--memory 2000000000] [--iters 50] [--images 250]

Every point is a whole run of ``mrecg_onnx.quantize`` (W4A4, qdrop, CPU) in a fresh process: wall time by stage and peak
resident memory of that process. A sweep changes one thing of the base point (MobileNetV2, 50 iterations a unit, 250 images,
batch 32); "depth" compares ResNet-20 and ResNet-56, which have the same width. More images than there are: the set repeated.

"nodes" is another thing: ``mrecg-onnx inspect`` of graphs of 400 to 10,000 nodes (``_chains.py``), in CPU seconds of a process,
imports included. It needs no data.

Points are merged into benchmarks/results/growth.json; growth.md and growth.png are written from it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _chains import CHAINS
from _memory import peak
from _record import header

RESULTS = Path(__file__).parent / "results"
SETS = {"resnet20_cifar10": "cifar10", "resnet56_cifar10": "cifar10", "mobilenetv2_imagenet": "imagenet"}
NAMES = {"resnet20_cifar10": "ResNet-20", "resnet56_cifar10": "ResNet-56", "mobilenetv2_imagenet": "MobileNetV2"}
#: Setting that a sweep changes, its values, and how the axis is called.
SWEEPS: dict[str, tuple[str, list[Any], str]] = {
    "iterations": ("iters", [50, 100, 200], "iterations a unit"),
    "images": ("images", [250, 500, 1000, 4000], "calibration images"),
    "batch": ("batch", [8, 16, 32, 64], "batch"),
    "depth": ("model", ["resnet20_cifar10", "resnet56_cifar10"], "model"),
}
#: The sweep that needs no model, and its values.
NODES, COUNTS = "nodes", [400, 1600, 10_000]
#: Columns of stages; the others are summed up.
SHOWN = {"equalization, ranges": ("equalize", "calibrate"), "reading": ("read",), "reconstruction": ("reconstruct",)}


# ---- one point, in a process of its own -----------------------------------------------------------------------------


def child(point: dict[str, Any], calib: str, root: Path) -> dict[str, Any]:
    """Quantize and say what it took."""
    import mrecg_onnx  # noqa: PLC0415 - the parent of all points stays small and starts at once

    settings = mrecg_onnx.Settings(
        method="qdrop", device="cpu", iters=point["iters"], samples=point["images"], batch_size=point["batch"],
        memory=point["memory"], threads=point["threads"],
    )  # fmt: skip
    start = time.perf_counter()
    result = mrecg_onnx.quantize(root / "models" / f"{point['model']}.onnx", calib, settings)
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "stages": {k: round(v, 2) for k, v in result.seconds.items()},
        "peak": peak(),
        "used": result.images,
        "units": len(result.units),
    }


def repeated(calib: Path, images: int, folder: Path) -> Path:
    """``calib``, or a folder of links to its files, as often as it takes to have ``images`` of them."""
    files = sorted(f for f in calib.rglob("*") if f.is_file())
    if images <= len(files):
        return calib
    for copy in range(-(-images // len(files))):
        for file in files:
            name = "-".join(file.relative_to(calib).parts)
            (folder / f"{copy}-{name}").symlink_to(file.resolve())
    return folder


def measure(point: dict[str, Any], root: Path) -> dict[str, Any]:
    """One point by a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        calib = repeated(root / "data" / SETS[point["model"]] / "calib", point["images"], Path(folder))
        command = [sys.executable, __file__, "--data", str(root), "--child", json.dumps(point), "--calib", str(calib)]
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]
    return {**point, **json.loads(said), "header": header()}


def measure_nodes(chain: str, count: int) -> dict[str, Any]:
    """``inspect`` on one graph by a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        path.write_bytes(CHAINS[chain](count).SerializeToString())
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "mrecg_onnx", "inspect", str(path)]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"graph": chain, "nodes": count, "cpu_s": round(seconds, 2), "header": header()}


def sweep_nodes(counts: list[int], path: Path) -> None:
    """Every kind of graph at every size; each point is kept as soon as it is there."""
    for chain in CHAINS:
        for count in counts:
            row = measure_nodes(chain, count)
            print(f"{chain}, {count} nodes: {row['cpu_s']} CPU s", flush=True)
            keep(path, "nodes", f"{chain}, {count}", row)


def keep(path: Path, sweep: str, name: str, row: dict[str, Any]) -> None:
    """Put a point among the results, and write the page anew."""
    results = json.loads(path.read_text()) if path.exists() else {}
    results.setdefault(sweep, {})[name] = row
    path.write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "growth.md").write_text(write_markdown(results))


# ---- results --------------------------------------------------------------------------------------------------------


def _order(sweep: str, row: dict[str, Any]) -> Any:
    value = row[SWEEPS[sweep][0]]
    return SWEEPS[sweep][1].index(value) if sweep == "depth" else value


def _sorted(results: dict[str, Any], sweep: str) -> list[dict[str, Any]]:
    return sorted(results.get(sweep, {}).values(), key=lambda row: _order(sweep, row))


def _fixed(sweep: str, row: dict[str, Any]) -> str:
    """What the rows of a sweep have in common."""
    parts = {"model": NAMES[row["model"]], "iters": f"{row['iters']} iterations", "images": f"{row['images']} images",
             "batch": f"batch {row['batch']}", "memory": f"memory budget {row['memory'] / 1e9:g} GB",
             "threads": f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"}  # fmt: skip
    return ", ".join(text for key, text in parts.items() if key != SWEEPS[sweep][0])


def write_markdown(results: dict[str, Any]) -> str:
    """The tables for people."""
    lines = ["# Growth", "",
             "Written by `python benchmarks/growth.py`; commands, dates, versions and machines in growth.json. W4A4, qdrop; each",
             "row is a whole run in a fresh process. Peak: resident memory of the process. More images than the set has: the set",
             "repeated.", "", "![time and peak memory](growth.png)", ""]  # fmt: skip
    machines = {}
    for sweep, (key, _, label) in SWEEPS.items():
        rows = _sorted(results, sweep)
        if not rows:
            continue
        lines += [f"## {label.capitalize()}", "", f"{_fixed(sweep, rows[0])}.", "",
                  f"| {label} | units | total | {' | '.join(SHOWN)} | rest | peak memory | total / first | peak / first |",
                  "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
        for row in rows:
            shown = [sum(row["stages"].get(stage, 0.0) for stage in stages) for stages in SHOWN.values()]
            times = [row["seconds"], *shown, row["seconds"] - sum(shown)]
            cells = [NAMES.get(row[key], row[key]), row["units"], *(f"{t:.1f} s" for t in times), f"{row['peak'] / 1e6:.0f} MB",
                     f"{row['seconds'] / rows[0]['seconds']:.2f}", f"{row['peak'] / rows[0]['peak']:.2f}"]  # fmt: skip
            lines.append(f"| {' | '.join(str(c) for c in cells)} |")
            machines[row["header"]["machine"]] = True
        lines.append("")
    lines += nodes_table(results.get(NODES, {}))
    machines.update((row["header"]["machine"], True) for row in results.get(NODES, {}).values())
    return "\n".join([*lines, f"Machine: {'; or '.join(machines)}."]) + "\n"


def nodes_table(rows: dict[str, Any]) -> list[str]:
    """CPU seconds of ``inspect`` by kind of graph and number of nodes."""
    counts = sorted({row["nodes"] for row in rows.values()})
    if not counts:
        return []
    by_chain = {chain: {r["nodes"]: r["cpu_s"] for r in rows.values() if r["graph"] == chain} for chain in CHAINS}
    lines = ["## Nodes", "", "CPU seconds of `mrecg-onnx inspect`, imports included, one thread.", ""]
    lines += [f"| graph | {' | '.join(f'{n:,} nodes' for n in counts)} |", "|---" * (len(counts) + 1) + "|"]
    for chain, seconds in by_chain.items():
        if seconds:
            cells = [f"{seconds[n]:.1f} s" if n in seconds else "-" for n in counts]
            lines.append(f"| {chain} | {' | '.join(cells)} |")
    return [*lines, ""]


def draw(results: dict[str, Any], path: Path) -> None:
    """Time above, memory below, a column for each sweep."""
    import matplotlib as mpl  # noqa: PLC0415 - only the parent draws

    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    sweeps = [sweep for sweep in SWEEPS if results.get(sweep)]
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(2, len(sweeps), figsize=(3.6 * len(sweeps), 6.2), squeeze=False, layout="constrained")
    for column, sweep in enumerate(sweeps):
        rows, (key, _, label) = _sorted(results, sweep), SWEEPS[sweep]
        time_axis, memory_axis = axes[0][column], axes[1][column]
        values = [NAMES.get(row[key], row[key]) for row in rows]
        for name, color, marker, times in (
            ("whole run", "#1f4e79", "o", [row["seconds"] for row in rows]),
            ("reconstruction", "#e07b39", "s", [row["stages"].get("reconstruct", 0.0) for row in rows]),
        ):
            time_axis.plot(values, times, color=color, marker=marker, label=name)
        memory_axis.plot(values, [row["peak"] / 1e9 for row in rows], color="#1f4e79", marker="o", label="_")
        budget = rows[0]["memory"] / 1e9
        memory_axis.axhline(budget, color="#888888", linestyle="--", linewidth=1, label="memory budget (--memory)")
        memory_axis.set_ylim(0, max(1.15 * budget, 1.1 * max(row["peak"] / 1e9 for row in rows)))
        time_axis.set_ylim(0, 1.1 * max(row["seconds"] for row in rows))
        time_axis.set_title(NAMES[rows[0]["model"]] if sweep != "depth" else "depth at equal width")
        for axis in (time_axis, memory_axis):
            axis.grid(visible=True, alpha=0.25)
            if sweep != "depth":
                axis.set_xlim(0, 1.06 * max(values))
                axis.set_xticks(_apart(values), [f"{v:,}" for v in _apart(values)])
            else:
                axis.margins(x=0.3)
        memory_axis.set_xlabel(label)
    axes[0][0].set_ylabel("seconds")
    axes[1][0].set_ylabel("peak memory, GB")
    handles = [*axes[0][0].get_legend_handles_labels()[0], axes[1][0].get_legend_handles_labels()[0][-1]]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _apart(values: list[int]) -> list[int]:
    """Ticks: the values, less those whose labels would run into the next one's."""
    kept: list[int] = []
    for value in sorted(values, reverse=True):
        if not kept or kept[-1] - value > 0.032 * len(f"{kept[-1]:,}") * max(values):
            kept.append(value)
    return kept[::-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared"))
    parser.add_argument("--sweeps", nargs="*", default=list(SWEEPS), choices=[*SWEEPS, NODES])
    parser.add_argument("--model", default="mobilenetv2_imagenet", choices=list(SETS), help="of all sweeps but depth")
    parser.add_argument("--iters", type=int, default=50)
    parser.add_argument("--images", type=int, default=250)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--memory", type=int, default=2_000_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--values", type=int, nargs="*", help="in place of those of the (one) sweep")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--calib", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child, args.calib, args.data)))
        return
    if args.values and (len(args.sweeps) != 1 or args.sweeps == ["depth"]):
        parser.error("--values goes with one sweep of numbers")
    base = {name: getattr(args, name) for name in ("model", "iters", "images", "batch", "memory", "threads")}
    path, known = RESULTS / "growth.json", {}
    if NODES in args.sweeps:
        sweep_nodes(args.values or COUNTS, path)
    for sweep in (name for name in args.sweeps if name != NODES):
        key, values, _ = SWEEPS[sweep]
        for value in args.values or values:
            point = {**base, key: value}
            if str(point) not in known:  # the base point belongs to several sweeps
                known[str(point)] = measure(point, args.data)
            row = known[str(point)]
            print(f"{sweep} {value}: {row['seconds']} s, {row['peak'] / 1e6:.0f} MB", flush=True)
            keep(path, sweep, str(value), row)
            draw(json.loads(path.read_text()), RESULTS / "growth.png")


if __name__ == "__main__":
    main()
