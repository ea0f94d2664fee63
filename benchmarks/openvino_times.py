"""MobileNetV2 on OpenVINO's CPU plugin, one thread: forms of W4A4 and wider files against its own FP32.

usage: python benchmarks/openvino_times.py --w4a4 FILE [--w4a8 FILE] [--w8a8 FILE] [--data ../shared] [--runs 120]

FILE are results of mrecg-onnx quantize for MobileNetV2 and target ort. On processors that have it OpenVINO computes what is in
floats in bfloat16 by default; "float32" is INFERENCE_PRECISION_HINT f32. All files take turns; what is given is CPU time of the
process, median, which other work on the machine moves less than the time on the clock. Kernels are OpenVINO's own counters.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from _record import by, header

import mrecg_onnx
from mrecg_onnx.conversion import convert

RESULTS = Path(__file__).parent / "results"
OPTIONS = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
SHAPE = (1, 3, 224, 224)
BOUNDS = 'bounds = "either"\n'
FORMS = {
    "target openvino": {},
    "with Clips of codes": {BOUNDS: 'bounds = "codes"\n'},
    "Add fused (other values)": {'add_operands = "pooled"': 'add_operands = "plain"'},
}


def rules(changes: dict[str, str], folder: Path) -> str:
    """The target openvino with lines changed, as a file of rules."""
    if not changes:
        return "openvino"
    text = (Path(mrecg_onnx.__file__).parent / "targets" / "rules" / "openvino.toml").read_text()
    for line, other in changes.items():
        assert line in text
        text = text.replace(line, other)
    out = folder / f"rules{len(list(folder.glob('*.toml')))}.toml"
    out.write_text(text)
    return str(out)


def compiled(path: Path, **options: Any) -> openvino.CompiledModel:
    core = openvino.Core()
    return core.compile_model(core.read_model(path), "CPU", {**OPTIONS, **options})


def kernels(path: Path, x: np.ndarray, runs: int) -> dict[str, dict[str, float]]:
    """Microseconds and nodes by type and kernel, as OpenVINO counts them: medians, the costliest first."""
    request = compiled(path, PERF_COUNT=True).create_infer_request()
    taken: dict[str, list[float]] = {}
    count: Counter[str] = Counter()
    for _ in range(runs):
        request.infer([x])
        now: Counter[str] = Counter()
        count = Counter()
        for one in request.profiling_info:
            spent = one.real_time.total_seconds() * 1e6
            if spent:
                now[f"{one.node_type} {one.exec_type}"] += spent
                count[f"{one.node_type} {one.exec_type}"] += 1
        for name, spent in now.items():
            taken.setdefault(name, []).append(spent)
    middle = {name: statistics.median(spent) for name, spent in taken.items()}
    return {
        name: {"nodes": count[name], "us": round(spent)} for name, spent in sorted(middle.items(), key=lambda e: -e[1])
    }


def times(models: dict[str, openvino.CompiledModel], x: np.ndarray, runs: int) -> dict[str, float]:
    """Median CPU milliseconds of every model, taking turns, each timed run behind an untimed one."""
    requests = {name: model.create_infer_request() for name, model in models.items()}
    taken: dict[str, list[float]] = {name: [] for name in requests}
    for _ in range(runs):
        for name, request in requests.items():
            request.infer([x])
            start = time.process_time()
            request.infer([x])
            taken[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(spent[5:]) for name, spent in taken.items()}


def shown(ran: dict[str, dict[str, float]], most: int = 12) -> str:
    """Kernels for the page."""
    return ", ".join(f"{name} {one['nodes']}: {one['us']}" for name, one in list(ran.items())[:most])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--w4a4", type=Path, required=True)
    parser.add_argument("--w4a8", type=Path)
    parser.add_argument("--w8a8", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared"))
    parser.add_argument("--runs", type=int, default=120)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    head = header()
    head["command"] = (
        f"python benchmarks/openvino_times.py --w4a4 FILE --w4a8 FILE --w8a8 FILE --data ../shared --runs {args.runs}"
    )
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    result: dict[str, Any] = {"header": head, "openvino": openvino.__version__.split("-")[0], "rows": [], "kernels": {}}
    with tempfile.TemporaryDirectory(prefix="mrecg_onnx_") as name:
        folder, fp32 = Path(name), args.data / "models" / "mobilenetv2_imagenet.onnx"
        paths = {"FP32": fp32}
        for number, (form, changes) in enumerate(FORMS.items()):
            paths[f"W4A4, {form}"] = folder / f"form{number}.onnx"
            convert(args.w4a4, target=rules(changes, folder), output=paths[f"W4A4, {form}"])
        for form, options in (
            ("target openvino, batch 1", {"target": "openvino", "batch": 1}),
            ("target portable", {"target": "portable"}),
        ):
            paths[f"W4A4, {form}"] = folder / f"{form.split()[-1]}-{len(paths)}.onnx"
            convert(args.w4a4, output=paths[f"W4A4, {form}"], **options)
        for width, file in (("W4A8", args.w4a8), ("W8A8", args.w8a8)):
            if file is not None:
                paths[f"{width}, target openvino"] = folder / f"{width}.onnx"
                convert(file, target="openvino", output=paths[f"{width}, target openvino"])
        models = {name: compiled(path) for name, path in paths.items()}
        models["FP32 in float32"] = compiled(fp32, INFERENCE_PRECISION_HINT="f32")
        core = openvino.Core()
        still = core.read_model(fp32)
        still.reshape({still.inputs[0].any_name: list(SHAPE)})
        models["FP32, batch 1"] = core.compile_model(still, "CPU", OPTIONS)
        found = times(models, x, args.runs)
        for file, spent in found.items():
            result["rows"].append({
                "file": file, "cpu_ms": round(spent, 2), "of_default": round(spent / found["FP32"], 2),
                "of_float32": round(spent / found["FP32 in float32"], 2),
            })  # fmt: skip
        for file in ("FP32", "W4A4, target openvino", "W4A4, with Clips of codes"):
            result["kernels"][file] = kernels(paths[file], x, args.runs // 3)
    lines = [
        "# MobileNetV2 on OpenVINO, one thread, batch 1", "", by(head), "",
        f"OpenVINO {result['openvino']}, CPU milliseconds, medians. Its default for floats on this processor is bfloat16.",
        "The batch is free but where it says batch 1.", "",
        "| file | CPU ms | of FP32 as is by default | of FP32 in float32 |", "|---|---|---|---|",
        *(f"| {r['file']} | {r['cpu_ms']:.2f} | {r['of_default']:.2f} | {r['of_float32']:.2f} |" for r in result["rows"]),
        "", "## Kernels (OpenVINO's counters, microseconds)", "", "| file | kernels |", "|---|---|",
    ]  # fmt: skip
    for name, ran in result["kernels"].items():
        lines.append(f"| {name} | {shown(ran)} |")
    (RESULTS / "openvino_times.md").write_text("\n".join(lines) + "\n")
    (RESULTS / "openvino_times.json").write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
