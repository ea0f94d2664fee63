"""The oscillation figure: loss of each block for AdaRound, BRECQ, MRECG by capacity and MRECG by loss.

usage: python benchmarks/oscillation.py [--data ../shared] [--model mobilenetv2_imagenet] [--bits 4 4] [--iters 300]
           [--as default|paper] [--quick]

Loss: squared error at the output of each base unit of the *finished* network against the float one, summed over channels,
mean over calibration images and space; the same for all methods, so that AdaRound, which learns layer by layer, can be
drawn, too. All methods learn with the squared error here (the package's default is Huber's): what is drawn is then what was
minimized, as in the paper. A joint unit is drawn as in the paper, its own loss at each member; what goes on at the members'
own outputs inside it, which nothing minimizes, is drawn as hollow dots and counted apart.

Oscillation: the sum of squared rises from one unit to the next, in units of the squared mean loss; falls likewise.
"default" is the package's handling of skip paths, ranges, biases and weight scales; "paper" is as published (one quantizer
a tensor, p = 2.4, no equalization, learned rounding and activation scales alone).

Rows are merged into benchmarks/results/oscillation.json (.csv); table and figure are written from them.
"""

from __future__ import annotations

import statistics
from typing import Any

from _experiment import (
    COLORS,
    NAMES,
    RESULTS,
    SETS,
    Rows,
    arguments,
    block_losses,
    falls,
    machine,
    plotting,
    quantize,
    referee,
    rises,
    share_starts,
)

METHODS: dict[str, dict[str, Any]] = {
    "adaround": {"method": "adaround"},
    "brecq": {"method": "brecq"},
    "mrecg-modcap": {"method": "mrecg", "base": "brecq", "scheme": "modcap"},
    "mrecg-loss": {"method": "mrecg", "base": "brecq", "scheme": "loss"},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {
        "equalize": "off",
        "residual": "shared",
        "range": "mse",
        "learn_bias": False,
        "learn_weight_scales": False,
    },
}


def measure(key: str, point: dict[str, Any], args: Any) -> dict[str, Any]:
    import mrecg_onnx  # noqa: PLC0415 - torch is heavy and --help does not need it

    wbits, abits = (int(b) for b in point["bits"][1:].split("A"))
    settings = mrecg_onnx.Settings(
        wbits=wbits, abits=abits, loss="mse", iters=point["iters"], samples=point["samples"], threads=args.threads,
        device=args.device, **METHODS[point["method"]], **VARIANTS[point["as"]],
    )  # fmt: skip
    dataset = SETS[point["model"]]
    fp32 = args.data / "models" / f"{point['model']}.onnx"
    run = quantize(key, fp32, args.data / "data" / dataset / "calib", settings, images=args.images)
    losses = block_losses(run)
    row = {name: run.row[name] for name in ("seconds", "images", "merges", "kept_nearest")}
    said = referee(args.data, run.row["file"], dataset)
    return {**point, "losses": losses, **row, "top1": said["top1"]}


def units(row: dict[str, Any]) -> list[tuple[list[int], float]]:
    """Blocks and loss of each unit without the classifier's; a joint unit has the loss of its last block."""
    joint = {group[0]: group for group in row["merges"]} if row["method"].startswith("mrecg") else {}
    found, block = [], 0
    while block < len(row["losses"]) - 1:
        group = joint.get(block, [block])
        found.append((group, row["losses"][group[-1]]))
        block = group[-1] + 1
    return found


def oscillation(row: dict[str, Any]) -> dict[str, float]:
    """Squared rises and falls over the squared mean, of units and of all blocks."""
    drawn, blocks = [loss for _, loss in units(row)], row["losses"][:-1]
    size = statistics.mean(blocks) ** 2
    return {"rises": rises(drawn) / size, "falls": falls(drawn) / size, "rises of blocks": rises(blocks) / size,
            "falls of blocks": falls(blocks) / size, "largest": max(drawn), "largest block": max(blocks)}  # fmt: skip


def _group(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[k] for k in ("model", "bits", "as", "iters", "samples"))


def _title(group: tuple[Any, ...]) -> str:
    model, bits, variant, iters, samples = group
    return f"{NAMES[model]}, {bits}, {iters} iterations, {samples} images, {variant} settings"


