"""Which versions of ONNX Runtime open the forms of a file, and compute the same: what the table of requirements is made of.

usage: python benchmarks/versions.py --python PYTHON [--python PYTHON ...] [--files FILE ...] [--data ../shared]

Every PYTHON has another onnxruntime, and numpy. FILE are results of mrecg-onnx quantize for ResNet-20, by default W4A4, W2A4 and
W8A8 rounded to nearest, made now. Each is brought to all containers and targets that ONNX Runtime opens; outputs of 32 images are
compared with those of the graph as written on the version here.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from _record import by, header

import mrecg_onnx
from mrecg_onnx.conversion import convert
from mrecg_onnx.data import open_validation
from mrecg_onnx.running import input_specs, open_session
from mrecg_onnx.targets import requirements
from mrecg_onnx.validating import stored_preprocess

RESULTS = Path(__file__).parent / "results"
MODEL, SET, IMAGES = "resnet20_cifar10", "cifar10", 32
WIDTHS = ((4, 4), (2, 4), (8, 8))
FORMS = (
    ("ort", "int8"),
    ("ort", "packed"),
    ("ort", "typed"),
    ("openvino", "int8"),
    ("openvino", "packed"),
    ("qnn", "int8"),
    ("portable", "int8"),
)
#: What another version does: it has neither this package nor onnx.
CHILD = """
import json, sys
import numpy as np, onnxruntime as ort
ort.set_default_logger_severity(4)
folder, names = sys.argv[1], sys.argv[2:]
found = {}
for name in names:
    held = np.load(f"{folder}/{name}.npz")
    for level in ("DISABLE", "ENABLE"):
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}_ALL")
        try:
            session = ort.InferenceSession(f"{folder}/{name}.onnx", options, providers=["CPUExecutionProvider"])
            made = session.run(None, {session.get_inputs()[0].name: held["x"]})[0].astype(float)
        except Exception as error:
            found[f"{name} {level}"] = {"error": str(error).split(" : ")[-1].splitlines()[0][-120:]}
            continue
        noise = float(((made - held["y"]) ** 2).sum())
        signal = float((held["y"].astype(float) ** 2).sum())
        found[f"{name} {level}"] = {
            "agrees": float((made.argmax(1) == held["y"].argmax(1)).mean()),
            "db": float(10 * np.log10(signal / noise)) if noise else None,
        }
print(json.dumps({"version": ort.__version__, "found": found}))
"""


def images(data: Path, file: Path) -> np.ndarray:
    """Images as the file wants them, a hair off the edges between its codes, where versions may round either way."""
    session = open_session(file)
    opened = open_validation(data / "data" / SET / "val", input_specs(session), stored_preprocess(session, str(file)))
    feeds = next(iter(opened.batches(IMAGES)))[0]
    return (next(iter(feeds.values())) * np.float32(1.00001)).astype(np.float32)


def made(data: Path, folder: Path) -> list[Path]:
    """ResNet-20 at :data:`WIDTHS`, rounded to nearest."""
    files = []
    for wbits, abits in WIDTHS:
        out = folder / f"W{wbits}A{abits}.onnx"
        chosen = mrecg_onnx.Settings(wbits=wbits, abits=abits, method="nearest", samples=64, equalize="off", threads=1)
        mrecg_onnx.quantize(data / "models" / f"{MODEL}.onnx", data / "data" / SET / "calib", chosen, output=out)
        files.append(out)
    return files


def table(result: dict[str, Any]) -> list[str]:
    versions = [one["version"] for one in result["versions"]]
    lines = [f"| file | needs | {' | '.join(versions)} |", f"|---|---|{'---|' * len(versions)}"]
    for name, needs in result["needs"].items():
        cells = []
        for one in result["versions"]:
            written, default = (one["found"][f"{name} {level}"] for level in ("DISABLE", "ENABLE"))
            cells.append(
                "refused" if "error" in written else f"{written['agrees']:.2f}, {default.get('agrees', 0):.2f}"
            )
        lines.append(f"| {name} | {needs} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared"))
    parser.add_argument("--python", type=Path, action="append", required=True)
    parser.add_argument("--files", type=Path, nargs="*")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    head = header()
    head["command"] = "python benchmarks/versions.py --data ../shared --python PYTHON (one for each version)"
    result: dict[str, Any] = {"header": head, "images": IMAGES, "needs": {}, "versions": []}
    with tempfile.TemporaryDirectory(prefix="mrecg_onnx_") as name:
        folder = Path(name)
        for file in args.files or made(args.data, folder):
            x = images(args.data, file)
            for target, container in FORMS:
                form = f"{file.stem}-{target}-{container}"
                model = convert(file, container, target, output=folder / f"{form}.onnx").model
                y = open_session(model, level="off").run(None, {model.graph.input[0].name: x})[0]
                np.savez(folder / f"{form}.npz", x=x, y=y)
                needs = [f"{row.version} ({row.otherwise})" for row in requirements(onnx.load(folder / f"{form}.onnx"))]
                result["needs"][form] = ", ".join(needs)
        for python in args.python:
            ask = [str(python), "-c", CHILD, str(folder), *result["needs"]]
            said = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
            result["versions"].append(json.loads(said.splitlines()[-1]))
    lines = [
        "# Forms of a file on versions of ONNX Runtime", "", by(head), "",
        f"ResNet-20, {IMAGES} images: share of predictions that agree with the graph as written on the version above,",
        "run as written and at the default level. Needs: what the file's metadata say (`mrecg_onnx/targets/needed_versions.py`).",
        "",
        *table(result),
    ]  # fmt: skip
    (RESULTS / "versions.md").write_text("\n".join(lines) + "\n")
    (RESULTS / "versions.json").write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
