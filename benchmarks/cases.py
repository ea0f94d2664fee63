"""Small models of the kinds that people bring: each by every width, method and target, and what ONNX Runtime makes of the files.

usage: python benchmarks/cases.py [--iters 20] [--only REGEX] [--folder ../shared/cases]

The models, with random weights and noise as calibration data, are those that make_cases.py in FOLDER writes; without it
nothing is measured. All figures are taken here, with ONNX Runtime alone: SQNR of an output is 10 log10 of its variance about
its mean over the mean squared error, over all calibration samples, and the worst output counts. Writes results/cases.json
and results/cases.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import re
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
from _record import header

import mrecg_onnx
from mrecg_onnx.converters.errors import MrecgError

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
#: Targets besides ort on which a kind was seen to fail.
NAMED = {"computed_clip": ("tensorrt",), "large_bias": ("qnn", "portable"), "opset_23": ("openvino",)}
WIDTHS, METHODS = ((8, 8), (4, 4)), ("nearest", "brecq")
#: dB that every output keeps at W8A8.
LEAST = 25.0
#: Of the optimized graph: what runs a layer in integers, and what in float.
INTEGER = re.compile(r"QLinear\w+|QGemm|MatMulIntegerToFloat|ConvInteger|MatMulInteger")
FLOAT = frozenset({"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"})
COLUMNS = ("case", "target", "W8A8 nearest", "W8A8 brecq", "W4A4 nearest", "W4A4 brecq", "as written", "packed",
           "integer kernels", "float layers")  # fmt: skip

Arrays = Mapping[str, np.ndarray]


def cases(folder: Path) -> ModuleType:
    """The module that writes the models."""
    spec = importlib.util.spec_from_file_location("make_cases", folder / "make_cases.py")
    if spec is None or spec.loader is None or not (folder / "make_cases.py").is_file():
        raise SystemExit(f"{folder}: holds no make_cases.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def outputs(path: Path, feeds: Arrays, *, optimized: bool = True) -> list[np.ndarray]:
    """All outputs on all samples, by the model's own batch where that is fixed; as it is written without ``optimized``."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    count = len(next(iter(feeds.values())))
    first = session.get_inputs()[0].shape[0]
    size = first if isinstance(first, int) else count
    parts = [session.run(None, {n: x[i : i + size] for n, x in feeds.items()}) for i in range(0, count, size)]
    return [np.concatenate(part).astype(np.float64) for part in zip(*parts, strict=True)]


