"""Systems and their options on ResNet-20: ranges, widths of channels, roundings, phases, corrections, one at a time.

usage: python benchmarks/systems.py [--data ../shared] [--rows NAME ...] [--bits W4A4 W2A4] [--seeds 0] [--iters 300] [--quick]

Everything but what a row names is at its default, calibration images, batch and iterations among it. Top-1 and output SQNR by
the referee on ONNX Runtime. Rows are merged by key into benchmarks/results/systems.json (.csv); systems.md is written from them.
"""

from __future__ import annotations

import statistics
from typing import Any

from _experiment import RESULTS, Rows, arguments, cross_table, machine, measured
from table1 import widths

MODEL = "resnet20_cifar10"
#: Settings of each row, by the name it has in the table.
ROWS: dict[str, dict[str, Any]] = {
    "nearest": {"method": "nearest"},
    **{
        f"nearest, range {r}": {"method": "nearest", "range": r}
        for r in ("mse", "minmax", "percentile", "entropy", "aciq")
    },
    "nearest, bias correction": {"method": "nearest", "bias_correction": True},
    "nearest, milp": {"method": "nearest", "allocate": "milp"},
    "aciq, channel bits off": {"method": "aciq", "channel_bits": "off"},
    "aciq, channel bits weights": {"method": "aciq", "channel_bits": "weights"},
    "aciq": {"method": "aciq"},
    "bit-split": {"method": "bit-split"},
    "bit-split, biases fixed": {"method": "bit-split", "learn_bias": False},
    "adaround": {"method": "adaround"},
    "adaround, cosine": {"method": "adaround", "anneal": "cosine"},
    "adaround, float activations": {"method": "adaround", "abits": 32},
    "adaquant": {"method": "adaquant"},
    "brecq-paper, float activations": {"method": "brecq-paper", "abits": 32},
    "brecq-paper, mse": {"method": "brecq-paper", "loss": "mse"},
    "brecq-paper, fisher": {"method": "brecq-paper", "loss": "fisher"},
    "brecq": {"method": "brecq"},
    "brecq, mse": {"method": "brecq", "loss": "mse"},
    "brecq, fisher": {"method": "brecq", "loss": "fisher"},
    "brecq, flexround": {"method": "brecq", "rounding": "flexround"},
    "brecq, ste": {"method": "brecq", "rounding": "ste"},
    "brecq, bias correction": {"method": "brecq", "bias_correction": True},
    "qdrop": {"method": "qdrop"},
    "mrecg": {"method": "mrecg"},
}


def measure(key: str, point: dict[str, Any], args: Any) -> dict[str, Any]:
    import mrecg_onnx  # noqa: PLC0415 - torch is heavy and --help does not need it

    wbits, abits = widths(point["bits"])
    try:
        chosen = {"wbits": wbits, "abits": abits} | ROWS[point["row"]]
        settings = mrecg_onnx.Settings(
            seed=point["seed"], iters=point["iters"], threads=args.threads, device=args.device, **chosen
        )
        run, said = measured(key, MODEL, args, settings)
    except mrecg_onnx.MrecgError as error:
        return {**point, "failed": str(error)}
    found = {name: said[name] for name in ("top1", "against_top1", "sqnr_db")}
    return {**point, "failed": "", **found, "seconds": run.row["seconds"]}


def write(store: Rows) -> None:
    rows = store.all()
    lines = [
        "# Systems and their options",
        "",
        "Written by `python benchmarks/systems.py`, whose head says what is measured; commands, dates and versions of all",
        "rows in systems.json. Top-1 (of 4,000 images; standard error .006) / output SQNR in dB; of several seeds the mean.",
        "",
    ]
    for iters in dict.fromkeys(r["iters"] for r in rows.values()):
        some = [r for r in rows.values() if r["iters"] == iters]
        bits = list(dict.fromkeys(r["bits"] for r in some))
        fp32 = next((r["against_top1"] for r in some if not r["failed"]), None)
        lines += cross_table(
            f"ResNet-20 (FP32 {fp32}), {iters} iterations a unit",
            [name for name in ROWS if any(r["row"] == name for r in some)],
            bits,
            lambda name, width, some=some: _cell([r for r in some if (r["row"], r["bits"]) == (name, width)]),  # type: ignore[misc]
        )
    (RESULTS / "systems.md").write_text("\n".join([*lines, machine(rows)]) + "\n")


def _cell(rows: list[dict[str, Any]]) -> str:
    good = [r for r in rows if not r["failed"]]
    if not good:
        return f"failed: {rows[0]['failed']}" if rows else ""
    tops = ", ".join(f"{r['top1']:.4f}" for r in good) if len(good) > 1 else ""
    mean, sqnr = (statistics.mean(r[n] for r in good) for n in ("top1", "sqnr_db"))
    return f"{mean:.4f} / {sqnr:.1f}" + (f" ({tops})" if tops else "")


def main() -> None:
    parser = arguments(__doc__, quick="60 iterations")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--bits", nargs="*", default=["W4A4", "W2A4"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--iters", type=int, default=300)
    args = parser.parse_args()
    iters = 60 if args.quick else args.iters
    store = Rows("systems")
    points = {
        f"systems-{row}-{bits}-{seed}-{iters}".replace(" ", "").replace(",", "-"): {
            "row": row, "bits": bits, "seed": seed, "iters": iters,
        }
        for seed in args.seeds for bits in args.bits for row in args.rows
    }  # fmt: skip
    for key in () if args.draw else store.missing(list(points), again=args.again):
        row = measure(key, points[key], args)
        store.add(key, row)
        print(
            f"  {row['failed'] or f'''top-1 {row['top1']}, {row['sqnr_db']:.1f} dB, {row['seconds']} s'''}", flush=True
        )
        write(store)
    write(store)


if __name__ == "__main__":
    main()
