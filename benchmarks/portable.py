"""Files of the target portable in the five runtimes that it is for: share of predictions equal to the graph as written.

usage: python benchmarks/portable.py --files FILE... --python PYTHON [--python PYTHON ...] [--data ../shared] [--images 100]

FILE are results of mrecg-onnx quantize for ResNet-20 or MobileNetV2 and target ort; every PYTHON has one of OpenCV 5, TVM and
IREE. Files get a batch of 1, which IREE needs. "Off the edges" multiplies images by 1.00001: a level of 8-bit images may lie as
close to the edge between two codes of the input as float32 tells them apart, and runtimes that divide otherwise than ONNX Runtime
then round all its pixels the other way. Rows of other files stay.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _record import by, header

from mrecg_onnx.conversion import convert
from mrecg_onnx.data import open_validation
from mrecg_onnx.running import input_specs, open_session, runtimes
from mrecg_onnx.validating import stored_preprocess

RESULTS = Path(__file__).parent / "results"
RUNTIMES = ("onnxruntime", "openvino", "opencv", "tvm", "iree")


def images(data: Path, file: Path, count: int) -> dict[str, np.ndarray]:
    """Validation images as the file wants them."""
    session = open_session(file)
    specs = input_specs(session)
    folder = "imagenet" if specs[0].shape[-1] == 224 else "cifar10"
    opened = open_validation(data / "data" / folder / "val", specs, stored_preprocess(session, str(file)), limit=count)
    batches = [feeds for feeds, _ in opened.batches(count)]
    return {name: np.concatenate([feeds[name] for feeds in batches]) for name in batches[0]}


def write(result: dict[str, Any]) -> None:
    names = list(dict.fromkeys(row["runtime"] for row in result["rows"]))
    files = list(dict.fromkeys((row["file"], row["images"]) for row in result["rows"]))
    lines = [
        "# Target portable in five runtimes", "", by(result["header"]), "",
        "Share of predictions equal to those of the graph as written on ONNX Runtime, and SQNR of the logits in dB, batch 1.", "",
        f"| file, images | {' | '.join(names)} |", f"|---|{'---|' * len(names)}",
    ]  # fmt: skip
    for file, count in files:
        cells = []
        for name in names:
            row = next(
                (r for r in result["rows"] if (r["file"], r["images"], r["runtime"]) == (file, count, name)), None
            )
            found = row is not None and row["agreement"] is not None
            cells.append(f"{row['agreement']:.3f}, {row['db']:.0f}" if found and row is not None else "-")
        lines.append(f"| {file}, {count} | {' | '.join(cells)} |")
    (RESULTS / "portable.md").write_text("\n".join(lines) + "\n")
    (RESULTS / "portable.json").write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path, nargs="+", required=True)
    parser.add_argument("--python", type=Path, action="append", default=[])
    parser.add_argument("--data", type=Path, default=Path("../shared"))
    parser.add_argument("--images", type=int, default=100)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    head = header()
    options = f"--data ../shared --images {args.images} --files FILE... --python PYTHON..."
    head["command"] = f"python benchmarks/portable.py {options}"
    kept = RESULTS / "portable.json"
    rows = json.loads(kept.read_text())["rows"] if kept.exists() else []
    measured = {file.stem for file in args.files}
    result: dict[str, Any] = {"header": head, "rows": [r for r in rows if r["file"].split(",")[0] not in measured]}
    with tempfile.TemporaryDirectory(prefix="mrecg_onnx_") as name:
        for file in args.files:
            aimed = Path(name) / file.name
            convert(file, target="portable", batch=1, output=aimed)
            plain = images(args.data, file, args.images)
            for said, factor in (("", 1.0), (", off the edges", 1.00001)):
                feeds = {k: (x * np.float32(factor)).astype(np.float32) for k, x in plain.items()}
                report = runtimes(aimed, feeds, only=RUNTIMES, python=args.python, samples=args.images, batch=1, runs=0)
                for one in report.attempts:
                    if one.loads is None:
                        continue
                    result["rows"].append({
                        "file": f"{file.stem}{said}", "images": args.images, "runtime": f"{one.title} {one.version}",
                        "items": one.items, "agreement": one.agreement,
                        "db": next(iter(one.sqnr_by_output.values()), None), "reason": one.reason,
                    })  # fmt: skip
                write(result)
    print((RESULTS / "portable.md").read_text())


if __name__ == "__main__":
    main()