def worst(reference: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """SQNR in dB of the output that suffers most; infinite where all are equal."""
    ratios = []
    for wanted, got in zip(reference, found, strict=True):
        noise = np.mean(np.square(wanted - got))
        ratios.append(10 * np.log10(np.var(wanted) / noise) if noise else np.inf)
    return float(min(ratios))


def kernels(path: Path, folder: Path) -> tuple[int, int]:
    """How many integer kernels and how many float layers the default level runs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    counts = Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)
    integer = sum(n for op, n in counts.items() if INTEGER.fullmatch(op))
    return integer, sum(counts[op] for op in FLOAT)


def measured(name: str, folder: Path, target: str, widths: tuple[int, int], method: str, iters: int) -> dict[str, Any]:
    """One run."""
    source, out, packed = folder / f"{name}.onnx", folder / "out.onnx", folder / "packed.onnx"
    out.unlink(missing_ok=True)
    array = np.load(folder / f"{name}.npy")
    row: dict[str, Any] = {
        "case": name, "target": target, "wbits": widths[0], "abits": widths[1], "method": method, "error": "", "sqnr": None,
        "as_written": None, "packed": None, "integer_kernels": None, "float_layers": None,
    }  # fmt: skip
    settings = mrecg_onnx.Settings(
        wbits=widths[0], abits=widths[1], method=method, iters=iters, batch_size=8, threads=1, target=target
    )
    start = time.perf_counter()
    try:
        mrecg_onnx.quantize(source, folder / f"{name}.npy", settings, output=out)
        feeds = {onnx.load(source).graph.input[0].name: array}
        found = outputs(out, feeds)
        row["sqnr"] = worst(outputs(source, feeds), found)
        row["as_written"] = worst(outputs(out, feeds, optimized=False), found)
        if target == "ort":
            mrecg_onnx.convert(out, "packed", output=packed)
            row["packed"] = all(np.array_equal(a, b) for a, b in zip(found, outputs(packed, feeds), strict=True))
        row["integer_kernels"], row["float_layers"] = kernels(out, folder)
    except MrecgError as error:
        row["error"] = f"refused: {error}"
    except Exception as error:  # noqa: BLE001 - a failure of any kind is what this is to find
        row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    row["error"] = row["error"].replace(str(folder), "").strip()
    row["seconds"] = round(time.perf_counter() - start, 1)
    return row


def decibels(value: float | None) -> str:
    """A figure for the table."""
    return "-" if value is None else "equal" if np.isinf(value) else f"{value:.1f}"


def passes(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Everything ran, the packed file gives the same, and at W8A8 every output keeps :data:`LEAST`."""
    return all(
        not r["error"]
        and r["packed"] is not False
        and not np.isnan(r["sqnr"])
        and (r["wbits"] < 8 or r["sqnr"] > LEAST)
        for r in rows
    )


def table(rows: Sequence[dict[str, Any]], about: dict[str, Any], iters: int) -> str:
    """The rows in Markdown."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["case"], row["target"]), []).append(row)
    text = (
        f"By `{about['command']}`, {about['date']}, commit {about['commit']}; {iters} iterations a unit, one thread, random "
        "weights and noise: the table tells that files are written and right, not what learning is worth. SQNR in dB against "
        "FP32, the worst output, on ONNX Runtime's CPU provider at its default level, whatever the target. As written: the same "
        "file without graph optimizations against it, the lowest of the four. Packed: outputs of the file with the same codes in "
        "UINT4 and UINT2. Integer kernels (layers and other ops) and layers in float at W8A8, nearest."
    )
    lines = [
        "# Small models of kinds that people bring",
        "",
        text,
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|" + "---|" * len(COLUMNS),
    ]
    for (name, target), group in groups.items():
        by = {(r["wbits"], r["method"]): r for r in group}
        cells = [decibels(by[w, m]["sqnr"]) if not by[w, m]["error"] else "fails" for w, _ in WIDTHS for m in METHODS]
        written = [r["as_written"] for r in group if r["as_written"] is not None]
        first = by[WIDTHS[0][0], METHODS[0]]
        same = [r["packed"] for r in group if r["packed"] is not None]
        packed = "-" if not same else "equal" if all(same) else "differs"
        counts = ["-" if first[key] is None else str(first[key]) for key in ("integer_kernels", "float_layers")]
        lines.append(f"| {' | '.join([name, target, *cells, decibels(min(written, default=None)), packed, *counts])} |")
    names = list(dict.fromkeys(r["case"] for r in rows))
    good = [name for name in names if passes([r for r in rows if r["case"] == name])]
    lines += [
        "",
        f"{len(good)} of {len(names)} cases: all runs end well, and every output keeps {LEAST:.0f} dB at W8A8.",
    ]
    for row in rows:
        if row["error"] or not passes([row]):
            what = row["error"] or ("packed differs" if row["packed"] is False else f"{row['sqnr']:.1f} dB")
            lines.append(f"- {row['case']}, {row['target']}, W{row['wbits']}A{row['abits']}, {row['method']}: {what}")
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return "\n".join([*lines, "", f"Versions: {versions}. Machine: {about['machine']}."]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iters", type=int, default=20)
    parser.add_argument("--only", default="", help="cases whose names match; their rows are printed and not kept")
    parser.add_argument("--folder", type=Path, default=ROOT.parent / "shared" / "cases")
    args = parser.parse_args()
    module = cases(args.folder)
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for make in module.CASES:
            name = make.__name__
            model, array = make()
            if not re.search(args.only, name):
                continue
            onnx.save(model, folder / f"{name}.onnx")
            np.save(folder / f"{name}.npy", array)
            for target in ("ort", *NAMED.get(name, ())):
                for widths in WIDTHS:
                    for method in METHODS:
                        rows.append(measured(name, folder, target, widths, method, args.iters))
                        print(rows[-1], flush=True)
    if args.only:
        return
    about = header()
    (RESULTS / "cases.json").write_text(json.dumps({"header": about, "rows": rows}, indent=1) + "\n")
    (RESULTS / "cases.md").write_text(table(rows, about, args.iters))


if __name__ == "__main__":
    main()
