"""What symmetric weights cost: top-1 with codes of a zero point a channel, around 0, and around 0 without the lowest code.

usage: python benchmarks/symmetric.py [--data ../shared] [--models NAME ...] [--bits W4A4 ...] [--codes NAME ...]
                                      [--seeds 0 1 2] [--iters 300] [--quick]

`--method brecq`, first and last layers at 8 bits, all else at its default; top-1 and SQNR by the referee on ONNX Runtime.
"narrow" is what the package does not offer below 8 bits: symmetric codes -(2^(b-1)-1)..2^(b-1)-1, three values of 2 bits. Rows
are merged by key into benchmarks/results/symmetric.json (.csv); symmetric.md is written from them.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from _experiment import NAMES, RESULTS, Rows, arguments, machine, measure_missing, measured

CODES = ("asymmetric", "symmetric", "narrow")


@contextmanager
def narrow_codes(on: bool) -> Iterator[None]:
    """Symmetric weights without the lowest code at every width."""
    from mrecg_onnx.calibrating import kept_grids  # noqa: PLC0415 - torch is heavy and --help does not need it
    from mrecg_onnx.quantizers import range_search  # noqa: PLC0415

    full = range_search.weight_codes
    rooms = (range_search, kept_grids)
    for room in rooms if on else ():
        room.weight_codes = lambda bits, *, symmetric: (full(bits, symmetric=symmetric)[0], False)
    try:
        yield
    finally:
        for room in rooms:
            room.weight_codes = full


def measure(key: str, point: dict[str, Any], args: Any) -> dict[str, Any]:
    import mrecg_onnx  # noqa: PLC0415

    wbits, abits = map(int, re.findall(r"\d+", point["bits"]))
    settings = mrecg_onnx.Settings(
        wbits=wbits,
        abits=abits,
        method="brecq",
        iters=point["iters"],
        seed=point["seed"],
        threads=args.threads,
        device=args.device,
        symmetric_weights=point["codes"] != "asymmetric",
    )
    with narrow_codes(point["codes"] == "narrow"):
        run, said = measured(key, point["model"], args, settings)
    return {**point, "seconds": run.row["seconds"], **{k: said[k] for k in ("top1", "against_top1", "sqnr_db")}}


def write(store: Rows) -> None:
    rows = store.all()
    lines = [
        "# What symmetric weights cost",
        "",
        "Written by `python benchmarks/symmetric.py`, whose head says what is measured; commands, dates and versions of all rows",
        "in symmetric.json. Means over seeds, each seed in brackets; one's standard error: .013 (MobileNetV2), .006 (ResNet-20).",
        "",
        "| model (FP32) | bits | iterations | weight codes | top-1 | against asymmetric | SQNR dB |",
        "|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[Any, ...], dict[str, list[dict[str, Any]]]] = {}
    for r in sorted(rows.values(), key=lambda r: (list(NAMES).index(r["model"]), r["bits"], r["iters"], r["seed"])):
        groups.setdefault((r["model"], r["bits"], r["iters"]), {}).setdefault(r["codes"], []).append(r)
    for (model, bits, iters), kinds in groups.items():
        for kind in (k for k in CODES if k in kinds):
            found = kinds[kind]
            top1, sqnr = (statistics.mean(r[k] for r in found) for k in ("top1", "sqnr_db"))
            each = ", ".join(f"{r['top1']:.4f}" for r in found)
            seeds = {r["seed"] for r in found}
            base = [r["top1"] for r in kinds.get("asymmetric", ()) if r["seed"] in seeds]
            drop = (
                f"{100 * (top1 - statistics.mean(base)):+.2f}"
                if kind != "asymmetric" and len(base) == len(seeds)
                else "-"
            )
            name = f"{NAMES[model]} ({found[0]['against_top1']})"
            lines.append(f"| {name} | {bits} | {iters} | {kind} | {top1:.4f} ({each}) | {drop} | {sqnr:.1f} |")
    (RESULTS / "symmetric.md").write_text("\n".join([*lines, "", machine(rows)]) + "\n")


def main() -> None:
    parser = arguments(__doc__, quick="one seed, 20 iterations")
    parser.add_argument("--models", nargs="*", default=["resnet20_cifar10"], choices=list(NAMES))
    parser.add_argument("--bits", nargs="*", default=["W4A4", "W2A4", "W2A2"])
    parser.add_argument("--codes", nargs="*", default=list(CODES[:2]), choices=CODES)
    parser.add_argument("--iters", type=int, default=300)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    iters = 20 if args.quick else args.iters
    points = {
        f"symmetric-{model}-{bits}-{iters}-{codes}-{seed}": {
            "model": model, "bits": bits, "iters": iters, "codes": codes, "seed": seed,
        }
        for model in args.models
        for bits in args.bits
        for seed in (args.seeds[:1] if args.quick else args.seeds)
        for codes in args.codes
    }  # fmt: skip
    measure_missing(Rows("symmetric"), points, measure, write, args)


if __name__ == "__main__":
    main()
