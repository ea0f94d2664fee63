"""What a quantized MobileNetV2 costs where it runs: speed and kernels on ONNX Runtime and OpenVINO, sizes, load time, top-1.

usage: python benchmarks/deployment.py [--data ../shared] [--mobilenet W4A4.onnx] [--resnet W4A4.onnx] [--threads 2] [--runs 60]

--mobilenet and --resnet are results of mrecg-onnx quantize, by default those that benchmarks/main.py leaves; where there are none
they are made with a few iterations, which changes top-1 and nothing else here. The files for sizes are rounded to nearest.
Keep the machine quiet: all files take turns, but an absolute time is only worth what the machine was free for. About 4 minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
from _record import header
from latency import BUILD, peer

import mrecg_onnx
from mrecg_onnx.comparing.plots import draw_timings
from mrecg_onnx.conversion import convert
from mrecg_onnx.data import open_validation
from mrecg_onnx.running import input_specs, open_session, run_padded
from mrecg_onnx.running.openers import openvino_kernels
from mrecg_onnx.validating import stored_preprocess
from mrecg_onnx.validating.benchmarking import Benchmark, benchmark

RESULTS = Path(__file__).parent / "results"
BATCHES = (1, 8)
SETS = {"mobilenetv2_imagenet": "imagenet", "resnet20_cifar10": "cifar10"}
#: What the conversions and sums of a network run as in float; none of them may be among a W4A4 file's kernels.
FLOAT_OPS = {
    "Add",
    "AveragePool",
    "Conv",
    "FusedConv",
    "FusedGemm",
    "Gemm",
    "GlobalAveragePool",
    "MatMul",
    "Mul",
    "ReduceMean",
}
QUICK = {"iters": 100, "samples": 256, "method": "brecq"}
NEAREST = {"method": "nearest", "samples": 32, "equalize": "off", "range": "minmax"}


def made(data: Path, model: str, name: str, threads: int, **settings: Any) -> Path:
    """A quantized file in build/benchmarks, kept from earlier runs."""
    out = BUILD / f"{name}.onnx"
    if not out.exists():
        chosen = mrecg_onnx.Settings(abits=4, threads=threads, **settings)
        mrecg_onnx.quantize(
            data / "models" / f"{model}.onnx", data / "data" / SETS[model] / "calib", chosen, output=out
        )
    return out


def compile_openvino(path: Path, threads: int) -> openvino.CompiledModel:
    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    return core.compile_model(core.read_model(path), "CPU", options)


def openvino_times(files: dict[str, Path], threads: int, runs: int) -> list[dict[str, Any]]:
    """Median seconds of every file on OpenVINO, taking turns, each timed run behind an untimed one."""
    requests = {name: compile_openvino(path, threads).create_infer_request() for name, path in files.items()}
    rows = []
    for batch in BATCHES:
        x = np.random.default_rng(0).standard_normal((batch, 3, 224, 224)).astype(np.float32)
        taken: dict[str, list[float]] = {name: [] for name in requests}
        for _ in range(runs + 5):
            for name, request in requests.items():
                request.infer([x])
                start = time.perf_counter()
                request.infer([x])
                taken[name].append(time.perf_counter() - start)
        median = {name: statistics.median(seconds[5:]) for name, seconds in taken.items()}
        first = next(iter(median.values()))
        rows += [
            {"batch": batch, "file": n, "ms": round(1e3 * s, 2), "against_fp32": round(first / s, 2)}
            for n, s in median.items()
        ]
    return rows


def fused_rules() -> Path:
    """OpenVINO's rules without what keeps it from fusing an Add with the convolution in front."""
    out = BUILD / "fused.toml"
    rules = (Path(mrecg_onnx.__file__).parent / "targets" / "rules" / "openvino.toml").read_text()
    out.write_text(rules.replace('add_operands = "pooled"', 'add_operands = "plain"'))
    return out


