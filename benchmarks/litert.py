"""Learned files on LiteRT: what they predict there, which of it ONNX Runtime predicts, and how long both take.

usage: python benchmarks/litert.py [--data ../shared] [--files build/benchmarks/learned] [--images 1000] [--runs 60] [--again]

--files is a folder of results of mrecg-onnx quantize, named MODEL-WIDTHS.onnx (resnet20_cifar10-w4a4.onnx). Rows are kept as they
come; those that are there are not measured again. "Portable" are LiteRT's kernels without its default delegate. Times are CPU
time of one image on one thread, all in turn; the float network on LiteRT is the same one, written by the same code.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from _experiment import BUILD, NAMES, RESULTS, SETS, Rows
from _record import by
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from mrecg_onnx.converters import normalize
from mrecg_onnx.converters.files import write_whole
from mrecg_onnx.data import open_validation
from mrecg_onnx.litert import run_litert, to_litert, write_litert
from mrecg_onnx.measures import agreement, sqnr_db
from mrecg_onnx.running import input_specs, open_session, run_padded
from mrecg_onnx.validating import stored_preprocess

PORTABLE = 200


def interpreter(
    content: bytes, x: np.ndarray, kernels: OpResolverType = OpResolverType.AUTO
) -> Callable[[], np.ndarray]:
    """What runs a flatbuffer on ``x``."""
    made = Interpreter(model_content=content, num_threads=1, experimental_op_resolver_type=kernels)
    place, last = made.get_input_details()[0]["index"], made.get_output_details()[0]["index"]
    made.resize_tensor_input(place, x.shape)
    made.allocate_tensors()
    made.set_tensor(place, x)

    def run() -> np.ndarray:
        made.invoke()
        return made.get_tensor(last)

    return run


def times(model: Path, file: Path, content: bytes, runs: int) -> dict[str, float]:
    """Median CPU milliseconds of one image, taking turns, each timed run behind an untimed one."""
    sessions = {"ONNX Runtime, FP32": open_session(model, threads=1), "ONNX Runtime": open_session(file, threads=1)}
    spec = input_specs(sessions["ONNX Runtime"])[0]
    x = np.random.default_rng(0).standard_normal((1, *spec.shape[1:])).astype(np.float32)
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    plain = write_litert(ir.to_proto(normalize(onnx.load(model))))
    takes: dict[str, Callable[[], Any]] = {
        name: lambda session=session: session.run(None, {spec.name: x}) for name, session in sessions.items()
    }
    takes |= {"LiteRT, FP32": interpreter(plain, last), "LiteRT": interpreter(content, last)}
    taken: dict[str, list[float]] = {name: [] for name in takes}
    for _ in range(runs + 5):
        for name, take in takes.items():
            take()
            start = time.process_time()
            take()
            taken[name].append(time.process_time() - start)
    return {name: round(1e3 * statistics.median(seconds[5:]), 3) for name, seconds in taken.items()}


def measured(data: Path, model: str, file: Path, images: int, runs: int) -> dict[str, Any]:
    """One row."""
    made = to_litert(file)
    sessions = {"default": open_session(file, threads=1), "written": open_session(file, "off", threads=1)}
    spec = input_specs(sessions["default"])
    found = open_validation(
        data / "data" / SETS[model] / "val", spec, stored_preprocess(sessions["default"], str(file))
    )
    every = max(1, len(found.labels) // images)
    rows: dict[str, list[np.ndarray]] = {"default": [], "written": [], "LiteRT": [], "portable": []}
    labels: list[int] = []
    for feeds, indices in found.batches(100):
        kept = [i for i, index in enumerate(indices) if index % every == 0]
        if not kept:
            continue
        x = {name: value[kept] for name, value in feeds.items()}
        labels += [found.labels[indices[i]] for i in kept]
        for name, session in sessions.items():
            rows[name].append(next(iter(run_padded(session, x).values())))
        rows["LiteRT"].append(next(iter(run_litert(made.content, x, made.layouts).values())))
        if sum(map(len, rows["portable"])) < PORTABLE:
            images_last = np.ascontiguousarray(next(iter(x.values())).transpose(0, 2, 3, 1))
            rows["portable"].append(
                interpreter(made.content, images_last, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)()
            )
    got = {name: np.concatenate(parts) for name, parts in rows.items()}
    few = len(got["portable"])
    return {
        "model": model,
        "widths": file.stem.rpartition("-")[2].upper(),
        "images": len(labels),
        "bytes": len(made.content),
        "operators": made.operators,
        "top1": {name: round(float(np.mean(y.argmax(1) == np.array(labels[: len(y)]))), 4) for name, y in got.items()},
        "agreement": {
            "default": round(agreement(got["default"], got["LiteRT"]), 4),
            "written": round(agreement(got["written"], got["LiteRT"]), 4),
            "default with written": round(agreement(got["written"], got["default"]), 4),
            "portable": round(agreement(got["default"][:few], got["portable"]), 4),
        },
        "sqnr_db": {
            "default": round(sqnr_db(got["default"], got["LiteRT"]), 1),
            "written": round(sqnr_db(got["written"], got["LiteRT"]), 1),
            "default with written": round(sqnr_db(got["written"], got["default"]), 1),
        },
        "ms": times(data / "models" / f"{model}.onnx", file, made.content, runs),
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The page."""
    head = next(reversed(list(rows.values())))["header"]
    litert = head["versions"]["ai-edge-litert"]
    columns = ["network", "widths", "MB", "top-1, ONNX Runtime", "LiteRT", "agrees with default", "with written"]
    columns += ["default with written", "portable", "SQNR, default", "written", "default with written"]
    lines = [
        "# LiteRT", "",
        by(head),
        f"ai-edge-litert {litert}. Rows were measured one by one; `litert.json` has a header for each.", "",
        "Agreement of LiteRT's predictions with ONNX Runtime's at its default level and as written, and of these two with each",
        "other; SQNR (dB) of the outputs likewise. Portable: LiteRT's kernels without its delegate, against ONNX Runtime's",
        f"default, {PORTABLE} images.", "",
        f"| {' | '.join(columns)} |", "|" + "---|" * len(columns),
    ]  # fmt: skip
    for row in rows.values():
        top, same, sqnr = row["top1"], row["agreement"], row["sqnr_db"]
        cells = [NAMES[row["model"]], row["widths"], f"{row['bytes'] / 2**20:.2f}"]
        cells += [f"{top[name]:.4f}" for name in ("default", "LiteRT")]
        cells += [f"{same[name]:.4f}" for name in ("default", "written", "default with written", "portable")]
        cells += [f"{sqnr[name]:.1f}" for name in ("default", "written", "default with written")]
        lines.append(f"| {' | '.join(cells)} |")
    columns = ["network", "widths", "ONNX Runtime, FP32", "ONNX Runtime", "LiteRT, FP32", "LiteRT", "against its FP32"]
    lines += [
        "",
        "CPU milliseconds of one image on one thread, median, all in turn; the machine did other work, too.",
        "",
    ]
    lines += [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in rows.values():
        ms = row["ms"]
        cells = [NAMES[row["model"]], row["widths"], *(f"{value:.2f}" for value in ms.values())]
        lines.append(f"| {' | '.join(cells)} | {ms['LiteRT, FP32'] / ms['LiteRT']:.2f}x |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared"))
    parser.add_argument("--files", type=Path, default=BUILD / "learned")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--again", action="store_true", help="measure rows that are there, too")
    parser.add_argument("--times", action="store_true", help="measure nothing but the times, of rows that are there")
    given = parser.parse_args()
    files = {path.stem: path for path in sorted(given.files.glob("*.onnx")) if path.stem.rpartition("-")[0] in SETS}
    kept = Rows("litert")
    for key in kept.all() if given.times else ():
        model = given.data / "models" / f"{key.rpartition('-')[0]}.onnx"
        kept.amend(key, {"ms": times(model, files[key], to_litert(files[key]).content, given.runs)})
    for key in kept.missing(list(files), again=given.again):
        kept.add(key, measured(given.data, key.rpartition("-")[0], files[key], given.images, given.runs))
        print(json.dumps(kept.all()[key]["agreement"]), flush=True)
    write_whole(RESULTS / "litert.md", table(kept.all()))


if __name__ == "__main__":
    main()
