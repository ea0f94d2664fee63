"""Quantized files in browsers and Node.js: whether they open, give native ONNX Runtime's bits, and how long they take.

usage: python benchmarks/web.py --modules DIR [--data ../shared] [--files build/benchmarks/learned] [--images 100] [--samples 21]

--files is a folder of results of mrecg-onnx quantize, named MODEL-WIDTHS.onnx (resnet20_cifar10-w4a4.onnx). --modules is a
node_modules with onnxruntime-web, onnxruntime-node and playwright-core; --chromium the browser that the latter drives. Every file
runs in the containers that ONLY names, beside its FP32 network: outputs of validation images against this environment's ONNX
Runtime at its default level, and the time of one image on one thread, both in turn. A file that does not open, or does not
answer within half a minute, has that in its row.
"""

from __future__ import annotations

import argparse
import base64
import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from _experiment import BUILD, NAMES, RESULTS, SETS, Rows, machine
from _record import by

from mrecg_onnx.converters.files import write_whole
from mrecg_onnx.data import open_validation
from mrecg_onnx.measures import agreement
from mrecg_onnx.running import input_specs, open_session
from mrecg_onnx.validating import stored_preprocess
from mrecg_onnx.writing import contained
from mrecg_onnx.writing.readers import part_readers

HERE = Path(__file__).parent
ENGINES = {"onnxruntime-node": "node", "onnxruntime-web": "web, Node.js", "chromium": "web, Chromium"}
PATIENCE = 30
#: Files that a container is tried with, where not with all.
ONLY = {"int8": ("w8a8", "w4a8", "w4a4"), "typed": ("w4a4",)}


def made(file: Path, container: str) -> Path:
    """A file as it is written today, in a container; files of older versions share their DequantizeLinear nodes."""
    graph = ir.from_proto(onnx.load(file))
    part_readers(graph)
    out = BUILD / "web" / f"{file.stem}-{container}.onnx"
    out.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(contained(ir.to_proto(graph), container).model, out)
    return out