def accuracies(data: Path, model: str, file: Path, threads: int) -> dict[str, Any]:
    """Top-1 of a file for ONNX Runtime there, at its default level and as written, and of its forms for OpenVINO there."""
    aimed, fused = (BUILD / f"{file.stem}-{name}.onnx" for name in ("openvino", "fused"))
    convert(file, target="openvino", output=aimed)
    convert(file, target=str(fused_rules()), output=fused)
    session, written = open_session(file, threads=threads), open_session(file, "off", threads)
    compiled = {"OpenVINO": compile_openvino(aimed, threads), "OpenVINO, Add fused": compile_openvino(fused, threads)}
    images = open_validation(
        data / "data" / SETS[model] / "val", input_specs(session), stored_preprocess(session, str(file))
    )
    found: dict[str, list[np.ndarray]] = {n: [] for n in ("ONNX Runtime", "as written", *compiled)}
    labels = []
    for feeds, indices in images.batches(50):
        labels += [images.labels[i] for i in indices]
        found["ONNX Runtime"].append(next(iter(run_padded(session, feeds).values())).argmax(1))
        found["as written"].append(next(iter(run_padded(written, feeds).values())).argmax(1))
        for name, model_there in compiled.items():
            found[name].append(model_there(dict(feeds))[0].argmax(1))
    classes = {name: np.concatenate(parts) for name, parts in found.items()}
    return {
        "model": model,
        "file": str(file.name),
        "images": len(labels),
        "top1": {name: round(float(np.mean(got == np.array(labels))), 4) for name, got in classes.items()},
        "agrees_with_written": {
            name: round(float(np.mean(got == classes["as written"])), 4)
            for name, got in classes.items()
            if name != "as written"
        },
        "openvino_kernels": {name: openvino_kernels(model_there) for name, model_there in compiled.items()},
    }


def sizes(data: Path, packed: Path, threads: int) -> list[dict[str, Any]]:
    """Bytes of packed files, by widths, with what they consist of."""
    files = {"W4, first and last layer W8": packed}
    for wbits, ends in ((4, 4), (2, 8), (2, 2)):
        name = f"mb2-size-w{wbits}-ends{ends}"
        options = {"container": "packed", "first_last_bits": ends, **NEAREST}
        label = f"W{wbits}, first and last layer W{ends}" if ends != wbits else f"W{wbits} everywhere"
        files[label] = made(data, "mobilenetv2_imagenet", name, threads, wbits=wbits, **options)
    return [{"file": name, "bytes": path.stat().st_size, **parts(path)} for name, path in files.items()]


def parts(path: Path) -> dict[str, int]:
    """Bytes of a file's weight codes, other constants, nodes, and the rest."""
    graph = onnx.load(path).graph
    weights = [t for t in graph.initializer if len(t.dims) > 1 and t.data_type != onnx.TensorProto.FLOAT]
    codes = sum(len(t.raw_data) for t in weights if not t.name.endswith("_offset"))
    constants = sum(t.ByteSize() for t in graph.initializer) - codes
    nodes = sum(n.ByteSize() for n in graph.node)
    rest = path.stat().st_size - codes - constants - nodes
    return {"codes": codes, "constants": constants, "nodes": nodes, "rest": rest}


def without_clips(file: Path, out: Path) -> Path:
    """The file less the Clips of its codes, for what they cost: its outputs mean nothing."""
    model = onnx.load(file)
    source = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Clip"}
    kept = [n for n in model.graph.node if n.op_type != "Clip"]
    for node in kept:
        node.input[:] = [source.get(name, name) for name in node.input]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    onnx.save(model, out)
    return out


def named(found: Benchmark, names: dict[str, Path]) -> Benchmark:
    """The same with the files' names in place of their paths."""
    short = {str(path): name for name, path in names.items()}
    return dataclasses.replace(
        found,
        files=tuple(dataclasses.replace(f, name=short[f.name]) for f in found.files),
        timings=tuple(dataclasses.replace(t, file=short[t.file]) for t in found.timings),
    )


