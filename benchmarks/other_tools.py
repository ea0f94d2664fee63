"""What other tools do to a quantized file: whether it still opens, computes the same on integer kernels, and how large it is.

usage: python benchmarks/other_tools.py [--python ENV/bin/python ...] [--data ../shared] [--files build/benchmarks/learned]

The tools run in environments of their own, given as their Python (each tool in the first that has its package); without one an
environment is made in build/benchmarks/tools from the package registry. The files are ResNet-20 at W4A4 and W2A4 (--files
has resnet20_cifar10-w4a4.onnx and -w2a4.onnx) in every container, and in the form of every other target. Compared are
outputs of 200 validation images on this environment's ONNX Runtime at its default level, before and after.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import venv
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from _experiment import BUILD, RESULTS, SETS, Rows, machine
from _record import by, header

from mrecg_onnx.converters.files import write_whole
from mrecg_onnx.converters.metadata_keys import VERSION_KEY
from mrecg_onnx.data import open_validation
from mrecg_onnx.measures import agreement
from mrecg_onnx.running import fused_op_counts, input_specs, open_session
from mrecg_onnx.targets import load_target
from mrecg_onnx.validating import stored_preprocess
from mrecg_onnx.writing import contained, retarget
from mrecg_onnx.writing.readers import part_readers

WORKER = Path(__file__).parent / "_other_tools.py"
MODEL = "resnet20_cifar10"
IMAGES = 200
PINS = (
    "onnx==1.23.2", "onnxruntime==1.32.0", "onnxsim==0.8.1", "onnxslim==0.1.98", "onnxconverter-common==1.16.0",
    "onnx-graphsurgeon==0.6.1", "onnx-tool==1.0.1", "onnxoptimizer==0.4.2", "polygraphy==0.53.6", "onnxscript==0.7.2",
    "onnx-ir==1.1.0", "sympy==1.14.0",
)  # fmt: skip
#: Files by name: widths, target, container.
FILES = {
    "int8": ("w4a4", "ort", "int8"), "packed UINT4": ("w4a4", "ort", "packed"), "packed UINT2": ("w2a4", "ort", "packed"),
    "typed": ("w4a4", "ort", "typed"), "openvino": ("w4a4", "openvino", "packed"), "qnn": ("w4a4", "qnn", "int8"),
    "portable": ("w4a4", "portable", "int8"),
}  # fmt: skip
FLOAT_LAYERS = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul"}
INTEGER_LAYERS = {"QLinearConv", "QGemm", "QLinearMatMul", "MatMulInteger", "ConvInteger"}


def made(files: Path, name: str) -> Path:
    """A file in the form that is written today; those of older versions share their DequantizeLinear nodes."""
    widths, target, container = FILES[name]
    graph = ir.from_proto(onnx.load(files / f"{MODEL}-{widths}.onnx"))
    part_readers(graph)
    rules = load_target(target)
    plain = retarget(ir.to_proto(graph), rules)
    out = BUILD / "tools-files" / f"{name.replace(' ', '-')}.onnx"
    out.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(contained(plain, container, highest=rules.opset[1]).model, out)
    return out


def environment() -> Path:
    """Python of an environment with the tools, made where there is none."""
    folder = BUILD / "tools"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PINS], check=True)
    return python


def kernels(path: Path) -> dict[str, int]:
    """Weighted layers that run in integers and in float, and the nodes in all."""
    counts: Counter[str] = Counter(fused_op_counts(path))
    return {
        "integer": sum(counts[name] for name in INTEGER_LAYERS),
        "float": sum(counts[name] for name in FLOAT_LAYERS),
        "nodes": sum(counts.values()),
    }


def outcome(source: Path, target: Path, x: np.ndarray) -> dict[str, Any]:
    """What became of a file."""
    model = onnx.load(target)
    row: dict[str, Any] = {
        "size": round(target.stat().st_size / source.stat().st_size, 3),
        "metadata": VERSION_KEY in {entry.key for entry in model.metadata_props},
    }
    try:
        (expected,), (got,) = (_outputs(path, x) for path in (source, target))
    except Exception as error:  # noqa: BLE001 - whatever ONNX Runtime says of a file that another tool wrote
        return row | {"failed": str(error).strip().splitlines()[0][:200]}
    row |= {"equal": bool(np.array_equal(expected, got)), "agreement": round(agreement(expected, got), 4)}
    row["before"], row["after"] = kernels(source), kernels(target)
    return row


def _outputs(path: Path, x: np.ndarray) -> list[np.ndarray]:
    session = open_session(path, threads=1)
    found: list[np.ndarray] = session.run(None, {input_specs(session)[0].name: x})
    return found


def measured(python: Path, tool: str, version: str, files: dict[str, Path], x: np.ndarray) -> dict[str, Any]:
    """One row: a tool on every file."""
    row: dict[str, Any] = {"version": version}
    for name, source in files.items():
        out = BUILD / "tools-files" / "after.onnx"
        out.unlink(missing_ok=True)
        done = subprocess.run(
            [python, WORKER, tool, source, out], capture_output=True, text=True, check=False, timeout=300
        )
        if done.returncode or not out.exists():
            said = [line for line in done.stderr.strip().splitlines() if line.strip()]
            row[name] = {"refused": (said[-1] if said else f"ended with {done.returncode}")[:200]}
        else:
            row[name] = outcome(source, out, x)
        print(tool, name, row[name], flush=True)
    return row


def said(found: dict[str, Any]) -> str:
    """One cell."""
    if "refused" in found:
        return "refuses it"
    if "failed" in found:
        return "**does not open**"
    before, after = found["before"], found["after"]
    parts = []
    if not found["equal"]:
        parts.append("other bits" if found["agreement"] >= 0.99 else f"**{found['agreement']:.0%} agree**")
    if after["integer"] < before["integer"]:
        parts.append(f"**{after['integer']} of {before['integer']} integer layers**")
    if not 0.95 <= found["size"] <= 1.05:
        parts.append(f"size x{found['size']:.2f}")
    if not found["metadata"]:
        parts.append("metadata lost")
    return ", ".join(parts) or "same"


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The page."""
    packages = json.loads(
        subprocess.run([sys.executable, WORKER, "--packages"], capture_output=True, text=True, check=True).stdout
    )
    lines = [
        "# What other tools do to a file", "",
        by(next(reversed(list(rows.values())))["header"]),
        f"ResNet-20 W4A4 (UINT2: W2A4), {IMAGES} images at the default level before and after. Same: equal outputs, as many",
        "integer layers, the metadata there, a size within 5 %. Rows were measured one by one; `other_tools.json` has a header",
        "for each, with every message.", "",
        f"| package | call | {' | '.join(FILES)} |", "|---|---|" + "---|" * len(FILES),
    ]  # fmt: skip
    lines += [
        f"| {packages[tool]} {row['version']} | {tool} | {' | '.join(said(row[name]) for name in FILES)} |"
        for tool, row in rows.items()
    ]
    return "\n".join([*lines, "", machine(rows)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared"))
    parser.add_argument("--files", type=Path, default=BUILD / "learned")
    parser.add_argument(
        "--python", type=Path, action="append", default=[], help="of an environment with tools; repeatable"
    )
    parser.add_argument("--again", action="store_true", help="measure rows that are there, too")
    parser.add_argument(
        "--form", choices=FILES, action="append", default=[], help="measure only these columns, of all rows; repeatable"
    )
    parser.add_argument("--draw", action="store_true", help="only write the table from the rows that are there")
    args = parser.parse_args()
    kept = Rows("other_tools")
    if not args.draw:
        where: dict[str, tuple[Path, str]] = {}
        for python in args.python or [environment()]:
            there = json.loads(subprocess.run([python, WORKER], capture_output=True, text=True, check=True).stdout)
            where |= {tool: (python, version) for tool, version in there.items() if tool not in where}
        files = {name: made(args.files, name) for name in FILES}
        session = open_session(files["int8"], threads=1)
        validation = args.data / "data" / SETS[MODEL] / "val"
        found = open_validation(validation, input_specs(session), stored_preprocess(session, "int8"))
        x = next(iter(next(iter(found.batches(IMAGES)))[0].values()))
        chosen = {name: files[name] for name in args.form or files}
        for tool in kept.missing(list(where), again=args.again or bool(args.form)):
            row = measured(where[tool][0], tool, where[tool][1], chosen, x)
            if args.form:
                kept.amend(tool, row | {"amended": {"forms": args.form, "header": header()}})
            else:
                kept.add(tool, row)
            write_whole(RESULTS / "other_tools.md", table(kept.all()))
    write_whole(RESULTS / "other_tools.md", table(kept.all()))


if __name__ == "__main__":
    main()
