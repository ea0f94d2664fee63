"""Does oscillation matter? Random granularity schemes on ResNet-20: the end against the largest loss on the way.

usage: python benchmarks/schemes_random.py [--data ../shared] [--schemes 24] [--bits 2 4] [--iters 300]
           [--samples 1024] [--joint sum|same] [--quick]

Every row is one run of `mrecg` over `brecq` with squared error and a scheme drawn at random: neighbouring units joined with
probability one half, groups of at most three, stem and classifier alone (the rules of mrecg_onnx/planning/granularity.py); the
first row joins nothing. All else is equal. As in the paper's third figure the largest loss among the units in front of
the last block is held against the final error; here also against accuracy (referee), with Spearman's rank correlation.
"unit losses" are what the runs saw (held-out images, one value a joint unit): a scheme with few, long units has fewer places
to be large at, and they all lie further in front. "block losses" are measured on the finished network at the same places
for all schemes, every block but the last, also inside joint units. Joining itself changes the end, hence the last column.
--joint: whether joined units have the iterations of all their members or as many as any unit (as published).
Squared errors summed over channels, mean over images and space. The last block's unit ends behind global pooling; schemes
that join it with the one in front are told apart.

Rows are merged into benchmarks/results/schemes_random.json (.csv), the figure and the table are written from them.
"""

from __future__ import annotations

import json
import math
import random
import statistics
from typing import Any

from _experiment import (
    BUILD,
    NAMES,
    RESULTS,
    SETS,
    Rows,
    arguments,
    block_losses,
    machine,
    plotting,
    quantize,
    referee,
    share_starts,
)
from scipy.stats import spearmanr

MODEL = "resnet20_cifar10"
UNITS = 11
MAX_GROUP = 3
#: Joined pairs where nine blocks are in groups of three.
MOST = 6


def scheme(seed: int) -> list[int]:
    """Sizes of the groups: stem and classifier alone; seed 0 joins nothing."""
    if seed == 0:
        return [1] * UNITS
    draw, sizes, left = random.Random(seed), [1], UNITS - 2
    while left:
        size = 1
        while size < min(MAX_GROUP, left) and draw.random() < 0.5:
            size += 1
        sizes.append(size)
        left -= size
    return [*sizes, 1]


def measure(key: str, seed: int, args: Any) -> dict[str, Any]:
    import mrecg_onnx  # noqa: PLC0415 - torch is heavy and --help does not need it

    file = BUILD / f"{key}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps([[i] * n if n > 1 else i for i, n in enumerate(scheme(seed))]))
    settings = mrecg_onnx.Settings(
        wbits=args.bits[0], abits=args.bits[1], method="mrecg", base="brecq", scheme=str(file), loss="mse",
        iters=args.iters, samples=args.samples, joint_iters=args.joint, threads=args.threads, device=args.device,
    )  # fmt: skip
    dataset = SETS[MODEL]
    fp32 = args.data / "models" / f"{MODEL}.onnx"
    run = quantize(key, fp32, args.data / "data" / dataset / "calib", settings, images=256)
    losses = block_losses(run)
    said = referee(args.data, run.row["file"], dataset, fp32)
    return {
        "seed": seed, "bits": f"W{args.bits[0]}A{args.bits[1]}", "iters": args.iters, "joint": args.joint,
        "samples": args.samples, "scheme": scheme(seed), **run.row,
        "block_losses": losses, "largest_unit_loss": max(run.row["unit_losses"][:-2]), "largest_block_loss": max(losses[:-2]),
        "final_block_loss": losses[-2], "final_loss": losses[-1], "top1": said["top1"], "fp32_top1": said["against_top1"],
    }  # fmt: skip


def correlations(rows: list[dict[str, Any]]) -> dict[str, tuple[float, float, float]]:
    """Spearman's rho and p of what happens on the way with each measure of the end, and rho given the joined pairs."""
    found = {}
    joined = [sum(n - 1 for n in r["scheme"]) for r in rows]
    for way in ("joined", "largest_unit_loss", "largest_block_loss"):
        for end in ("final_block_loss", "final_loss", "top1"):
            x, y = joined if way == "joined" else [r[way] for r in rows], [r[end] for r in rows]
            rho, p = spearmanr(x, y)
            found[f"{way} / {end}"] = float(rho), float(p), math.nan if way == "joined" else partial(x, y, joined)
    return found


def last_joined(row: dict[str, Any]) -> bool:
    """Whether the last block's unit, which ends behind global pooling, is joined with the one in front."""
    return row["scheme"][-2] > 1


def partial(x: list[float], y: list[float], given: list[int]) -> float:
    """Rank correlation of x and y with what both share with ``given`` taken out."""
    xy, xg, yg = (spearmanr(a, b)[0] for a, b in ((x, y), (x, given), (y, given)))
    return float((xy - xg * yg) / math.sqrt((1 - xg**2) * (1 - yg**2)))


def _group(row: dict[str, Any]) -> tuple[str, str]:
    """Bits and iterations of a row; joined units may have those of all their members."""
    return row["bits"], f"{row['iters']}{' a member' if row.get('joint') == 'sum' else ''}"


LABELS = {"final_block_loss": "error of the last block", "final_loss": "error of the logits", "top1": "top-1",
          "joined": "number of joined pairs", "largest_unit_loss": "largest unit loss on the way",
          "largest_block_loss": "largest block loss on the way"}  # fmt: skip


