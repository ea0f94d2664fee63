"""CPU seconds of a whole `quantize --method nearest`, and the accuracy of its file: this build, others of it, and NNCF in turn.

usage: python benchmarks/preparation.py [--data ../shared] [--build NAME=COMMAND ...] [--nncf PYTHON] [--models NAME ...]
                                        [--bits W8A8 W4A4] [--samples 0 200] [--quick]

`--build before=PATH/mrecg-onnx` is another build of the program, `--nncf PATH/python` an interpreter that has nncf: its quantize
on the same folder with its own 300 images, preprocessed alike, at W8A8. User and system time of the process and its peak memory
as the system counts them, on one thread of torch. A machine that does other work meanwhile makes all of them slower, so that
they are run in turn. Other --samples are other calibration images; 0: the program's own choice. Top-1 by the referee. Rows are
merged by key into benchmarks/results/preparation.json (.csv); preparation.md is written from them.
"""

from __future__ import annotations

import re
from typing import Any

from _experiment import BUILD, RESULTS, SETS, Rows, arguments, builds, machine, measure_missing, referee, timed

#: What NNCF is asked for, run by its own interpreter: model, folder, file to write.
NNCF = """
import sys, numpy as np, onnx, nncf
from pathlib import Path
from PIL import Image
model, folder, out = sys.argv[1:]
graph = onnx.load(model)
size = graph.graph.input[0].type.tensor_type.shape.dim[2].dim_value
mean, std = np.array([.485, .456, .406], np.float32), np.array([.229, .224, .225], np.float32)
def load(path):
    image = Image.open(path).convert("RGB")
    if image.size != (size, size):
        scale = size / .875 / min(image.size)
        image = image.resize([round(x * scale) for x in image.size], Image.BILINEAR)
        left, top = ((x - size) // 2 for x in image.size)
        image = image.crop((left, top, left + size, top + size))
    pixels = (np.asarray(image, np.float32) / 255 - mean) / std
    return {graph.graph.input[0].name: pixels.transpose(2, 0, 1)[None].copy()}
files = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png"})
onnx.save(nncf.quantize(graph, nncf.Dataset(files, load)), out)
"""


def measure(key: str, point: dict[str, Any], args: Any) -> dict[str, Any]:
    model = args.data / "models" / f"{point['model']}.onnx"
    folder = args.data / "data" / SETS[point["model"]] / "calib"
    out = BUILD / f"{key}.onnx"
    for made in (
        out,
        out.with_suffix(".toml"),
    ):  # no result is written over unasked, and earlier builds know no --force
        made.unlink(missing_ok=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    if point["tool"] == "nncf":
        found = timed([args.nncf, "-c", NNCF, str(model), str(folder), str(out)])
    else:
        command = [args.builds[point["tool"]], "quantize", str(model), "--calib", str(folder), "--method", "nearest"]
        wbits, abits = re.findall(r"\d+", point["bits"])
        command += ["--samples", str(point["samples"])] if point["samples"] else []
        found = timed([*command, "--wbits", wbits, "--abits", abits, "-o", str(out)])
    said = found.pop("said")
    equalized = re.search(r"(\d+) of (\d+) streams", said)
    measured = referee(args.data, out, SETS[point["model"]], model)
    return {
        **point,
        **found,
        "equalized": equalized.group() if equalized else "",
        **{k: measured[k] for k in ("top1", "against_top1", "sqnr_db")},
    }


def write(store: Rows) -> None:
    rows = store.all()
    lines = [
        "# Preparing",
        "",
        "Written by `python benchmarks/preparation.py`, whose head says what is measured; commands, dates and versions of all",
        "rows in preparation.json. Rounding to nearest, first and last layers at 8 bits.",
        "",
        "| network | bits | build | samples | CPU s | peak MB | streams equalized | top-1 (FP32) | SQNR dB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in sorted(rows.values(), key=lambda r: (r["model"], r["bits"], r["samples"], r["tool"])):
        cells = (r["model"], r["bits"], r["tool"], r["samples"] or "own", r["cpu"], r["peak_mb"], r["equalized"])
        lines.append(
            f"| {' | '.join(map(str, cells))} | {r['top1']:.4f} ({r['against_top1']:.4f}) | {r['sqnr_db']:.1f} |"
        )
    (RESULTS / "preparation.md").write_text("\n".join([*lines, "", machine(rows)]) + "\n")


def main() -> None:
    parser = arguments(__doc__, quick="MobileNetV2 at W8A8 alone")
    parser.add_argument("--build", nargs="*", default=[], metavar="NAME=COMMAND")
    parser.add_argument("--nncf", help="interpreter that has nncf")
    parser.add_argument("--models", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--bits", nargs="*", default=["W8A8", "W4A4"])
    parser.add_argument("--samples", nargs="*", type=int, default=[0, 200])
    args = parser.parse_args()
    args.builds = builds(args.build)
    models, every = (["mobilenetv2_imagenet"], ["W8A8"]) if args.quick else (args.models, args.bits)
    store = Rows("preparation")
    points = {
        f"preparation-{model}-{bits}-{tool}-{samples}": {"model": model, "bits": bits, "tool": tool, "samples": samples}
        for model in models
        for bits in every
        for samples in args.samples
        for tool in (
            *args.builds,
            *(["nncf"] if args.nncf and not samples and bits == "W8A8" and "imagenet" in model else []),
        )
    }
    measure_missing(store, points, measure, write, args)


if __name__ == "__main__":
    main()
