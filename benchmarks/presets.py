"""``--preset fast|balanced|best`` and the defaults: accuracy, CPU seconds and peak memory.

usage: python benchmarks/presets.py [--data ../shared] [--networks digits_resnet8 resnet20_cifar10] [--bits 4/4 2/2]
       [--presets fast balanced best] [--seeds 0]

Every run is a process of `mrecg-onnx quantize` with one thread; its CPU seconds and peak memory are those of all of it, reading
and checking included. Accuracy is the referee's, of the sample that of `validate`. A row is kept as soon as it is measured.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from _experiment import BUILD, RESULTS, SETS, Rows, machine, measure_missing, referee, timed

from mrecg_onnx.settings import PRESETS

SAMPLE, SAMPLES = "digits_resnet8", Path(__file__).parent.parent / "samples"
NAMES = {
    SAMPLE: "the sample",
    "resnet20_cifar10": "ResNet-20",
    "resnet56_cifar10": "ResNet-56",
    "mobilenetv2_imagenet": "MobileNetV2",
}
ROWS = ("nearest", *PRESETS, "defaults")


def measure(key: str, point: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """One run in a process of its own."""
    network, (wbits, abits) = point["network"], point["bits"].split("/")
    mine = network == SAMPLE
    model = SAMPLES / f"{network}.onnx" if mine else args.data / "models" / f"{network}.onnx"
    calib = SAMPLES / "calib" if mine else args.data / "data" / SETS[network] / "calib"
    out = BUILD / "presets" / f"{key}.onnx"
    out.parent.mkdir(parents=True, exist_ok=True)
    chosen = {"nearest": ["--method", "nearest"], "defaults": []}.get(point["preset"], ["--preset", point["preset"]])
    used = timed([
        sys.executable, "-m", "mrecg_onnx", "quantize", str(model), "--calib", str(calib), "--wbits", wbits, "--abits", abits,
        "--seed", str(point["seed"]), "--threads", "1", "-o", str(out), "--force", *chosen,
    ])  # fmt: skip
    return point | {
        "options": PRESETS.get(point["preset"], {}), "top1": _top1(model, out, None if mine else SETS[network], args.data),
        "cpu_seconds": used["cpu"], "peak_mb": used["peak_mb"],
    }  # fmt: skip


def _top1(model: Path, out: Path, dataset: str | None, root: Path) -> float:
    if dataset is not None:
        return float(referee(root, out, dataset)["top1"])
    import mrecg_onnx  # noqa: PLC0415 - torch is heavy and --help does not need it

    top1 = mrecg_onnx.validate(model, out, SAMPLES / "val", repeats=0).quantized.top1
    assert top1 is not None
    return round(top1.value, 4)


def write(store: Rows) -> None:
    """The page: means over seeds."""
    rows = store.all()
    lines = [
        "# Presets", "",
        "Written by `python benchmarks/presets.py`, whose head says what is measured; commands, dates and versions of all",
        "rows in presets.json. CPU seconds of one thread, all of the command; top-1 of each seed in brackets.", "",
        *(f"- `--preset {name}`: {', '.join(f'{k} {v}' for k, v in _options(row).items())}" for name, row in PRESETS.items()), "",
        "| network | bits | preset | top-1 | seeds | CPU s | peak MB |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows.values():
        groups.setdefault((row["network"], row["bits"], row["preset"]), []).append(row)
    for key in sorted(groups, key=lambda k: (list(NAMES).index(k[0]), k[1], ROWS.index(k[2]))):
        found = groups[key]
        tops = [r["top1"] for r in found]
        each = f" ({', '.join(f'{t:.4f}' for t in tops)})" if len(tops) > 1 else ""
        wbits, abits = key[1].split("/")
        lines.append(
            f"| {NAMES[key[0]]} | W{wbits}A{abits} | {key[2]} | {statistics.mean(tops):.4f}{each} | {len(tops)} | "
            f"{statistics.mean(r['cpu_seconds'] for r in found):.0f} | {max(r['peak_mb'] for r in found)} |"
        )
    (RESULTS / "presets.md").write_text("\n".join([*lines, "", machine(rows)]) + "\n")


def _options(row: Any) -> dict[str, Any]:
    return {name: "auto" if value is None else value for name, value in row.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared"), help="folder of models, images and the referee")
    parser.add_argument("--networks", nargs="+", default=[SAMPLE, "resnet20_cifar10"], choices=list(NAMES))
    parser.add_argument("--bits", nargs="+", default=["4/4", "2/2"])
    parser.add_argument("--presets", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--again", action="store_true", help="measure rows again that are there")
    parser.add_argument("--draw", action="store_true", help="only write the table from the rows that are there")
    args = parser.parse_args()
    points = {
        f"{network}-w{bits.replace('/', 'a')}-{preset}-{seed}": {
            "network": network,
            "bits": bits,
            "preset": preset,
            "seed": seed,
        }
        for network in args.networks
        for bits in args.bits
        for preset in args.presets
        for seed in args.seeds
    }
    measure_missing(Rows("presets"), points, measure, write, args)


if __name__ == "__main__":
    main()
