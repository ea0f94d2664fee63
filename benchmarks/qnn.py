"""Learned files for QNN in Qualcomm's simulator of its HTP processor: layers on integers, predictions against ONNX Runtime's.

usage: python benchmarks/qnn.py --python ENV/bin/python [--data ../shared] [--files build/benchmarks/learned] [--again]

ENV has onnxruntime-qnn and numpy. --files as in litert.py; files whose widths end in "s" have symmetric weights, and are measured
with INT4 weights, too. Two forms of each: bounds of few bits between quantizers of their own, which target qnn has, and as Clips
in front of the quantizer. The simulator's time says nothing of the processor's; MobileNetV2 takes a minute to open and seconds an
image.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from _experiment import BUILD, NAMES, RESULTS, SETS, Rows
from _record import by

from mrecg_onnx.converters.files import write_whole
from mrecg_onnx.data import open_validation
from mrecg_onnx.running import input_specs, open_session, runtimes
from mrecg_onnx.targets import load_target
from mrecg_onnx.validating import stored_preprocess
from mrecg_onnx.writing import contained, fix_batch, retarget

IMAGES = {"resnet20_cifar10": 100, "mobilenetv2_imagenet": 24}


def forms(file: Path) -> Iterator[tuple[str, onnx.ModelProto]]:
    """The files that are opened, with a fixed batch, by what they are called."""
    source, rules = onnx.load(file), load_target("qnn")
    yield (
        "Clip in front of the quantizer",
        fix_batch(retarget(source, dataclasses.replace(rules, bounds="float")), 1, file.name),
    )
    aimed = fix_batch(retarget(source, rules), 1, file.name)
    yield "target qnn", aimed
    if file.stem.endswith("s"):
        yield "target qnn, INT4", contained(aimed, "typed", highest=rules.opset[1], zero_points=False).model


def images_of(data: Path, model: str, file: Path) -> dict[str, np.ndarray]:
    """Images from all classes."""
    session = open_session(file)
    found = open_validation(
        data / "data" / SETS[model] / "val", input_specs(session), stored_preprocess(session, str(file))
    )
    every = max(1, len(found.labels) // IMAGES[model])
    parts: dict[str, list[np.ndarray]] = {}
    for feeds, indices in found.batches(100):
        for name, x in feeds.items():
            parts.setdefault(name, []).append(x[[i for i, index in enumerate(indices) if index % every == 0]])
    return {name: np.concatenate(kept)[: IMAGES[model]] for name, kept in parts.items()}


def measured(python: Path, path: Path, data: dict[str, np.ndarray]) -> dict[str, Any]:
    """One row."""
    rows = len(next(iter(data.values())))
    report = runtimes(path, data, only=["qnn-htp"], python=[python], samples=rows, runs=0, timeout=1500)
    (attempt,) = (one for one in report.attempts if one.environment)
    return {
        "version": attempt.version, "reason": attempt.reason, "items": attempt.items, "agreement": attempt.agreement,
        "sqnr_db": min(attempt.sqnr_by_output.values(), default=None), "layers": str(attempt.arithmetic),
        "kernels": attempt.kernels,
    }  # fmt: skip


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The page."""
    last = next(reversed(list(rows.values())))
    columns = ["network", "widths", "form", "images", "agrees", "SQNR", "layers", "left to the CPU"]
    lines = [
        "# QNN", "",
        by(last["header"]),
        f"QNN's plugin for ONNX Runtime: {last['version']}. Compared with the graph as written on ONNX Runtime; SQNR in dB.", "",
        f"| {' | '.join(columns)} |", "|" + "---|" * len(columns),
    ]  # fmt: skip
    for row in rows.values():
        left = ", ".join(f"{name} {count}" for name, count in row["kernels"].items() if "HTP" not in name)
        cells = [NAMES[row["model"]], row["widths"], row["form"], row["items"], f"{row['agreement']:.3f}"]
        cells += [f"{row['sqnr_db']:.1f}", row["layers"], left]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared"))
    parser.add_argument("--files", type=Path, default=BUILD / "learned")
    parser.add_argument("--again", action="store_true", help="measure rows that are there, too")
    given = parser.parse_args()
    files = {path.stem: path for path in sorted(given.files.glob("*.onnx")) if path.stem.rpartition("-")[0] in SETS}
    kept = Rows("qnn")
    for key, file in sorted(files.items(), key=lambda entry: "mobilenet" in entry[0]):
        model, _, widths = key.rpartition("-")
        data = images_of(given.data, model, file)
        for form, proto in forms(file):
            for row in kept.missing([f"{key}, {form}"], again=given.again):
                path = BUILD / "qnn.onnx"
                onnx.save(proto, path)
                kept.add(
                    row, {"model": model, "widths": widths.upper(), "form": form, **measured(given.python, path, data)}
                )
                print(json.dumps({k: v for k, v in kept.all()[row].items() if k != "header"}), flush=True)
    write_whole(RESULTS / "qnn.md", table(kept.all()))


if __name__ == "__main__":
    main()
