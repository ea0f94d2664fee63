"""Scheme selection: which rule should decide what `mrecg` joins?

usage: python benchmarks/selection.py [--data ../shared] [--model resnet20_cifar10] [--bits 2 4] [--iters 300]
           [--seeds 0 1 2] [--base brecq] [--rules NAME ...] [--joint sum|same] [--quick]

Rules, all with the same number k of joined pairs: none (k = 0); module capacity (Eq. 3) by Eq. 4 taken literally, by Eq. 4
on relative differences, and by the signed rule (join where capacity rises); losses of the probing run by Eq. 4 taken
literally, on relative differences, and by the signed rule ("peak"); "published": on MobileNetV2 the scheme of the
published configuration, on ResNets its pattern (the last block of a stage with the first of the next); "random": k pairs
drawn for each seed. "none, twice the iterations" is what the time that joining costs brings without joining. "peak, own k"
lets the signed rule decide how many pairs there are; k is that of the published scheme. --joint: whether joined units have
the iterations of all their members or as many as any unit (as published).
All rules of one process share equalization and ranges; times leave them out.
Top-1 by the referee; the error of the logits is the relative squared error to FP32 by the referee's SQNR.

Rows are merged into benchmarks/results/selection.json (.csv); table and figure are written from them.
"""

from __future__ import annotations

import json
import random
import statistics
from typing import Any

from _experiment import BUILD, NAMES, RESULTS, SETS, Rows, arguments, machine, measured, plotting, share_starts

RULES: dict[str, dict[str, Any]] = {
    "none": {"scheme": "none"},
    "none, twice the iterations": {"scheme": "none"},
    "capacity, literal": {"scheme": "modcap", "selection": "eq4"},
    "capacity, relative": {"scheme": "modcap", "selection": "relative"},
    "capacity, signed": {"scheme": "modcap", "selection": "peak"},
    "loss, literal": {"scheme": "loss", "selection": "eq4"},
    "loss, relative": {"scheme": "loss", "selection": "relative"},
    "loss, peak": {"scheme": "loss", "selection": "peak"},
    "loss, peak, own k": {"scheme": "loss", "selection": "peak"},
    "published": {},
    "random": {},
}
#: Sizes of the groups. MobileNetV2: the published configuration; ResNets: stage borders, as published for ResNet-18.
PUBLISHED = {
    "resnet20_cifar10": [1, 1, 1, 2, 1, 2, 1, 1, 1],
    "resnet56_cifar10": [1, *[1] * 8, 2, *[1] * 7, 2, *[1] * 8, 1],
    "mobilenetv2_imagenet": [1, 1, 2, 1, 2, 1, 3, 3, 1, 2, 1],
}
MAX_GROUP = 3


def merges(sizes: list[int]) -> int:
    """K of a scheme: its joined pairs."""
    return sum(size - 1 for size in sizes)


def drawn(count: int, k: int, seed: int) -> list[int]:
    """``k`` pairs at random: neither stem nor classifier, groups of at most three."""
    draw = random.Random(seed)
    while True:
        joined = set(draw.sample(range(1, count - 2), k))  # pair i joins units i and i + 1
        sizes = [1]
        for i in range(count - 1):
            if i in joined:
                sizes[-1] += 1
            else:
                sizes.append(1)
        if max(sizes) <= MAX_GROUP:
            return sizes


def measure(key: str, point: dict[str, Any], args: Any) -> dict[str, Any]:
    import mrecg_onnx  # noqa: PLC0415 - torch is heavy and --help does not need it

    wbits, abits = (int(b) for b in point["bits"][1:].split("A"))
    published, rule = PUBLISHED[point["model"]], point["rule"]
    k = merges(published)
    chosen = dict(RULES[rule])
    if rule in {"published", "random"}:
        sizes = published if rule == "published" else drawn(sum(published), k, point["seed"])
        file = BUILD / f"{key}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps([[i] * n if n > 1 else i for i, n in enumerate(sizes)]))
        chosen["scheme"] = str(file)
    elif not rule.startswith("none") and rule != "loss, peak, own k":
        chosen["merges"] = k
    settings = mrecg_onnx.Settings(
        wbits=wbits, abits=abits, method="mrecg", base=point["base"],
        iters=point["iters"] * (2 if "twice" in rule else 1), seed=point["seed"],
        joint_iters=point["joint"], samples=point["samples"], threads=args.threads, device=args.device, **chosen,
    )  # fmt: skip
    run, said = measured(key.replace(", ", "-").replace(" ", "-"), point["model"], args, settings)
    row = {name: run.row[name] for name in ("seconds", "images", "merges", "kept_nearest")}
    return {**point, **row, "k": merges([len(g) for g in run.row["merges"]]) if run.row["merges"] else 0, "top1": said["top1"],
            "fp32_top1": said["against_top1"], "sqnr_db": said["sqnr_db"]}  # fmt: skip


def _group(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[k] for k in ("model", "bits", "base", "iters", "samples", "joint"))


