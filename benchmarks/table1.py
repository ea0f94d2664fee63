"""The paper's Table 1 at our scale: every method at W4A4, W2A4, W3A3 and W2A2, all else equal.

usage: python benchmarks/table1.py [--data ../shared] [--models NAME ...] [--methods NAME ...] [--bits W4A4 ...]
           [--seeds 0 1 2] [--iters 1000] [--batch 32] [--samples 1024] [--augment none|flip] [--lapq-images 512]
           [--lapq-evaluations N] [--steps] [--quick]

Equal calibration images, batch and iterations a unit for every method (AdaRound's units are layers); top-1 by the referee on
ONNX Runtime; ResNet-20 with three seeds, the others with the first. mrecg merges units over brecq, mrecg-qdrop over qdrop;
brecq-ste learns the weights themselves, as adaquant does. All methods of one process share equalization and ranges; "seconds"
leave them out. McNemar's p of each method against FP32 is the referee's. A row that fails (a method that cannot do the bits) is
kept with its reason and measured again by --again.
--steps measures nothing new: it holds each method's file against its weaker parent's, image by image (McNemar, exact).

Rows are merged by key into benchmarks/results/table1.json (.csv); table1.md and table1.png are written from them.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from typing import Any

from _experiment import (
    BUILD,
    COLORS,
    NAMES,
    RESULTS,
    SETS,
    Rows,
    arguments,
    machine,
    plotting,
    quantize,
    referee,
    share_starts,
)

BITS = ("W4A4", "W2A4", "W3A3", "W2A2")
SEEDED = "resnet20_cifar10"
#: What each method adds something to; mrecg's base is brecq by default.
PARENTS = {
    "aciq": "nearest", "lapq": "nearest", "bit-split": "nearest", "adaround": "nearest", "adaquant": "nearest",
    "brecq-paper": "adaround", "brecq": "adaround", "brecq-ste": "brecq", "qdrop": "brecq", "mrecg": "brecq",
    "mrecg-qdrop": "qdrop",
}  # fmt: skip
#: Rows of the table that are not rows of the package's: mrecg over its other base, brecq with adaquant's rounding.
VARIANTS = {
    "mrecg-qdrop": {"method": "mrecg", "base": "qdrop"},
    "brecq-ste": {"method": "brecq", "rounding": "ste"},
}


def widths(text: str) -> tuple[int, int]:
    """(4, 4) of "W4A4"."""
    found = re.fullmatch(r"W(\d)A(\d)", text)
    assert found is not None, text
    return int(found[1]), int(found[2])


def choices(method: str, args: Any) -> dict[str, Any]:
    """Settings that make a row; lapq has no iterations, it says otherwise how long it searches."""
    search = {"lapq_images": args.lapq_images, "lapq_evaluations": args.lapq_evaluations} if method == "lapq" else {}
    return VARIANTS.get(method, {"method": method}) | search


def measure(key: str, point: dict[str, Any], args: Any) -> dict[str, Any]:
    import mrecg_onnx  # noqa: PLC0415 - torch is heavy and --help does not need it

    wbits, abits = widths(point["bits"])
    model, dataset = point["model"], SETS[point["model"]]
    fp32 = args.data / "models" / f"{model}.onnx"
    calib = args.data / "data" / dataset / "calib"
    try:
        settings = mrecg_onnx.Settings(
            wbits=wbits, abits=abits, seed=point["seed"], iters=point["iters"],
            batch_size=point["batch"], samples=point["samples"], augment=point["augment"], threads=args.threads,
            device=args.device, **choices(point["method"], args),
        )  # fmt: skip
        run = quantize(key, fp32, calib, settings)
    except mrecg_onnx.MrecgError as error:
        return {**point, "failed": str(error)}
    said = referee(args.data, run.row["file"], dataset, fp32)
    row = {name: run.row[name] for name in ("seconds", "images", "merges", "kept_nearest")}
    return {**point, "failed": "", "top1": said["top1"], "fp32_top1": said["against_top1"], "fp32_p": said["mcnemar_p"],
            "sqnr_db": said["sqnr_db"], **row}  # fmt: skip


def step(key: str, rows: dict[str, Any], args: Any) -> dict[str, Any] | None:
    """McNemar's test of a row's file against its parent's; None where one of them is not there."""
    row = rows[key]
    parent = PARENTS.get(row["method"], "")
    other = key.replace(f"-{row['method']}-W", f"-{parent}-W")
    files = [BUILD / f"{k}.onnx" for k in (key, other)]
    if not parent or other not in rows or not all(f.exists() for f in files):
        return None
    said = referee(args.data, files[0], SETS[row["model"]], files[1])
    return {"parent": parent, "parent_top1": said["against_top1"], "parent_p": said["mcnemar_p"]}


