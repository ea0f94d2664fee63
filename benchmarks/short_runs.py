"""CPU seconds in which a short run of learned rounding gets somewhere: this build and others of it, in turn.

usage: python benchmarks/short_runs.py [--data ../shared] [--build NAME=COMMAND ...] [--tools NAME ...] [--iters 50 80]
                                       [--batch 16] [--samples 0] [--seeds 0 1 2] [--quick]

MobileNetV2 at W4A8 by `--method brecq`, first and last layers at 8 bits, one thread of torch. What is measured, and how, is as in
preparation.py: user and system time of the whole command, its peak memory as the system counts it, top-1 by the referee. With
`--samples 0` all calibration images are learned from. Rows are merged by key into benchmarks/results/short_runs.json (.csv);
short_runs.md is written from them.
"""

from __future__ import annotations

import statistics
from typing import Any

from _experiment import BUILD, RESULTS, SETS, Rows, arguments, builds, machine, measure_missing, referee, timed

MODEL, WBITS, ABITS = "mobilenetv2_imagenet", 4, 8


def measure(key: str, point: dict[str, Any], args: Any) -> dict[str, Any]:
    model, folder = args.data / "models" / f"{MODEL}.onnx", args.data / "data" / SETS[MODEL] / "calib"
    out = BUILD / f"{key}.onnx"
    for made in (
        out,
        out.with_suffix(".toml"),
    ):  # no result is written over unasked, and earlier builds know no --force
        made.unlink(missing_ok=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [args.builds[point["tool"]], "quantize", str(model), "--calib", str(folder), "--method", "brecq"]
    command += ["--wbits", str(WBITS), "--abits", str(ABITS), "--iters", str(point["iters"]), "-o", str(out)]
    command += ["--batch-size", str(point["batch"]), "--seed", str(point["seed"])]
    command += ["--samples", str(point["samples"])] if point["samples"] else []
    found = timed(command)
    found.pop("said")
    measured = referee(args.data, out, SETS[MODEL], model)
    return {**point, **found, **{k: measured[k] for k in ("top1", "against_top1", "sqnr_db")}}


def write(store: Rows) -> None:
    rows = store.all()
    lines = [
        "# Short runs",
        "",
        "Written by `python benchmarks/short_runs.py`, whose head says what is measured; commands, dates and versions of all",
        f"rows in short_runs.json. MobileNetV2 W{WBITS}A{ABITS}, `--method brecq`; means over seeds, top-1 of each in brackets.",
        "",
        "| build | iterations | batch | images | CPU s | peak MB | top-1 | SQNR dB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for r in sorted(rows.values(), key=lambda r: (r["tool"], r["iters"], r["batch"], r["samples"], r["seed"])):
        groups.setdefault((r["tool"], r["iters"], r["batch"], r["samples"] or "all"), []).append(r)
    for settings, found in groups.items():
        cpu, top1, sqnr = (statistics.mean(r[k] for r in found) for k in ("cpu", "top1", "sqnr_db"))
        peak, each = max(r["peak_mb"] for r in found), ", ".join(f"{r['top1']:.3f}" for r in found)
        lines.append(f"| {' | '.join(map(str, settings))} | {cpu:.1f} | {peak} | {top1:.4f} ({each}) | {sqnr:.1f} |")
    (RESULTS / "short_runs.md").write_text("\n".join([*lines, "", machine(rows)]) + "\n")


def main() -> None:
    parser = arguments(__doc__, quick="one seed")
    parser.add_argument("--build", nargs="*", default=[], metavar="NAME=COMMAND")
    parser.add_argument("--tools", nargs="*", help="builds that are measured (all)")
    parser.add_argument("--iters", nargs="*", type=int, default=[50, 80])
    parser.add_argument("--batch", nargs="*", type=int, default=[16])
    parser.add_argument("--samples", nargs="*", type=int, default=[0])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    args.builds = builds(args.build)
    store = Rows("short_runs")
    points = {
        f"short-{iters}-{batch}-{samples}-{tool}-{seed}": {
            "tool": tool, "iters": iters, "batch": batch, "samples": samples, "seed": seed,
        }
        for iters in args.iters
        for batch in args.batch
        for samples in args.samples
        for seed in (args.seeds[:1] if args.quick else args.seeds)
        for tool in args.tools or args.builds
    }  # fmt: skip
    measure_missing(store, points, measure, write, args)


if __name__ == "__main__":
    main()
