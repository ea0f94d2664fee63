"""Mixed precision at the size of uniform W3: packed file size, and nominal average, against uniform W3A4.

usage: python benchmarks/mixed.py [--data ../shared] [--model NAME] [--rows NAME ...] [--iters 100] [--samples 256] [--quick]

Activations at 4 bits, method brecq, all else at its default; first and last layers at 8 bits, but where a size is the budget:
there their weights take part. Equalization, ranges and measured losses are shared by the rows of a run and not in their times.
Top-1 and output SQNR by the referee on ONNX Runtime. Rows are merged by key into benchmarks/results/mixed.json (.csv); mixed.md
is written from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _experiment import NAMES, RESULTS, Rows, arguments, machine, measured, share_starts

MODELS = ("mobilenetv2_imagenet", "resnet20_cifar10")
#: Settings of each row, by the name it has in the table; the budget of W3's size is taken from the row of that name.
ROWS: dict[str, dict[str, Any]] = {
    "uniform W3": {"wbits": 3},
    "average 3.0": {"avg_wbits": 3.0},
    "size of W3": {"size_budget": "uniform W3"},
    "uniform W4": {"wbits": 4},
    "2.2 MB": {"size_budget": 2_200_000},
    "1.4 MB": {"size_budget": 1_400_000},
}
#: Sizes of files that only mean something for the first model.
FIRST_ONLY = ("2.2 MB", "1.4 MB")


def share_costs() -> None:
    """Let all rows of this process share the losses measured: each width of each layer once."""
    from mrecg_onnx.widths import choice  # noqa: PLC0415 - torch is heavy and --help does not need it

    original, known = choice.measure_costs, {}

    def measured(network: Any, plan: Any, data: Any, settings: Any, *, layers: Mapping[str, Any], **more: Any) -> Any:
        missing = {n: [w for w in widths if w not in known.get(n, {})] for n, widths in layers.items()}
        found = original(network, plan, data, settings, layers={n: w for n, w in missing.items() if w}, **more)
        for name, row in found.weights.items():
            known[name] = known.get(name, {}) | row
        found.weights.update({n: {w: known[n][w] for w in widths} for n, widths in layers.items()})
        return found

    choice.measure_costs = measured


def measure(key: str, point: dict[str, Any], args: Any, store: Rows) -> dict[str, Any]:
    import mrecg_onnx  # noqa: PLC0415
    from mrecg_onnx.writing.containers import contained  # noqa: PLC0415

    chosen = dict(ROWS[point["row"]])
    if isinstance(chosen.get("size_budget"), str):
        chosen["size_budget"] = store.all()[_key(point | {"row": chosen["size_budget"]})]["packed_bytes"]
    settings = mrecg_onnx.Settings(
        abits=4,
        method="brecq",
        iters=point["iters"],
        samples=point["samples"],
        threads=args.threads,
        device=args.device,
        **chosen,
    )
    run, said = measured(key, args.model, args, settings)
    found = {name: said[name] for name in ("top1", "against_top1", "sqnr_db")}
    layers = run.result.plan.quantized_layers
    inner = [x for x in layers if not (x.first or x.last)]
    widths = {x.name: x.wbits for x in layers}
    return {
        **point,
        **found,
        "average": round(sum(x.wbits * x.params for x in inner) / sum(x.params for x in inner), 3),
        "packed_bytes": contained(run.result.model, "packed").model.ByteSize(),
        "wbits": widths,
        "seconds": {stage: round(s, 1) for stage, s in run.result.seconds.items()},
        "costs": run.result.allocation.to_json()["weights"] if run.result.allocation else {},
    }


def _key(point: Mapping[str, Any]) -> str:
    model = "" if point["model"] == MODELS[0] else f"-{point['model']}"
    return f"mixed{model}-{point['row']}-{point['iters']}-{point['samples']}".replace(" ", "")


def write(store: Rows) -> None:
    rows = store.all()
    lines = [
        "# Mixed precision against uniform widths",
        "",
        "Written by `python benchmarks/mixed.py`, whose head says what is measured; commands, dates and versions of all rows in",
        "mixed.json. Standard error of top-1: .013 (MobileNetV2), .006 (ResNet-20). Average: bits a weight between the first and",
        "the last layer; packed: the file with codes of 2, 4 or 8 bits, in bytes as it is written.",
        "",
    ]
    for model, iters, samples in dict.fromkeys((r["model"], r["iters"], r["samples"]) for r in rows.values()):
        some = [r for r in rows.values() if (r["model"], r["iters"], r["samples"]) == (model, iters, samples)]
        lines += [
            f"## {NAMES[model]} (FP32 {some[0]['against_top1']}), A4, {iters} iterations a unit, {samples} images",
            "",
            "| weights | top-1 | SQNR in dB | average bits | packed MB | layers at 2 .. 8 bits |",
            "|---|---|---|---|---|---|",
        ]
        for row in sorted(some, key=lambda r: list(ROWS).index(r["row"])):
            widths = list(row["wbits"].values())
            counts = " ".join(str(widths.count(w)) for w in range(2, 9))
            lines.append(
                f"| {row['row']} | {row['top1']:.4f} | {row['sqnr_db']:.1f} | {row['average']:.2f} | "
                f"{row['packed_bytes'] / 1e6:.2f} | {counts} |"
            )
        lines.append("")
    (RESULTS / "mixed.md").write_text("\n".join([*lines, machine(rows)]) + "\n")


def main() -> None:
    parser = arguments(__doc__, quick="20 iterations, 64 images")
    parser.add_argument("--model", default=MODELS[0], choices=MODELS)
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--iters", type=int, default=100)
    parser.add_argument("--samples", type=int, default=256)
    args = parser.parse_args()
    iters, samples = (20, 64) if args.quick else (args.iters, args.samples)
    store = Rows("mixed")
    rows = [row for row in args.rows if args.model == MODELS[0] or row not in FIRST_ONLY]
    points = [{"model": args.model, "row": row, "iters": iters, "samples": samples} for row in rows]
    by_key = {_key(point): point for point in points}
    if not args.draw:
        share_starts()
        share_costs()
    for key in () if args.draw else store.missing(list(by_key), again=args.again):
        store.add(key, measure(key, by_key[key], args, store))
        write(store)
    write(store)


if __name__ == "__main__":
    main()