def points(args: Any) -> dict[str, dict[str, Any]]:
    """Rows by key, seed by seed, so that the first ones already make a table."""
    found = {}
    for seed in args.seeds:
        for model in args.models:
            if seed != args.seeds[0] and model != SEEDED:
                continue
            for bits in args.bits:
                for method in args.methods:
                    point = {"model": model, "method": method, "bits": bits, "seed": seed, "iters": args.iters,
                             "batch": args.batch, "samples": args.samples, "augment": args.augment}  # fmt: skip
                    found["-".join(["table1", *(str(v) for v in point.values())])] = point
    return found


def _group(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[k] for k in ("iters", "batch", "samples", "augment"))


def write(store: Rows) -> None:
    rows = store.all()
    lines = ["# Table 1", "", "Written by `python benchmarks/table1.py`, whose head says what is measured; commands, dates and",
             "versions of all rows in table1.json. Several seeds: mean, then all of them.", "",
             "![top-1](table1.png)", ""]  # fmt: skip
    for group in dict.fromkeys(_group(r) for r in rows.values()):
        some = [r for r in rows.values() if _group(r) == group]
        iters, batch, samples, augment = group
        bits = [b for b in BITS if any(r["bits"] == b for r in some)]
        mirror = ", mirror images" if augment == "flip" else ""
        lines += [f"## {iters} iterations a unit, batch {batch}, at most {samples} images{mirror}", ""]
        for model in [m for m in NAMES if any(r["model"] == m for r in some)]:
            mine = [r for r in some if r["model"] == model]
            fp32 = next((f"{r['fp32_top1']:.4f}" for r in mine if "fp32_top1" in r), "-")
            lines += [f"| {NAMES[model]}, FP32 {fp32} | {' | '.join(bits)} |", "|---" * (len(bits) + 1) + "|"]
            for method in dict.fromkeys(r["method"] for r in mine):
                cells = [_cell([r for r in mine if (r["method"], r["bits"]) == (method, b)]) for b in bits]
                lines.append(f"| {method} | {' | '.join(cells)} |")
            lines.append("")
            lines += _steps(mine, bits)
    (RESULTS / "table1.md").write_text("\n".join([*lines, machine(rows)]) + "\n")
    draw(rows)


def _steps(rows: list[dict[str, Any]], bits: list[str]) -> list[str]:
    """The table of --steps: points above the parent and McNemar's p, seed by seed."""
    some = [r for r in rows if "parent_p" in r]
    if not some:
        return []
    lines = [f"| against its parent: points, McNemar's p | {' | '.join(bits)} |", "|---" * (len(bits) + 1) + "|"]
    for method in dict.fromkeys(r["method"] for r in some):
        mine = [r for r in some if r["method"] == method]
        cells = [
            ", ".join(
                f"{100 * (r['top1'] - r['parent_top1']):+.1f} ({r['parent_p']:.2g})" for r in mine if r["bits"] == b
            )
            for b in bits
        ]
        lines.append(f"| {method} over {mine[0]['parent']} | {' | '.join(cells)} |")
    return [*lines, ""]