def write(result: dict[str, Any]) -> None:
    head, speed = result["header"], result["onnxruntime"]
    runs = speed["timings"][0]["runs"]
    lines = [
        "# Deployment", "",
        f"Written by `{head['command']}`, {head['date']}, {result['threads']} threads; median of {runs} interleaved runs.",
        "\"ORT W8A8\" is the file of ONNX Runtime's own quantize_static, per channel. Load: in a fresh process, median of 3.", "",
        "## MobileNetV2 W4A4 on ONNX Runtime, CPU", "",
        "| batch | file | ms | 10 to 90 % | against FP32 | against ORT W8A8 |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for one in speed["timings"]:
        peer_s = next(t["median_s"] for t in speed["timings"] if t["batch"] == one["batch"] and t["file"] == "ORT W8A8")
        lines.append(
            f"| {one['batch']} | {one['file']} | {1e3 * one['median_s']:.2f} | {1e3 * one['low_s']:.2f} to "
            f"{1e3 * one['high_s']:.2f} | {one['speedup']:.2f}x | {peer_s / one['median_s']:.2f}x |"
        )
    lines += ["", "| file | MB | load, ms | memory, MB | kernels | in float |", "|---|---|---|---|---|---|"]
    for file in speed["files"]:
        kernels = file["kernels"]["cpu"]
        ran = ", ".join(f"{k['op']} {k['count']}" for k in sorted(kernels, key=lambda k: -k["count"]))
        floats = sum(k["count"] for k in kernels if k["op"] in FLOAT_OPS)
        lines.append(
            f"| {file['name']} | {file['size_bytes'] / 1e6:.2f} | {1e3 * file['load_s']:.0f} | "
            f"{file['memory_bytes'] / 1e6:.0f} | {ran} | {floats} |"
        )
    lines += [
        "", "\"Without Clips\" computes something else and is there for the cost of the upper bounds. In float: convolutions,",
        "sums, products, pools.",
    ]  # fmt: skip
    lines += [
        "",
        "## MobileNetV2 W4A4 on OpenVINO, CPU",
        "",
        "| batch | file | ms | against FP32 |",
        "|---|---|---|---|",
    ]
    lines += [f"| {r['batch']} | {r['file']} | {r['ms']} | {r['against_fp32']}x |" for r in result["openvino"]]
    lines += [
        "", "## Top-1: a file for ONNX Runtime there, its form for OpenVINO there", "",
        "\"Add fused\" is OpenVINO's target with `add_operands = \"plain\"`. As written: unoptimized, on ONNX Runtime.", "",
        "| file, images | runs on | top-1 | agrees with the graph as written | kernels |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for row in result["accuracy"]:
        for name, top1 in row["top1"].items():
            same = f"{row['agrees_with_written'][name]:.2%}" if name in row["agrees_with_written"] else ""
            kernels = ", ".join(f"{kind} {count}" for kind, count in row["openvino_kernels"].get(name, {}).items())
            lines.append(f"| {row['model']}, {row['images']} | {name} | {top1} | {same} | {kernels} |")
    lines += [
        "", "## Packed MobileNetV2 (FP32 14.0 MB)", "",
        "| weights | MB | of these codes | scales, biases, offsets | nodes | all else |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in result["sizes"]:
        megabytes = [f"{row[part] / 1e6:.3f}" for part in ("bytes", "codes", "constants", "nodes", "rest")]
        lines.append(f"| {row['file']} | {' | '.join(megabytes)} |")
    versions = ", ".join(f"{name} {version}" for name, version in head["versions"].items())
    lines += ["", f"Machine: {head['machine']}. Versions: {versions}, openvino {openvino.__version__.split('-')[0]}."]
    (RESULTS / "deployment.md").write_text("\n".join(lines) + "\n")
    (RESULTS / "deployment.json").write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared"))
    parser.add_argument("--mobilenet", type=Path, help="default: build/benchmarks/mb2-w4a4-1000.onnx if it is there")
    parser.add_argument("--resnet", type=Path, help="default: build/benchmarks/r20-w4a4.onnx if it is there")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=60)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    BUILD.mkdir(parents=True, exist_ok=True)
    learned = {}
    for model, given, left in (
        ("mobilenetv2_imagenet", args.mobilenet, BUILD / "mb2-w4a4-1000.onnx"),
        ("resnet20_cifar10", args.resnet, BUILD / "r20-w4a4.onnx"),
    ):
        learned[model] = given or (left if left.exists() else None)
        if learned[model] is None:
            learned[model] = made(args.data, model, f"quick-{model}", args.threads, wbits=4, **QUICK)
    fp32, ours = args.data / "models" / "mobilenetv2_imagenet.onnx", learned["mobilenetv2_imagenet"]
    packed, aimed = BUILD / "deployment-packed.onnx", BUILD / "deployment-openvino.onnx"
    convert(ours, "packed", output=packed)
    convert(ours, target="openvino", output=aimed)
    files = {"FP32": fp32, "ORT W8A8": peer(fp32, 224), "W4A4 int8": ours, "W4A4 packed": packed}
    files["W4A4 without Clips"] = without_clips(ours, BUILD / "deployment-noclips.onnx")
    found = named(benchmark(list(files.values()), batch=BATCHES, threads=(args.threads,), runs=args.runs), files)
    draw_timings(found, RESULTS / "deployment.png")
    result = {
        "header": header(),
        "threads": args.threads,
        "onnxruntime": found.to_json(),
        "openvino": openvino_times({"FP32": fp32, "W4A4": aimed}, args.threads, args.runs),
        "accuracy": [accuracies(args.data, model, file, args.threads) for model, file in learned.items()],
        "sizes": sizes(args.data, packed, args.threads),
    }
    write(result)
    print((RESULTS / "deployment.md").read_text())


if __name__ == "__main__":
    main()