def images(data: Path, model: str, file: Path, count: int) -> np.ndarray:
    """Validation images as the file takes them, as many and spread over all."""
    session = open_session(file, threads=1)
    found = open_validation(
        data / "data" / SETS[model] / "val", input_specs(session), stored_preprocess(session, str(file))
    )
    every = max(1, len(found.labels) // count)
    parts = []
    for feeds, indices in found.batches(100):
        kept = [i for i, index in enumerate(indices) if index % every == 0]
        parts.append(next(iter(feeds.values()))[kept])
    return np.concatenate(parts)[:count]


def ran(job: dict[str, Any]) -> dict[str, Any]:
    """What ``web.mjs`` reports of a job, or why it reports nothing."""
    paths = {name: Path(job[name]) for name in ("input", "out")}
    request = paths["out"].with_suffix(".job")
    request.write_text(json.dumps(job))
    paths["out"].unlink(missing_ok=True)
    try:
        command = ["node", "--no-liftoff", str(HERE / "web.mjs"), str(request)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_patience(job), check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"no answer within {_patience(job)} s"}
    if not paths["out"].exists():
        said = [line for line in done.stderr.splitlines() if "Error" in line]
        return {"failed": said[0].strip()[:160] if said else f"ended with {done.returncode}"}
    found: dict[str, Any] = json.loads(paths["out"].read_text())
    return found


def _patience(job: dict[str, Any]) -> int:
    """Seconds: measured ones take longer."""
    return PATIENCE * (1 + job["samples"])


def floats(text: str, rows: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.float32).reshape(rows, -1)


def measured(key: str, args: argparse.Namespace) -> dict[str, Any]:
    """One row: a file in a container, everywhere."""
    stem, _, container = key.rpartition("-")
    model, widths = stem.rsplit("-", 1)
    fp32, file = args.data / "models" / f"{model}.onnx", made(args.files / f"{stem}.onnx", container)
    x = images(args.data, model, file, args.images)
    name = input_specs(open_session(file, threads=1))[0].name
    native = {
        slot: open_session(path, threads=1).run(None, {name: x})[0] for slot, path in (("fp32", fp32), ("file", file))
    }
    source = BUILD / "web" / "input.bin"
    x.tofile(source)
    method = json.loads(open_session(file).get_modelmeta().custom_metadata_map["mrecg_onnx.settings"])["method"]
    row = {
        "model": model, "widths": widths.upper(), "container": container, "method": method, "images": len(x),
        "bytes": file.stat().st_size, "fp32_bytes": fp32.stat().st_size,
    }  # fmt: skip
    for engine in ENGINES:
        job = {
            "engine": engine, "modules": str(args.modules.resolve()), "chromium": args.chromium,
            "page": str((HERE.parent / "samples" / "web").resolve()), "input": str(source.resolve()),
            "out": str((BUILD / "web" / "out.json").resolve()), "dims": list(x.shape),
        }  # fmt: skip
        typed = container == "typed"
        models = {"file": str(file.resolve())} | ({} if typed else {"fp32": str(fp32.resolve())})
        found = ran(job | {"models": models, "samples": 0 if typed else args.samples})
        row[engine] = found if "failed" in found else summary(found, native)
        print(key, engine, row[engine], flush=True)
    return row


def summary(found: dict[str, Any], native: dict[str, np.ndarray]) -> dict[str, Any]:
    """Figures of one runtime."""
    got = floats(found["outputs"]["file"], len(native["file"]))
    same = {
        "version": found["version"],
        "browser": found.get("browser"),
        "opened_ms": round(found["opened_ms"]["file"], 1),
        "same_bits": round(float((got == native["file"]).all(axis=1).mean()), 4),
        "agreement": round(agreement(native["file"], got), 4),
    }  # fmt: skip
    if not found["times_ms"]:
        return same
    # The processor's time in Node.js; a browser does not tell it, so there the fastest of all samples.
    fold = statistics.median if found.get("browser") is None else min
    theirs, mine = (fold(found["times_ms"][slot]) for slot in ("fp32", "file"))
    return same | {
        "fp32_ms": round(theirs, 2),
        "ms": round(mine, 2),
        "ratio": round(mine / theirs, 2),
        "fp32_agreement": round(agreement(native["fp32"], floats(found["outputs"]["fp32"], len(got))), 4),
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The page."""
    last = next(reversed(list(rows.values())))
    versions = {e: r["version"] for row in rows.values() for e in ENGINES if "version" in (r := row[e])}
    browser = next((row["chromium"]["browser"] for row in rows.values() if "browser" in row["chromium"]), "?")
    packages = ", ".join(f"{name} {versions[name]}" for name in versions if name != "chromium")
    lines = [
        "# Browsers and Node.js", "",
        by(last["header"]),
        f"{packages}, Chromium {browser}. Rows were measured one by one; `web.json` has a header for each.", "",
        "Same bits: the share of images whose outputs are those of ONNX Runtime in Python, at its default level, and the",
        "share of predictions that are. Time: one image, one thread; in Node.js median CPU time, in Chromium the fastest",
        "sample, as the machine was busy with other work; against FP32 in the same runtime, both in turn. WebAssembly is",
        "compiled by V8's optimizing compiler at once (--no-liftoff), as it is after some runs anyway.", "",
        f"| network | file | MB (FP32) | {' | '.join(f'{n}: same bits, top-1 | ms | vs FP32' for n in ENGINES.values())} |",
        "|---|---|---|" + "---|---|---|" * len(ENGINES),
    ]  # fmt: skip
    for row in rows.values():
        nearest = ", to nearest" if row["method"] == "nearest" else ""
        cells = [NAMES[row["model"]], f"{row['widths']} {row['container']}{nearest}"]
        cells.append(f"{row['bytes'] / 1e6:.2f} ({row['fp32_bytes'] / 1e6:.2f})")
        for engine in ENGINES:
            found = row[engine]
            if "failed" in found:
                cells += [found["failed"].replace("|", "/"), "", ""]
                continue
            cells.append(f"{found['same_bits']:.2f}, {found['agreement']:.2f}")
            cells += [f"{found['ms']:.2f}", f"{found['ratio']:.2f}"] if "ms" in found else ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", machine(rows)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared"))
    parser.add_argument("--files", type=Path, default=BUILD / "learned")
    parser.add_argument("--modules", type=Path, required=True)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--samples", type=int, default=21)
    parser.add_argument("--again", action="store_true", help="measure rows that are there, too")
    args = parser.parse_args()
    stems = [
        path.stem for path in sorted(args.files.glob("*.onnx"), reverse=True) if path.stem.rpartition("-")[0] in SETS
    ]
    keys = [f"{stem}-{container}" for stem in stems for container in ("int8", "packed", "typed")
            if stem.endswith(ONLY.get(container, ""))]  # fmt: skip
    kept = Rows("web")
    for key in kept.missing(keys, again=args.again):
        kept.add(key, measured(key, args))
        write_whole(RESULTS / "web.md", table(kept.all()))
    write_whole(RESULTS / "web.md", table(kept.all()))


if __name__ == "__main__":
    main()