def _cell(rows: list[dict[str, Any]]) -> str:
    tops = [r["top1"] for r in sorted(rows, key=lambda r: r["seed"]) if not r["failed"]]
    if not tops:
        return f"failed: {rows[0]['failed']}" if rows else ""
    if len(tops) == 1:
        return f"{tops[0]:.4f}"
    return f"**{statistics.mean(tops):.4f}** ({', '.join(f'{t:.4f}' for t in tops)})"


def draw(rows: dict[str, Any]) -> None:
    """Each model's group of most rows: a panel for every model and width, a dot for every seed."""
    plt = plotting()
    good = [r for r in rows.values() if not r["failed"]]
    models = [m for m in NAMES if any(r["model"] == m for r in good)]
    groups = {m: Counter(_group(r) for r in good if r["model"] == m).most_common(1)[0][0] for m in models}
    some = [r for r in good if _group(r) == groups[r["model"]]]
    bits = [b for b in BITS if any(r["bits"] == b for r in some)]
    order = ["nearest", *PARENTS]
    methods = sorted(dict.fromkeys(r["method"] for r in some), key=order.index)
    size = (1.6 + 2.9 * len(bits), 1 + len(models) * (0.7 + 0.3 * len(methods)))
    figure, axes = plt.subplots(len(models), len(bits), figsize=size, squeeze=False, sharey=True)
    for model, line in zip(models, axes, strict=True):
        for width, axis in zip(bits, line, strict=True):
            mine = [r for r in some if (r["model"], r["bits"]) == (model, width)]
            for place, method in enumerate(methods):
                tops = [100 * r["top1"] for r in mine if r["method"] == method]
                color = COLORS.get(method, "#444444")
                axis.scatter(tops, [place] * len(tops), s=34, color=color, alpha=0.75, linewidths=0)
                if tops:
                    mean = statistics.mean(tops)
                    axis.annotate(
                        f"{mean:.1f}", (mean, place), (0, 5), textcoords="offset points", ha="center", fontsize=8
                    )
            if mine:
                axis.axvline(100 * mine[0]["fp32_top1"], color="#555555", linestyle="--", linewidth=1)
            axis.set_title(f"{NAMES[model]}, {width}, {groups[model][0]} iterations", fontsize=10)
            axis.set_yticks(range(len(methods)), methods)
            axis.set_ylim(len(methods) - 0.5, -0.7)
            axis.margins(x=0.14)
    figure.supxlabel("top-1, %; dashed: FP32; one dot a seed", fontsize=10)
    figure.savefig(RESULTS / "table1.png")
    plt.close(figure)


def main() -> None:
    from mrecg_onnx.methods import METHODS  # noqa: PLC0415

    parser = arguments(__doc__, quick="ResNet-20, one seed, 60 iterations, 256 images")
    parser.add_argument("--models", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--methods", nargs="*", default=[*METHODS, *VARIANTS], choices=[*METHODS, *VARIANTS])
    parser.add_argument("--bits", nargs="*", default=list(BITS), choices=list(BITS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--iters", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--lapq-images", type=int, default=512)
    parser.add_argument("--lapq-evaluations", type=int, default=None)
    parser.add_argument("--augment", default="none", choices=["none", "flip"])
    parser.add_argument("--steps", action="store_true", help="hold the files of each method against its parent's")
    args = parser.parse_args()
    if args.quick:
        args.models, args.seeds, args.iters, args.samples = [SEEDED], [0], 60, 256
    store, wanted = Rows("table1"), points(args)
    if args.steps:
        for key, row in store.all().items():
            found = None if row["failed"] or "parent_p" in row else step(key, store.all(), args)
            if found is not None:
                store.amend(key, found)
    elif not args.draw:
        share_starts()
        for key in store.missing(list(wanted), again=args.again):
            row = measure(key, wanted[key], args)
            store.add(key, row)
            print(
                f"  failed: {row['failed']}" if row["failed"] else f"  top-1 {row['top1']}, {row['seconds']} s",
                flush=True,
            )
    write(store)


if __name__ == "__main__":
    main()
