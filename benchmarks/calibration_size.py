"""Calibration size and batch: accuracy against both, all else equal.

usage: python benchmarks/calibration_size.py [--data ../shared] [--model resnet20_cifar10] [--bits 2 4] [--iters 300]
           [--images 16 32 64 128 256 512 1000] [--batches 4 8 16 32 64 128] [--seeds 0 1 2] [--quick]

One sweep over the number of calibration images at batch 32 and one over the batch at all images (`mrecg`, default
settings otherwise; iterations a unit are the same in all rows, so a larger batch sees more images and takes longer, as in
the paper). Each seed draws other images. Top-1 by the referee.

Rows are merged into benchmarks/results/calibration_size.json (.csv); table and figure are written from them.
"""

from __future__ import annotations

import statistics
from typing import Any

from _experiment import NAMES, RESULTS, SETS, Rows, arguments, machine, measured, plotting

SWEEPS = {"samples": "calibration images", "batch": "batch"}
BATCH, IMAGES = 32, 1000
HUES = ("#1f6fb4", "#d1495b", "#2a9d8f", "#7b5ea7")


def measure(key: str, point: dict[str, Any], args: Any) -> dict[str, Any]:
    import mrecg_onnx  # noqa: PLC0415 - torch is heavy and --help does not need it

    wbits, abits = (int(b) for b in point["bits"][1:].split("A"))
    settings = mrecg_onnx.Settings(
        wbits=wbits, abits=abits, iters=point["iters"], samples=point["samples"], batch_size=point["batch"], seed=point["seed"],
        threads=args.threads, device=args.device,
    )  # fmt: skip
    run, said = measured(key, point["model"], args, settings)
    row = {name: run.row[name] for name in ("seconds", "images", "merges", "kept_nearest")}
    return {**point, **row, "top1": said["top1"], "fp32_top1": said["against_top1"], "sqnr_db": said["sqnr_db"]}


def _group(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["model"], row["bits"], row["iters"]


def _sweep(rows: dict[str, Any], group: tuple[Any, ...], sweep: str) -> dict[int, list[float]]:
    """Top-1 of all seeds by the value that the sweep changes."""
    other, fixed = ("batch", BATCH) if sweep == "samples" else ("samples", IMAGES)
    found: dict[int, list[float]] = {}
    for row in rows.values():
        if _group(row) == group and row[other] == fixed:
            found.setdefault(row[sweep], []).append(row["top1"])
    return dict(sorted(found.items()))


def write(store: Rows) -> None:
    rows = store.all()
    lines = ["# Calibration size and batch", "", "Written by `python benchmarks/calibration_size.py`, whose head says what is",
             "measured; commands, dates and versions of all rows in calibration_size.json.", "",
             "![top-1 against images and batch](calibration_size.png)", ""]  # fmt: skip
    for group in dict.fromkeys(_group(r) for r in rows.values()):
        for sweep, name in SWEEPS.items():
            found = _sweep(rows, group, sweep)
            if len(found) < 2:
                continue
            lines += [f"## {NAMES[group[0]]}, {group[1]}, {group[2]} iterations: {name}", "",
                      f"| {name} | top-1, mean | by seed | gain over the line above |", "|---|---|---|---|"]  # fmt: skip
            last = None
            for value, tops in found.items():
                mean = statistics.mean(tops)
                gain = "" if last is None else f"{100 * (mean - last):+.2f} points"
                lines.append(f"| {value} | {mean:.4f} | {', '.join(f'{t:.4f}' for t in tops)} | {gain} |")
                last = mean
            lines.append("")
    (RESULTS / "calibration_size.md").write_text("\n".join([*lines, machine(rows)]) + "\n")
    draw(rows)


def draw(rows: dict[str, Any]) -> None:
    plt = plotting()
    groups = list(dict.fromkeys(_group(r) for r in rows.values()))
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True)
    for axis, (sweep, name) in zip(axes, SWEEPS.items(), strict=True):
        ticks: set[int] = set()
        for group, color in zip(groups, HUES, strict=False):
            found = _sweep(rows, group, sweep)
            if not found:
                continue
            ticks |= set(found)
            axis.plot(list(found), [100 * statistics.mean(t) for t in found.values()], color=color, marker="o",
                      label=f"{NAMES[group[0]]}, {group[1]}, {group[2]} iterations")  # fmt: skip
            for value, tops in found.items():
                axis.scatter([value] * len(tops), [100 * t for t in tops], color=color, s=14, alpha=0.5, linewidths=0)
            fp32 = next(r["fp32_top1"] for r in rows.values() if _group(r) == group)
            axis.axhline(100 * fp32, color=color, linestyle="--", linewidth=1, alpha=0.7)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sorted(ticks), [str(t) for t in sorted(ticks)])
        axis.minorticks_off()
        axis.set_xlabel(name + (f" (batch {BATCH})" if sweep == "samples" else f" ({IMAGES} images)"))
    axes[0].set_ylabel("top-1, %; dashed: FP32")
    axes[0].legend(fontsize=9, loc="lower right")
    figure.savefig(RESULTS / "calibration_size.png")
    plt.close(figure)


def main() -> None:
    parser = arguments(__doc__, quick="three values a sweep, one seed, 60 iterations")
    parser.add_argument("--model", default="resnet20_cifar10", choices=list(SETS))
    parser.add_argument("--bits", type=int, nargs=2, default=(2, 4))
    parser.add_argument("--iters", type=int, default=300)
    parser.add_argument("--images", type=int, nargs="*", default=[16, 32, 64, 128, 256, 512, IMAGES])
    parser.add_argument("--batches", type=int, nargs="*", default=[4, 8, 16, 32, 64, 128])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    args = parser.parse_args()
    if args.quick:
        args.images, args.batches, args.seeds, args.iters = [32, 128, IMAGES], [8, 32], [0], 60
    bits = f"W{args.bits[0]}A{args.bits[1]}"
    pairs = list(dict.fromkeys([*((n, BATCH) for n in args.images), *((IMAGES, b) for b in args.batches)]))
    wanted = {}
    for seed in args.seeds:
        for samples, batch in pairs:
            point = {
                "model": args.model,
                "bits": bits,
                "iters": args.iters,
                "samples": samples,
                "batch": batch,
                "seed": seed,
            }
            wanted["-".join(["calibration", *(str(v) for v in point.values())])] = point
    store = Rows("calibration_size")
    if not args.draw:
        for key in store.missing(list(wanted), again=args.again):
            row = measure(key, wanted[key], args)
            store.add(key, row)
            print(f"  top-1 {row['top1']}, {row['seconds']} s", flush=True)
    write(store)


if __name__ == "__main__":
    main()