def write(store: Rows) -> None:
    rows = store.all()
    lines = ["# Oscillation", "", "Written by `python benchmarks/oscillation.py`, whose head says what is measured; commands,",
             "dates and versions of all rows in oscillation.json.", "", "![loss of each block](oscillation.png)", ""]  # fmt: skip
    for group in dict.fromkeys(_group(r) for r in rows.values()):
        lines += [f"## {_title(group)}", "",
                  "| method | joined | rises | falls | rises, blocks | falls, blocks | largest | last block | logits | top-1 |",
                  "|---" * 10 + "|"]  # fmt: skip
        for row in _ordered(rows, group):
            o = oscillation(row)
            joined = " ".join(f"{g[0]}-{g[-1]}" for g, _ in units(row) if len(g) > 1) or "-"
            shown = [f"{o[name]:.2f}" for name in ("rises", "falls", "rises of blocks", "falls of blocks")]
            cells = [row["method"], joined, *shown, f"{o['largest']:.3g}", f"{row['losses'][-2]:.3g}",
                     f"{row['losses'][-1]:.3g}", f"{row['top1']:.4f}"]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    (RESULTS / "oscillation.md").write_text("\n".join([*lines, machine(rows)]) + "\n")
    draw(rows)


def _ordered(rows: dict[str, Any], group: tuple[Any, ...]) -> list[dict[str, Any]]:
    some = [r for r in rows.values() if _group(r) == group]
    return sorted(some, key=lambda r: list(METHODS).index(r["method"]))


def draw(rows: dict[str, Any]) -> None:
    plt = plotting()
    groups = list(dict.fromkeys(_group(r) for r in rows.values()))
    figure, axes = plt.subplots(len(groups), 1, figsize=(10.5, 4.6 * len(groups)), squeeze=False)
    for group, axis in zip(groups, axes[:, 0], strict=True):
        some = _ordered(rows, group)
        for row in some:
            color, pieces = COLORS[row["method"]], units(row)
            x = [b for g, _ in pieces for b in g]
            y = [loss for g, loss in pieces for _ in g]
            axis.plot(x, y, color=color, linewidth=1.6, marker="o", markersize=4.5, label=_label(row), zorder=3)
            for blocks, loss in pieces:
                if len(blocks) > 1:  # the bracket of a joint unit
                    axis.plot(
                        [blocks[0], blocks[-1]],
                        [loss, loss],
                        color=color,
                        linewidth=7,
                        alpha=0.3,
                        solid_capstyle="round",
                    )
                    axis.plot(blocks[:-1], [row["losses"][b] for b in blocks[:-1]], linestyle="none", marker="o", markersize=4.5,
                              markerfacecolor="none", markeredgecolor=color, zorder=3)  # fmt: skip
        axis.set_xticks(range(len(some[0]["losses"]) - 1))
        axis.set_ylim(0, None)
        axis.set_xlabel("base unit (bands: joint units; hollow: loss at a member's own output)")
        axis.set_ylabel("squared error, summed over channels")
        axis.set_title(_title(group), fontsize=10.5)
        axis.legend(fontsize=9)
    figure.savefig(RESULTS / "oscillation.png")
    plt.close(figure)


def _label(row: dict[str, Any]) -> str:
    names = {"adaround": "AdaRound", "brecq": "BRECQ", "mrecg-modcap": "MRECG, capacity", "mrecg-loss": "MRECG, loss"}
    return f"{names[row['method']]}: rises {oscillation(row)['rises']:.2f}, top-1 {100 * row['top1']:.1f} %"


def main() -> None:
    parser = arguments(__doc__, quick="60 iterations, 128 images")
    parser.add_argument("--model", default="mobilenetv2_imagenet", choices=list(SETS))
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--bits", type=int, nargs=2, default=(4, 4))
    parser.add_argument("--iters", type=int, default=300)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--images", type=int, default=128, help="calibration images that losses are measured on")
    parser.add_argument("--as", dest="variant", default="default", choices=list(VARIANTS))
    args = parser.parse_args()
    if args.quick:
        args.iters, args.samples = 60, 128
    bits = f"W{args.bits[0]}A{args.bits[1]}"
    wanted = {}
    for method in args.methods:
        point = {"model": args.model, "method": method, "bits": bits, "as": args.variant, "iters": args.iters,
                 "samples": args.samples}  # fmt: skip
        wanted["-".join(["oscillation", *(str(v) for v in point.values())])] = point
    store = Rows("oscillation")
    if not args.draw:
        share_starts()
        for key in store.missing(list(wanted), again=args.again):
            row = measure(key, wanted[key], args)
            store.add(key, row)
            print(
                "  " + " ".join(f"{x:.3g}" for x in row["losses"]),
                f"top-1 {row['top1']}, {row['seconds']} s",
                flush=True,
            )
    write(store)


if __name__ == "__main__":
    main()