def write(store: Rows) -> None:
    rows = store.all()
    lines = ["# Random schemes", "", "Written by `python benchmarks/schemes_random.py`, whose head says what is measured;",
             "all rows with commands, dates and versions in schemes_random.json.", "",
             "![the end against the largest loss on the way](schemes_random.png)", "",
             "| bits, iterations, schemes | on the way | against | Spearman's rho | p | rho at equal numbers of joined pairs |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    groups = sorted({_group(r) for r in rows.values()})
    for bits, iters in groups:
        some = [r for r in rows.values() if _group(r) == (bits, iters)]
        if len(some) < 4:
            continue
        for pair, (rho, p, given) in correlations(some).items():
            way, end = pair.split(" / ")
            more = "" if math.isnan(given) else f"{given:+.2f}"
            lines.append(
                f"| {bits}, {iters}, {len(some)} | {LABELS[way]} | {LABELS[end]} | {rho:+.2f} | {p:.2g} | {more} |"
            )
    lines += [
        "",
        "With the last block (and its pooling) in a joint unit, and without:",
        "",
        "| bits, iterations | last block | schemes | error of the logits | top-1, mean (range) |",
        "|---|---|---|---|---|",
    ]
    for bits, iters in groups:
        some = [r for r in rows.values() if _group(r) == (bits, iters) and r["seed"]]
        for what, mine in (
            ("joined", [r for r in some if last_joined(r)]),
            ("alone", [r for r in some if not last_joined(r)]),
        ):
            if mine:
                tops = [r["top1"] for r in mine]
                lines.append(
                    f"| {bits}, {iters} | {what} | {len(mine)} | {statistics.mean(r['final_loss'] for r in mine):.3g} | "
                    f"{statistics.mean(tops):.4f} ({min(tops):.4f} to {max(tops):.4f}) |"
                )
    lines += ["", "Without merging and at the extremes:", "", "| bits | scheme | largest unit loss | logits | top-1 |",
              "|---|---|---|---|---|"]  # fmt: skip
    for bits, iters in groups:
        some = [r for r in rows.values() if _group(r) == (bits, iters)]
        ranked = sorted(some, key=lambda r: r["largest_unit_loss"])
        single = [r for r in some if r["seed"] == 0]
        for what, row in [*(("no merging", r) for r in single), ("smallest", ranked[0]), ("largest", ranked[-1])]:
            lines.append(f"| {bits} | {what}: {' '.join(map(str, row['scheme']))} | {row['largest_unit_loss']:.3g} | "
                         f"{row['final_loss']:.3g} | {row['top1']:.4f} |")  # fmt: skip
    (RESULTS / "schemes_random.md").write_text("\n".join([*lines, "", machine(rows)]) + "\n")
    draw(rows, groups)


def draw(rows: dict[str, Any], groups: list[tuple[str, str]]) -> None:
    plt = plotting()
    ways, ends = ("largest_unit_loss", "largest_block_loss"), ("final_loss", "top1")
    figure, axes = plt.subplots(len(ends), len(ways) * len(groups), figsize=(4.3 * len(ways) * len(groups), 6.4),
                                squeeze=False, sharey="row")  # fmt: skip
    for g, (bits, iters) in enumerate(groups):
        some = [r for r in rows.values() if _group(r) == (bits, iters)]
        for w, way in enumerate(ways):
            for e, end in enumerate(ends):
                axis = axes[e][g * len(ways) + w]
                for marker, mine in (
                    ("o", [r for r in some if not last_joined(r)]),
                    ("^", [r for r in some if last_joined(r)]),
                ):
                    colors = [sum(n - 1 for n in r["scheme"]) for r in mine]
                    dots = axis.scatter(
                        [r[way] for r in mine], [r[end] for r in mine], c=colors, cmap="viridis", s=46, marker=marker, vmin=0,
                        vmax=MOST, edgecolors="white", linewidths=0.6, label="last block joined" if marker == "^" else "_",
                    )  # fmt: skip
                for row in (r for r in some if r["seed"] == 0):
                    axis.scatter([row[way]], [row[end]], s=130, facecolors="none", edgecolors="#d1495b", linewidths=1.6,
                                 label="no unit joined")  # fmt: skip
                rho, p = spearmanr([r[way] for r in some], [r[end] for r in some])
                axis.set_title(f"rank correlation {rho:+.2f} (p = {p:.2g})", fontsize=10.5)
                axis.set_xlabel(LABELS[way] if e == len(ends) - 1 else "")
                axis.set_ylabel(LABELS[end] if g + w == 0 else "")
    axes[0][0].legend(loc="best")
    figure.colorbar(dots, ax=axes, label="joined pairs", shrink=0.6, ticks=range(MOST + 1))
    titles = "; ".join(f"{bits}, {iters} iterations" for bits, iters in groups)
    figure.suptitle(f"Random granularity schemes on {NAMES[MODEL]}, {titles}, {len(rows)} runs")
    figure.savefig(RESULTS / "schemes_random.png")
    plt.close(figure)


def main() -> None:
    parser = arguments(__doc__, quick="8 schemes, 60 iterations")
    parser.add_argument("--schemes", type=int, default=24)
    parser.add_argument("--bits", type=int, nargs=2, default=(2, 4))
    parser.add_argument("--iters", type=int, default=300)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--joint", default="sum", choices=["sum", "same"])
    args = parser.parse_args()
    if args.quick:
        args.schemes, args.iters = 8, 60
    store = Rows("schemes_random")
    point = f"w{args.bits[0]}a{args.bits[1]}-{args.iters}-{args.samples}-{args.joint}"
    keys = {f"schemes-{point}-{seed}": seed for seed in range(args.schemes)}
    if not args.draw:
        share_starts()
        for key in store.missing(list(keys), again=args.again):
            store.add(key, measure(key, keys[key], args))
            row = store.all()[key]
            print(f"  largest {row['largest_unit_loss']:.3g}, final {row['final_loss']:.3g}, top-1 {row['top1']}, "
                  f"{row['seconds']} s", flush=True)  # fmt: skip
    write(store)


if __name__ == "__main__":
    main()