def _title(group: tuple[Any, ...]) -> str:
    model, bits, base, iters, samples, joint = group
    shared = "those of all members" if joint == "sum" else "as any unit"
    return f"{NAMES[model]}, {bits}, over {base}, {iters} iterations (joined units: {shared}), {samples} images"


def _by_rule(rows: dict[str, Any], group: tuple[Any, ...]) -> dict[str, list[dict[str, Any]]]:
    some = sorted((r for r in rows.values() if _group(r) == group), key=lambda r: r["seed"])
    return {rule: mine for rule in RULES if (mine := [r for r in some if r["rule"] == rule])}


def write(store: Rows) -> None:
    rows = store.all()
    lines = ["# Scheme selection", "", "Written by `python benchmarks/selection.py`, whose head says what is measured; commands,",
             "dates and versions of all rows in selection.json.", "", "![top-1 by rule](selection.png)", ""]  # fmt: skip
    for group in dict.fromkeys(_group(r) for r in rows.values()):
        lines += [f"## {_title(group)}", "", "| rule | k | joined, first seed | top-1, mean | by seed | SQNR, mean | time |",
                  "|---|---|---|---|---|---|---|"]  # fmt: skip
        for rule, mine in _by_rule(rows, group).items():
            joined = " ".join(f"{g[0]}-{g[-1]}" for g in mine[0]["merges"]) or "-"
            tops = [r["top1"] for r in mine]
            lines.append(
                f"| {rule} | {', '.join(str(k) for k in dict.fromkeys(r['k'] for r in mine))} | {joined} | "
                f"{statistics.mean(tops):.4f} | {', '.join(f'{t:.4f}' for t in tops)} | "
                f"{statistics.mean(r['sqnr_db'] for r in mine):.2f} dB | {statistics.mean(r['seconds'] for r in mine):.0f} s |"
            )
        lines.append("")
    (RESULTS / "selection.md").write_text("\n".join([*lines, machine(rows)]) + "\n")
    draw(rows)


def draw(rows: dict[str, Any]) -> None:
    plt = plotting()
    groups = list(dict.fromkeys(_group(r) for r in rows.values()))
    figure, axes = plt.subplots(len(groups), 2, figsize=(10, 0.9 + 3.6 * len(groups)), squeeze=False, sharey="row")
    for group, line in zip(groups, axes, strict=True):
        found = _by_rule(rows, group)
        for axis, (value, factor, label) in zip(
            line, (("top1", 100, "top-1, %"), ("sqnr_db", 1, "SQNR of the logits, dB")), strict=True
        ):
            for place, (rule, mine) in enumerate(found.items()):
                numbers = [factor * r[value] for r in mine]
                color = (
                    "#d1495b" if rule.startswith("loss") else "#e08e2b" if rule.startswith("capacity") else "#666666"
                )
                axis.scatter(numbers, [place] * len(numbers), s=26, color=color, alpha=0.6, linewidths=0)
                axis.scatter([statistics.mean(numbers)], [place], marker="|", s=320, color=color, linewidths=2)
            if "none" in found:
                base = statistics.mean(factor * r[value] for r in found["none"])
                axis.axvline(base, color="#888888", linestyle="--", linewidth=1)
            axis.set_yticks(range(len(found)), list(found))
            axis.set_ylim(len(found) - 0.5, -0.5)
            axis.set_xlabel(label)
        line[0].set_title(_title(group), fontsize=10, loc="left")
    figure.suptitle("one dot a seed, bars: means; dashed: no units joined", fontsize=10)
    figure.savefig(RESULTS / "selection.png")
    plt.close(figure)


def main() -> None:
    parser = arguments(__doc__, quick="60 iterations, 256 images, one seed")
    parser.add_argument("--model", default="resnet20_cifar10", choices=list(SETS))
    parser.add_argument("--rules", nargs="*", default=list(RULES), choices=list(RULES), metavar="NAME")
    parser.add_argument("--base", default="brecq", choices=["brecq", "qdrop"])
    parser.add_argument("--bits", type=int, nargs=2, default=(2, 4))
    parser.add_argument("--iters", type=int, default=300)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--joint", default="sum", choices=["sum", "same"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.iters, args.samples = [0], 60, 256
    bits = f"W{args.bits[0]}A{args.bits[1]}"
    wanted = {}
    for seed in args.seeds:
        for rule in args.rules:
            point = {"model": args.model, "rule": rule, "bits": bits, "base": args.base, "iters": args.iters,
                     "samples": args.samples, "joint": args.joint, "seed": seed}  # fmt: skip
            wanted["-".join(["selection", *(str(v) for v in point.values())])] = point
    store = Rows("selection")
    if not args.draw:
        share_starts()
        for key in store.missing(list(wanted), again=args.again):
            row = measure(key, wanted[key], args)
            store.add(key, row)
            print(f"  k {row['k']}, top-1 {row['top1']}, {row['seconds']} s", flush=True)
    write(store)


if __name__ == "__main__":
    main()
