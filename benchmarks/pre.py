"""What each step before (and after) rounding brings on MobileNetV2, rounded to nearest: equalization, Relu6 bounds, biases.

usage: python benchmarks/pre.py [--data ../shared] [--rows NAME ...] [--bits W8A8 W4A8 W4A4] [--samples 128] [--quick]

Nothing is learned; first and last layers at 8 bits. Top-1 and output SQNR by the referee on ONNX Runtime. Rows are merged by key
into benchmarks/results/pre.json (.csv); pre.md is written from them.
"""

from __future__ import annotations

from typing import Any

from _experiment import RESULTS, Rows, arguments, cross_table, machine, measured, share_starts
from table1 import widths

MODEL = "mobilenetv2_imagenet"
_OFF: dict[str, Any] = {"equalize": "off"}
#: Settings of each row, by the name it has in the table.
ROWS: dict[str, dict[str, Any]] = {
    "nothing": _OFF,
    "absorption": _OFF | {"absorb": "auto"},
    "bias correction": _OFF | {"bias_correction": True},
    "equalization": {},
    "equalization, Relu6 bounds": {"relu6": "auto"},
    "equalization, bias correction": {"bias_correction": True},
    "all": {"relu6": "auto", "absorb": "auto", "bias_correction": True},
}


def measure(key: str, point: dict[str, Any], args: Any) -> dict[str, Any]:
    import mrecg_onnx  # noqa: PLC0415 - torch is heavy and --help does not need it

    wbits, abits = widths(point["bits"])
    settings = mrecg_onnx.Settings(
        method="nearest",
        wbits=wbits,
        abits=abits,
        samples=point["samples"],
        threads=args.threads,
        device=args.device,
        **ROWS[point["row"]],
    )
    run, said = measured(key, MODEL, args, settings)
    found = {name: said[name] for name in ("top1", "against_top1", "sqnr_db")}
    result = run.result
    return {
        **point,
        **found,
        "equalized": sum(1 for e in result.equalized if e.alpha),
        "bounded": sum(e.bounded for e in result.equalized),
        "absorbed": [sum(a.used for a in result.absorbed), len(result.absorbed)],
        "corrected": len(result.corrections),
        "seconds": run.row["seconds"],
    }


def write(store: Rows) -> None:
    rows = store.all()
    lines = [
        "# Before and after rounding",
        "",
        "Written by `python benchmarks/pre.py`, whose head says what is measured; commands, dates and versions of all rows in",
        "pre.json. Top-1 (of 1,000 images; standard error .013) / output SQNR in dB. In brackets: streams equalized, those whose",
        "Relu6 became a bound a channel, tensors absorbed (of those where anything could be), biases corrected.",
        "",
    ]
    for samples in dict.fromkeys(r["samples"] for r in rows.values()):
        some = [r for r in rows.values() if r["samples"] == samples]
        bits = list(dict.fromkeys(r["bits"] for r in some))
        by = {(r["row"], r["bits"]): r for r in some}
        lines += cross_table(
            f"MobileNetV2 (FP32 {some[0]['against_top1']}), rounded to nearest, {samples} images",
            [name for name in ROWS if any(r["row"] == name for r in some)],
            bits,
            lambda name, width, by=by: _cell(by.get((name, width))),  # type: ignore[misc]
        )
    (RESULTS / "pre.md").write_text("\n".join([*lines, machine(rows)]) + "\n")


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    used, possible = row["absorbed"]
    counts = f"{row['equalized']}, {row['bounded']}, {used} of {possible}, {row['corrected']}"
    return f"{row['top1']:.4f} / {row['sqnr_db']:.1f} ({counts})"


def main() -> None:
    parser = arguments(__doc__, quick="W4A4 alone, 64 images")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--bits", nargs="*", default=["W8A8", "W4A8", "W4A4"])
    parser.add_argument("--samples", type=int, default=128)
    args = parser.parse_args()
    samples, every = (64, ["W4A4"]) if args.quick else (args.samples, args.bits)
    store = Rows("pre")
    points = {
        f"pre-{row}-{bits}-{samples}".replace(" ", "").replace(",", "-"): {"row": row, "bits": bits, "samples": samples}
        for bits in every
        for row in args.rows
    }
    if not args.draw:
        share_starts()
    for key in () if args.draw else store.missing(list(points), again=args.again):
        row = measure(key, points[key], args)
        store.add(key, row)
        print(f"  top-1 {row['top1']}, {row['sqnr_db']:.1f} dB, {row['seconds']} s", flush=True)
        write(store)
    write(store)


if __name__ == "__main__":
    main()
