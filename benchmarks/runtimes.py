"""Files of every target and container in every runtime: whether they load, agree, run on integers, and their time against FP32.

usage: python benchmarks/runtimes.py [--data ../shared] [--files build/benchmarks/learned] [--environments build/runtimes]
                                     [--make] [--only MODEL-WIDTHS...] [--forms TARGET/CONTAINER...] [--images 64]
                                     [--timeout 600] [--again] [--draw]

--files is a folder of results of mrecg-onnx quantize, named MODEL-WIDTHS.onnx (resnet20_cifar10-w4a4.onnx); what is missing
there is made in few iterations. --environments is a folder of Python environments that hold a runtime each; --make makes those
of ENVIRONMENTS (the one for node has its packages in node_modules). Rows are kept as they come; those that are there are not
measured again. Every row is the report of `mrecg-onnx runtimes` on one file, on one thread; the page and the table in
docs/deployment.md are made of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx_ir as ir
from _experiment import BUILD, NAMES, RESULTS, SETS, Rows
from _record import by

import mrecg_onnx
from mrecg_onnx.converters import load_model, normalize, save_model
from mrecg_onnx.converters.files import write_whole
from mrecg_onnx.converters.passes.opset import raise_opset
from mrecg_onnx.data import open_validation
from mrecg_onnx.running import Attempt, input_specs, open_session, runtimes
from mrecg_onnx.validating import stored_preprocess
from mrecg_onnx.validating.metadata import metadata_of
from mrecg_onnx.writing import fix_batch

#: Environments that --make makes: what pip installs in each.
ENVIRONMENTS = {
    "opencv": ["opencv-python-headless==5.0.0.93"],
    "tvm": ["apache-tvm==0.27.0.post1", "onnx==1.23.2"],
    "iree": ["iree-base-compiler[onnx]==3.13.0", "iree-base-runtime==3.13.0"],
    "qonnx": ["qonnx==1.0.0", "onnxruntime==1.32.0"],
    "mnn": ["MNN==3.6.1"],
    "tract": ["tract==0.23.9"],
    "ort130": ["onnxruntime==1.30.0"],
    "ort132": ["onnxruntime==1.32.0"],
}
#: ncnn's packages name torch, which they do not need here.
ALONE = {"ncnn": ["ncnn==1.0.20261020", "pnnx==20261020"]}
NODE = ["onnxruntime-web@1.30.0", "onnxruntime-node@1.30.0"]
WIDTHS = {"w4a4": (4, 4), "w2a4": (2, 4), "w4a8": (4, 8), "w8a8": (8, 8)}
MODELS = ("resnet20_cifar10", "mobilenetv2_imagenet")
FORMS = ("ort/int8", "ort/packed", "ort/typed", "portable/int8", "openvino/int8", "openvino/packed")
#: Those that the table in docs/deployment.md has.
SHOWN = ("w4a4", ("ort/int8", "ort/packed", "ort/typed", "portable/int8", "openvino/int8"))
#: Seconds that one runtime may take: compilers on a busy machine.
TIMEOUT_S = 600
DOCS = Path(__file__).parents[1] / "docs" / "deployment.md"
BEGIN, END = "<!-- benchmarks/runtimes.py writes this table -->", "<!-- its end -->"

EXPLAINED = (
    "Each cell: predictions equal to the graph as written on ONNX Runtime (`DISABLE_ALL`), whether convolutions and products",
    "run on integers as the runtime says, and processor time of one image against the float model's in the same runtime, on one",
    "thread.",
    "Files have the batch 1 (`convert --batch 1`): IREE, qonnx and tract take no free one.",
    "OpenVINO's second row has the float type of its own choice; the float model is given it, too.",
)


def make_environments(folder: Path) -> None:
    """Those that are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, packages in {**ENVIRONMENTS, **ALONE}.items():
        python = folder / name / "bin" / "python"
        if python.exists():
            continue
        print(f"environment {name}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "numpy", *packages] if name in ENVIRONMENTS else [*pip, "numpy"], check=True)
        if name in ALONE:
            subprocess.run([*pip, "--no-deps", *packages], check=True)
    if not (folder / "node" / "node_modules").exists():
        (folder / "node").mkdir(exist_ok=True)
        # Without scripts: the one of onnxruntime-node fetches kernels for GPUs.
        npm = ["npm", "install", "--prefix", str(folder / "node"), "--ignore-scripts", "--no-audit", "--no-fund", *NODE]
        subprocess.run(npm, check=True)


def learned(data: Path, files: Path, model: str, widths: str) -> Path:
    """The file for ONNX Runtime, made in few iterations where there is none."""
    path = files / f"{model}-{widths}.onnx"
    if not path.exists():
        files.mkdir(parents=True, exist_ok=True)
        wbits, abits = WIDTHS[widths]
        settings = mrecg_onnx.Settings(wbits=wbits, abits=abits, method="brecq", iters=80, batch_size=16, threads=1)
        calib = data / "data" / SETS[model] / "calib"
        mrecg_onnx.quantize(data / "models" / f"{model}.onnx", calib, settings, output=path)
    return path


def measured(
    data: Path, model: str, file: Path, form: str, pythons: list[Path], images: int, timeout_s: float
) -> dict[str, Any]:
    """One row."""
    target, container = form.split("/")
    aimed = BUILD / "runtimes" / f"{file.stem}-{target}-{container}.onnx"
    aimed.parent.mkdir(parents=True, exist_ok=True)
    mrecg_onnx.convert(file, container, target, batch=1, output=aimed)
    floats = aimed.parent / f"{model}.onnx"  # normalized as our files are, of one batch, which compilers ask for
    normal = raise_opset(normalize(load_model(data / "models" / f"{model}.onnx")), 19)
    save_model(fix_batch(ir.to_proto(normal), 1), floats)
    session = open_session(aimed, level="off")
    found = open_validation(
        data / "data" / SETS[model] / "val", input_specs(session), stored_preprocess(session, str(aimed)), limit=images
    )
    report = runtimes(
        aimed,
        found.load(),
        against=floats,
        python=pythons,
        samples=images,
        runs=20,
        timeout=timeout_s,
    )
    attempts = [row_of(one) for one in report.attempts if one.loads is not None]
    stored = json.loads(metadata_of(session).get("mrecg_onnx.settings", "{}"))
    learned_by = {name: stored.get(name) for name in ("method", "iters")}
    return {"model": model, "widths": file.stem.rpartition("-")[2], "form": form, "items": report.items, "learned": learned_by,
            "bytes": aimed.stat().st_size, "reference": report.reference, "attempts": attempts}  # fmt: skip


def row_of(one: Attempt) -> dict[str, Any]:
    """What is kept of an attempt: no path."""
    return {
        "name": one.name, "title": one.title, "version": one.version, "loads": one.loads, "runs": one.runs,
        "reason": one.reason, "fixed_batch": one.fixed_batch, "arithmetic": str(one.arithmetic or "not said"),
        "kernels": one.kernels, "items": one.items, "agreement": one.agreement, "sqnr_db": one.sqnr_by_output,
        "load_s": one.load_s, "median_s": one.median_s, "against_s": one.against_s, "time_ratio": one.time_ratio,
        "cpu_s": one.cpu_s, "against_cpu_s": one.against_cpu_s, "cpu_ratio": one.cpu_ratio,
        "against_reason": one.against_reason,
    }  # fmt: skip


# --- the page --------------------------------------------------------------------------------------------------------


def cell(one: dict[str, Any] | None, notes: dict[str, int]) -> str:
    """Agreement, arithmetic and time of FP32's; where it does not run, a footnote says why."""
    if one is None:
        return "-"
    if not one["runs"]:
        mark = notes.setdefault(one["reason"], len(notes) + 1)
        return f"{'opens' if one['loads'] else 'no'} [{mark}]"
    same = "-" if one["agreement"] is None else f"{one['agreement']:.3f}"
    ratio = "-" if one["cpu_ratio"] is None else f"{one['cpu_ratio']:.2f}"
    fixed = " (fixed batch)" if one["fixed_batch"] else ""
    return f"{same}, {one['arithmetic']}, {ratio}{fixed}"


def table(rows: list[dict[str, Any]], forms: tuple[str, ...], notes: dict[str, int]) -> list[str]:
    """Runtimes by form."""
    names = {(a["title"], a["version"]): None for row in rows for a in row["attempts"] if shown(a, rows)}
    by_form = {row["form"]: {(a["title"], a["version"]): a for a in row["attempts"]} for row in rows}
    there = [form for form in forms if form in by_form]
    lines = [f"| | {' | '.join(f'`{form}`' for form in there)} |", "|---|" + "---|" * len(there)]
    for title, version in names:
        cells = [cell(by_form[form].get((title, version)), notes) for form in there]
        lines.append(f"| {title} {version} | {' | '.join(cells)} |")
    return lines


def shown(attempt: dict[str, Any], rows: list[dict[str, Any]]) -> bool:
    """All but providers of ONNX Runtime that are nowhere: those that this machine has no device for."""
    provider = attempt["name"].startswith("onnxruntime-") and attempt["name"] not in {
        "onnxruntime-web",
        "onnxruntime-node",
    }
    return not provider or any(a["runs"] for row in rows for a in row["attempts"] if a["name"] == attempt["name"])


def fewer(found: list[dict[str, Any]]) -> list[str]:
    """Runtimes that did not run all images within their time."""
    counts: dict[str, list[int]] = {}
    for row in found:
        for one in row["attempts"]:
            if one["runs"] and one["items"] < row["items"]:
                counts.setdefault(one["title"], []).append(one["items"])
    said = [f"{title} {min(n)}" + (f" to {max(n)}" if max(n) > min(n) else "") for title, n in counts.items()]
    return [f"Fewer images within the time: {', '.join(said)}.", ""] if said else []


def draw(rows: Rows) -> None:
    """The page, and the table in docs/deployment.md."""
    kept = rows.all()
    parts = ["# Every runtime", "", *EXPLAINED, ""]
    for model in MODELS:
        for widths in WIDTHS:
            found = [row for row in kept.values() if (row["model"], row["widths"]) == (model, widths)]
            if not found:
                continue
            notes: dict[str, int] = {}
            count = max(row["items"] for row in found)
            parts += [f"## {NAMES[model]}, {widths.upper()}, {count} images", "", *table(found, FORMS, notes), ""]
            parts += fewer(found)
            parts += [f"{i}. {reason}" for reason, i in notes.items()] + ([""] if notes else [])
    last = max((row["header"] for row in kept.values()), key=lambda one: one["date"])
    last = last | {"command": "python benchmarks/runtimes.py"}  # each row has its own in the JSON
    write_whole(RESULTS / "runtimes.md", "\n".join([*parts, by(last)]) + "\n")
    page = DOCS.read_text(encoding="utf-8")
    head, rest = page.split(BEGIN)
    tail = rest.split(END)[1]
    write_whole(DOCS, f"{head}{BEGIN}\n\n" + "\n".join(summary(kept, last)) + f"\n{END}{tail}")


def summary(kept: dict[str, dict[str, Any]], last: dict[str, Any]) -> list[str]:
    """What the page of deployment shows."""
    widths, forms = SHOWN
    lines: list[str] = [*EXPLAINED, ""]
    notes: dict[str, int] = {}
    for model in MODELS:
        found = [row for row in kept.values() if (row["model"], row["widths"]) == (model, widths)]
        if found:
            count = max(row["items"] for row in found)
            lines += [
                f"{NAMES[model]} {widths.upper()}, {count} images:",
                "",
                *table(found, forms, notes),
                "",
                *fewer(found),
            ]
    lines += [f"{i}. {reason}" for reason, i in notes.items()]
    return [*lines, "", f"{by(last)} All rows: `benchmarks/results/runtimes.md`.", ""]


def main() -> None:
    """Measure what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared"))
    parser.add_argument("--files", type=Path, default=BUILD / "learned")
    parser.add_argument("--environments", type=Path, default=Path("build") / "runtimes")
    parser.add_argument("--make", action="store_true")
    parser.add_argument("--only", nargs="*", default=[f"{model}-{widths}" for model in MODELS for widths in WIDTHS])
    parser.add_argument("--forms", nargs="*", default=list(FORMS))
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, help="seconds that one runtime may take")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--draw", action="store_true", help="only write the pages")
    args = parser.parse_args()
    rows = Rows("runtimes")
    if args.make:
        make_environments(args.environments)
    if not args.draw:
        os.environ["NODE_PATH"] = str((args.environments / "node" / "node_modules").absolute())
        pythons = sorted(args.environments.glob("*/bin/python"))
        for key in rows.missing([f"{name} {form}" for name in args.only for form in args.forms], again=args.again):
            name, form = key.split(" ")
            model, _, widths = name.rpartition("-")
            file = learned(args.data, args.files, model, widths)
            rows.add(key, measured(args.data, model, file, form, pythons, args.images, args.timeout))
    draw(rows)


if __name__ == "__main__":
    main()
